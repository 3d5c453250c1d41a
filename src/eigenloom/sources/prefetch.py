"""One thread that works ahead of a loop, never further than a fixed number of items."""

import threading
from collections.abc import Generator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")
_END = object()


class Prefetched(Generic[Item]):
    """The items of a generator, produced in a thread of their own.

    Use as a context manager and iterate inside; call ``release`` once for every item that is done with, which
    allows the thread to produce another. An exception in the thread is raised by the loop. Leaving the block
    ends the thread and closes the generator, at the latest when the item it is working on is done.
    """

    def __init__(self, items: Generator[Item, None, None], slots: int) -> None:
        """Wrap ``items``; at most ``slots`` of them exist that have not been released."""
        self._items = items
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._free: SimpleQueue[None] = SimpleQueue()  # a queue of tokens costs less than a semaphore
        for _ in range(slots):
            self._free.put(None)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="eigenloom-prefetch", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread and wait for it."""
        self._stopped = True
        self.release()
        if self._thread is not threading.current_thread():  # a loop dropped in a cycle may be collected there
            self._thread.join()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Item:
        """Return the next item, or raise what the thread met."""
        item, error = self._queue.get()
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def release(self) -> None:
        """Allow one more item."""
        self._free.put(None)

    def _work(self) -> None:
        """Produce until the generator ends, fails, or nobody wants more."""
        try:
            while True:
                self._free.get()
                if self._stopped:
                    return
                item = next(self._items, _END)
                self._queue.put((item, None))
                if item is _END:
                    return
                del item  # the memory behind it is lent again only when nobody holds it
        except BaseException as error:  # whatever it is, it belongs to the loop
            self._queue.put((None, error))
        finally:
            self._items.close()
