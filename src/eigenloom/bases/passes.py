"""Named passes over a stream, one after the other, any of which can be continued in the middle."""

import logging
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from eigenloom.progress import Progress
from eigenloom.store.npy import MemoryRows, NpyWriter
from eigenloom.store.snapshots import Snapshots

logger = logging.getLogger("eigenloom")
Writer = MemoryRows | NpyWriter


class Passes:
    """Runs passes, saves where each of them is together with its sums, and skips what an earlier process has done.

    A *writer* collects rows front to back during one pass; where its rows went to a file, the file is synchronised
    before a snapshot counts on it.
    """

    def __init__(self, snapshots: Snapshots, writers: Mapping[str, Writer], progress: Progress, unit: str):
        """Take entered snapshots and the writer of each pass that has one; find out how far an earlier process got."""
        self._snapshots, self._writers, self._progress, self._unit = snapshots, writers, progress, unit
        self._state, self._done = snapshots.load() or ({}, {})
        if self._done and not all(writer.holds(self._done.get(name, 0)) for name, writer in writers.items()):
            logger.warning("the files that the snapshot counts on are not there any more; starting over")
            self._state, self._done = {}, {}
        for name, writer in writers.items():
            writer.begin(self._done.get(name, 0))

    def run(
        self,
        name: str,
        state: dict[str, Tensor],
        stream: Callable[[int], Iterator[Tensor]],
        visit: Callable[[int, Tensor], None],
        total: int,
    ) -> None:
        """Make the pass, or what is left of it.

        Args:
            name: of the pass, unique in the fit.
            state: sums that ``visit`` updates in place; filled from the snapshot first.
            stream: yields blocks from a position on.
            visit: called with position and block; the block's length is how far the position moves.
            total: the position after the last block.

        Raises:
            Interrupted: a SIGTERM arrived and everything was saved.
        """
        if name in self._writers:
            state = state | self._writers[name].state()
        for key, tensor in state.items():
            if (saved := self._state.get(f"{name}.{key}")) is not None:
                tensor.copy_(saved)
            self._state[f"{name}.{key}"] = tensor
        start = self._done.get(name, 0)
        if start == total:
            return
        for block in self._progress.track(stream(start), name, total - start, self._unit):
            visit(start, block)
            start += len(block)
            self._done[name] = start
            if self._snapshots.due():
                for writer in self._writers.values():
                    writer.sync()
                self._snapshots.tick(self._state, self._done)
