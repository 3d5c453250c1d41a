"""Read rows of one layer out of shards: one open file per shard, positioned reads into memory of the caller."""

import os
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import ConfigError, StoreError
from eigenloom.store.atomic import explained
from eigenloom.store.recording import ActivationStore

TOKENS = ("patch", "cls")
READ_AHEAD_BYTES = 4 << 20
SMALL_PIECE_BYTES = 256 << 10
MAX_STRIDE_PIECES = 8
MAX_OPEN_FILES = 64
ALIGNMENT = 64


class LayerReader:
    """The rows of one layer, numbered from 0 over the chosen shards; a context manager that holds open files.

    A *piece* is what one example has of the layer: ``P`` rows (1 in CLS mode) that lie together, the next
    example's a stride of ``L * T`` rows further on. Each piece is read singly. Where pieces are small and the
    gaps between them are not much larger, the kernel sees no sequence and would fetch every piece with a disk
    access of its own, so it is told the next 4 MiB in advance.
    """

    def __init__(
        self, store: ActivationStore, layer: int, tokens: str = "patch", shards: Sequence[int] | None = None
    ) -> None:
        """Find the layer and the shards; nothing is opened yet.

        Raises:
            ConfigError: the layer is not stored, ``tokens`` is unknown or not stored, a shard does not exist or
                is named twice.
        """
        if tokens not in TOKENS:
            raise ConfigError(f"tokens: {tokens!r} is unknown; use one of {', '.join(TOKENS)}")
        layout = store.layout
        if tokens == "cls" and not layout.cls_token:
            raise ConfigError(f"{store.directory}: no CLS token is stored (cls_token is false); use tokens: patch")
        self._store = store
        self._shards = sorted(range(len(store.shards)) if shards is None else shards)
        if not self._shards or len(set(self._shards)) < len(self._shards):
            raise ConfigError(f"shards: {self._shards} must name at least one shard, and none twice")
        if not 0 <= self._shards[0] <= self._shards[-1] < len(store.shards):
            raise ConfigError(f"shards: {self._shards} leave 0..{len(store.shards) - 1}, which is what is stored")
        self.rows_per_example = layout.content_tokens_per_example if tokens == "patch" else 1
        self.n_features = layout.d_model
        self.n_rows = sum(store.shards[shard].n_examples for shard in self._shards) * self.rows_per_example
        self.row_bytes = layout.d_model * 4
        skipped = int(layout.cls_token and tokens == "patch")
        self._offset = (store.layer_axis(layer) * layout.tokens_per_example + skipped) * self.row_bytes
        self._stride = layout.example_bytes
        self._rows_per_shard = layout.examples_per_shard * self.rows_per_example
        self._piece = self.rows_per_example * self.row_bytes
        gapped = self._piece < self._stride <= MAX_STRIDE_PIECES * self._piece
        self._hinted = gapped and self._piece < SMALL_PIECE_BYTES and hasattr(os, "posix_fadvise")
        self._announced: dict[int, tuple[int, int]] = {}
        self._files: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Return itself; files are opened when first read."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def position(self, row: int) -> tuple[int, int, int]:
        """Return shard number, example number in the whole recording, and content token of a row."""
        place, inside = divmod(row, self._rows_per_shard)
        shard = self._shards[place]
        example, token = divmod(inside, self.rows_per_example)
        return shard, self._store.shards[shard].first_example + example, token

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, float32 ``[n, D]`` and contiguous, with the rows from ``first`` on.

        Raises:
            StoreError: a file is gone, was cut since the store was opened, or cannot be read.
        """
        assert 0 <= first <= first + len(out) <= self.n_rows
        if len(out) == 0:
            return
        view = out.data.cast("B")
        done = 0
        while done < len(out):
            place, row = divmod(first + done, self._rows_per_shard)
            n_rows = min(len(out) - done, self._rows_per_shard - row)
            self._read_shard(self._shards[place], row, view[done * self.row_bytes : (done + n_rows) * self.row_bytes])
            done += n_rows
        if sys.byteorder == "big":
            out.byteswap(inplace=True)

    def _read_shard(self, shard: int, row: int, out: memoryview) -> None:
        """Fill bytes with rows of one shard, numbered from its own first."""
        path = self._store.directory / self._store.shards[shard].name
        with explained(path):
            file = self._open(shard, path)
            if self._stride == self._piece:
                read_at(file, path, row * self.row_bytes, out)
                return
            example, token = divmod(row, self.rows_per_example)
            start = example * self._stride + self._offset
            skipped = token * self.row_bytes
            done = 0
            while done < len(out):
                n_bytes = min(len(out) - done, self._piece - skipped)
                if self._hinted:
                    self._announce(shard, file, start)
                read_at(file, path, start + skipped, out[done : done + n_bytes])
                done += n_bytes
                start += self._stride
                skipped = 0

    def _open(self, shard: int, path: Path) -> int:
        """Return the open file of a shard; the one opened first is closed when there are too many."""
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_FILES:
                oldest = next(iter(self._files))
                os.close(self._files.pop(oldest))
                self._announced.pop(oldest, None)
            self._files[shard] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self._files[shard]

    def _announce(self, shard: int, file: int, start: int) -> None:
        """Tell the kernel what will be read next, unless it has been told or has it in memory."""
        first, stop = self._announced.get(shard, (0, 0))
        if not first <= start < stop:
            if not _in_memory(file, start):
                os.posix_fadvise(file, start, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            self._announced[shard] = (start, start + READ_AHEAD_BYTES)


class Buffers:
    """Matrices of one shape that are lent out as tensors and lent again once nobody holds them.

    Fresh memory costs a page fault per 4 KiB, as much time as half the read; memory that is still referenced by
    anyone is never touched again. A tensor keeps the array it was made from alive, and so do all its views. One
    object may serve several threads.
    """

    def __init__(self, n_rows: int, n_features: int) -> None:
        """Choose the shape ``[n_rows, n_features]``, float32."""
        self._shape = (n_rows, n_features)
        self._memory: list[np.ndarray] = []
        self._lent: list[weakref.ref[np.ndarray]] = []
        self._lock = threading.Lock()

    def take(self) -> tuple[Tensor, np.ndarray]:
        """Return a tensor nobody else holds, and an array over the same memory to fill it by."""
        with self._lock:
            free = (number for number, lent in enumerate(self._lent) if lent() is None)
            number = next(free, len(self._memory))
            if number == len(self._memory):
                self._memory.append(aligned(*self._shape))
                self._lent.append(weakref.ref(self._memory[number]))
            view = self._memory[number].view()
            self._lent[number] = weakref.ref(view)
            return torch.from_numpy(view), self._memory[number]


def aligned(n_rows: int, n_features: int) -> np.ndarray:
    """Return an uninitialised float32 matrix on a 64-byte boundary, so that sums over it do not vary with luck."""
    n_bytes = n_rows * n_features * 4
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(np.float32).reshape(n_rows, n_features)


def _in_memory(file: int, start: int) -> bool:
    """Say whether the byte at a position can be read without waiting; False where the system cannot tell."""
    try:
        return os.preadv(file, [bytearray(1)], start, os.RWF_NOWAIT) == 1
    except (AttributeError, OSError):
        return False


def read_at(file: int, path: Path, start: int, out: memoryview) -> None:
    """Fill bytes from a position of a file; a file that ends there is an error."""
    got = os.preadv(file, [out], start)
    while got < len(out):  # a read may be cut short by the kernel's limit of 2 GiB, or by the end of the file
        count = os.preadv(file, [out[got:]], start + got)
        if count == 0:
            raise StoreError(f"{path}: ends at byte {start + got}, {start + len(out)} expected; record it again")
        got += count
