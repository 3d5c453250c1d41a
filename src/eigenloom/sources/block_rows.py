"""The three orders of rows that a reader delivers piece by piece: stored, block-shuffled, sampled."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from eigenloom.batches import generator as seeded
from eigenloom.errors import ConfigError, DataError
from eigenloom.sources.prefetch import Prefetched
from eigenloom.store.reading import Buffers, aligned

CHUNK_BYTES = 1 << 20
PERMUTATION_ROWS = 1 << 24


class RowReader(Protocol):
    """A context manager that holds open files and fills memory of the caller with consecutive rows."""

    def __enter__(self) -> Self:
        """Return itself; files are opened when first read."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        ...

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, float32 ``[n, d]`` and contiguous, with the rows from ``first`` on."""
        ...


class BlockRows(ABC):
    """Rows on a disk as ``Batches``: float32 ``[b, d]``; what is on the disk is the subclass's reader's business.

    Batches are filled by a thread that works one batch, or one pool, ahead. A batch is the caller's: its memory is
    used again, also by the next pass, only after nothing refers to it. That is about three batches for stored order
    and two pools for shuffled order, kept as long as this object.

    The shuffled order is a function of a key drawn from the generator, ``n_rows``, the block size in rows and the
    pool size in blocks: blocks of ``block_rows`` are permuted and dealt into pools of at most ``pool_bytes``; each
    pool is permuted by a generator of its own. ``batch_size`` does not matter.
    """

    def __init__(self, n_rows: int, n_features: int, *, batch_size: int, block_rows: int, pool_bytes: int) -> None:
        """Take the shape of the matrix and the sizes of batches, blocks and pools.

        Raises:
            ConfigError: a size is not positive.
        """
        if min(batch_size, block_rows, pool_bytes) < 1:
            raise ConfigError("batch_size, block_bytes and pool_bytes must be positive")
        self.n_rows, self.n_features = n_rows, n_features
        self._batch_size = min(batch_size, n_rows)
        self._row_bytes = n_features * 4
        self._block_rows = block_rows
        self._pool_blocks = max(1, pool_bytes // (block_rows * self._row_bytes))
        self._batch_memory = Buffers(self._batch_size, n_features)
        self._pool_memory = Buffers(min(self._pool_blocks * block_rows, n_rows), n_features)

    @abstractmethod
    def _reader(self) -> RowReader:
        """Return a new reader; nothing is open before the first read."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches in stored order."""
        with Prefetched(self._stored(), slots=2) as batches:
            for batch in batches:
                yield batch
                batches.release()

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield batches in block-shuffled order, without the first ``skip_rows`` rows; whole pools are not read."""
        key = int(torch.randint(1 << 62, (1,), generator=generator))
        return self._cut(self._pools(key, skip_rows))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct rows ``[n, d]``, uniform, in random order, by one ascending pass over their blocks.

        Raises:
            DataError: more rows are asked for than there are.
        """
        if n > self.n_rows:
            raise DataError(f"{n} distinct rows were asked for, but there are only {self.n_rows}")
        ids = _distinct(n, self.n_rows, generator).numpy()
        order = np.argsort(ids)
        ids = ids[order]
        rows = aligned(n, self.n_features)
        scratch = aligned(min(self._block_rows, self.n_rows), self.n_features)
        borders = np.flatnonzero(np.diff(ids // self._block_rows)) + 1
        with self._reader() as reader:
            for places in np.split(np.arange(n), borders) if n else ():
                wanted = ids[places]
                span = scratch[: wanted[-1] - wanted[0] + 1]
                reader.read(int(wanted[0]), span)
                rows[order[places]] = span[wanted - wanted[0]]
        return torch.from_numpy(rows)

    def _stored(self) -> Generator[Tensor, None, None]:
        """Produce the batches of stored order."""
        with self._reader() as reader:
            for first in range(0, self.n_rows, self._batch_size):
                yield _filled(reader, self._batch_memory, first, min(self._batch_size, self.n_rows - first))

    def _pools(self, key: int, skip: int) -> Generator[Tensor, None, None]:
        """Produce the permuted pools of the shuffled order, without its first ``skip`` rows."""
        n_blocks = -(-self.n_rows // self._block_rows)
        last_rows = self.n_rows - (n_blocks - 1) * self._block_rows
        order = torch.randperm(n_blocks, generator=seeded(key, "blocks"))
        with self._reader() as reader:
            for number, blocks in enumerate(order.split(self._pool_blocks)):
                n_rows = len(blocks) * self._block_rows
                if (blocks == n_blocks - 1).any():
                    n_rows += last_rows - self._block_rows
                if skip < n_rows:
                    places = torch.randperm(n_rows, generator=seeded(key, "pool", number)).numpy()
                    yield self._pool(reader, blocks.sort().values.tolist(), places)[skip:]
                skip = max(0, skip - n_rows)

    def _pool(self, reader: RowReader, blocks: list[int], places: np.ndarray) -> Tensor:
        """Read blocks in ascending order, each row to its place in the pool, by way of a chunk that stays in cache."""
        tensor, memory = self._pool_memory.take()
        chunk = aligned(max(1, CHUNK_BYTES // self._row_bytes), self.n_features)
        whole_row = f"V{self._row_bytes}"  # numpy moves opaque items faster than rows of numbers
        pool, moved = memory.view(whole_row)[:, 0], chunk.view(whole_row)[:, 0]
        done = 0
        for block in blocks:
            stop = min((block + 1) * self._block_rows, self.n_rows)
            for first in range(block * self._block_rows, stop, len(chunk)):
                count = min(len(chunk), stop - first)
                reader.read(first, chunk[:count])
                pool[places[done : done + count]] = moved[:count]
                done += count
        return tensor[:done]

    def _cut(self, pools: Generator[Tensor, None, None]) -> Iterator[Tensor]:
        """Cut the concatenation of the pools into batches; only one that spans two pools is copied."""
        parts: list[Tensor] = []
        missing = self._batch_size
        finished = 0
        with Prefetched(pools, slots=2) as ahead:
            for pool in ahead:
                start = 0
                while start < len(pool):
                    part = pool[start : start + missing]
                    start += len(part)
                    missing -= len(part)
                    parts.append(part)
                    if missing == 0:
                        batch = parts[0] if len(parts) == 1 else torch.cat(parts)
                        parts, missing = [], self._batch_size
                        yield batch
                        for _ in range(finished):  # only now has the caller let go of the pool before this one
                            ahead.release()
                        finished = 0
                finished += 1
                for _ in range(finished - 1):
                    ahead.release()
                finished = 1
            if parts:
                yield torch.cat(parts)


def _filled(reader: RowReader, buffers: Buffers, first: int, count: int) -> Tensor:
    """Read one batch; no reference to its memory stays here."""
    tensor, memory = buffers.take()
    reader.read(first, memory[:count])
    return tensor[:count]


def _distinct(n: int, n_rows: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` distinct row numbers in random order, in memory that does not grow with ``n_rows``.

    A permutation is drawn where it is small or mostly needed; else numbers are drawn with replacement and
    repetitions dropped, which leaves the same distribution.
    """
    if n_rows <= max(PERMUTATION_ROWS, 4 * n):
        return torch.randperm(n_rows, generator=generator)[:n]
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        drawn = torch.cat([drawn, torch.randint(n_rows, (n,), generator=generator)])
        _, first = np.unique(drawn.numpy(), return_index=True)
        if len(first) >= n:
            return drawn[torch.from_numpy(np.sort(first)[:n])]
