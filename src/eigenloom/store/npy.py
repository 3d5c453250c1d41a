"""Large tensors as plain ``.npy`` files: written front to back, resumable, read through the page cache.

``numpy.load(path, mmap_mode="r")`` opens them; nothing here ever holds one whole.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.store.atomic import atomic_file, explained

_PIECE = 1 << 22
_MAGIC_BYTES = 10


class NpyWriter:
    """A float32 array ``[n, ...]`` that grows row by row in ``.NAME.partial`` and becomes ``NAME`` at the end."""

    def __init__(self, path: str | Path, shape: tuple[int, ...]):
        """Name the file and its final shape; nothing is opened before ``begin``."""
        self.path, self.shape = Path(path), shape
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._header = _header(shape)
        self._row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
        self._file: BinaryIO | None = None

    def holds(self, n_rows: int) -> bool:
        """Say whether an earlier process left this file with at least so many rows."""
        wanted = len(self._header) + n_rows * self._row_bytes
        if not self._partial.is_file() or self._partial.stat().st_size < wanted:
            return False
        with self._partial.open("rb") as file:
            return file.read(len(self._header)) == self._header

    def begin(self, n_rows: int = 0) -> None:
        """Open for writing after the first ``n_rows`` rows, which must be there.

        Raises:
            StoreError: the folder cannot be written.
        """
        with explained(self._partial):
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            file = self._file = self._partial.open("r+b" if n_rows else "w+b")
            if not n_rows:
                file.write(self._header)
            file.truncate(len(self._header) + n_rows * self._row_bytes)
            file.seek(0, os.SEEK_END)

    def append(self, rows: Tensor) -> None:
        """Write the next rows ``[b, ...]``.

        Raises:
            StoreError: the disk is full.
        """
        with explained(self._partial):
            self._open.write(np.ascontiguousarray(rows.detach().cpu().numpy(), dtype="<f4").data)

    def read(self, first: int, count: int) -> Tensor:
        """Return rows that were written, ``[count, ...]``; the next ``append`` still goes to the end."""
        data = bytearray(count * self._row_bytes)
        with explained(self._partial):
            self._open.seek(len(self._header) + first * self._row_bytes)
            if self._open.readinto(data) != len(data):  # type: ignore[attr-defined]  # of buffered files
                raise StoreError(f"{self._partial}: is shorter than what was written to it; run the same command again")
            self._open.seek(0, os.SEEK_END)
        return torch.frombuffer(data, dtype=torch.float32).view(count, *self.shape[1:])

    def sync(self) -> None:
        """Make what was written durable, before a snapshot counts on it."""
        with explained(self._partial):
            self._open.flush()
            os.fsync(self._open.fileno())

    def state(self) -> dict[str, Tensor]:
        """Return what a snapshot has to carry: nothing, the rows are in the file."""
        return {}

    def publish(self, rotation: Tensor | None = None) -> Tensor:
        """Give the file its name, every row times ``rotation [k, k]`` if given; return it memory-mapped."""
        self.sync()
        if rotation is None:
            with explained(self.path):
                os.replace(self._partial, self.path)
        else:
            piece = max(1, _PIECE // self._row_bytes)
            with atomic_file(self.path.with_name(f".{self.path.name}.rotated")) as file:
                file.write(self._header)
                for first in range(0, self.shape[0], piece):
                    rows = self.read(first, min(piece, self.shape[0] - first))
                    file.write((rows.double() @ rotation).float().numpy().data)
            os.replace(self.path.with_name(f".{self.path.name}.rotated"), self.path)
            self._partial.unlink()
        self.close()
        return map_npy(self.path)

    def close(self) -> None:
        """Let go of the file, which stays for another process if it was not published."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _open(self) -> BinaryIO:
        """The file between ``begin`` and ``close``."""
        assert self._file is not None, "begin comes first"
        return self._file


class MemoryRows:
    """The same in memory: rows appended to a tensor ``[n, ...]``, which is what ``publish`` returns."""

    def __init__(self, shape: tuple[int, ...]):
        """Reserve the tensor."""
        self.shape, self._rows, self._done = shape, torch.zeros(shape), 0

    def holds(self, n_rows: int) -> bool:
        """A snapshot carries the rows itself."""
        del n_rows
        return True

    def begin(self, n_rows: int = 0) -> None:
        """Continue after the first ``n_rows`` rows."""
        self._done = n_rows

    def append(self, rows: Tensor) -> None:
        """Keep the next rows ``[b, ...]``."""
        self._rows[self._done : self._done + len(rows)] = rows
        self._done += len(rows)

    def read(self, first: int, count: int) -> Tensor:
        """Return rows that were appended."""
        return self._rows[first : first + count]

    def sync(self) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Tensor]:
        """Return what a snapshot has to carry."""
        return {"rows": self._rows}

    def close(self) -> None:
        """Nothing to do."""

    def publish(self, rotation: Tensor | None = None) -> Tensor:
        """Return the tensor, every row times ``rotation [k, k]`` if given."""
        return self._rows if rotation is None else (self._rows.double() @ rotation).float()


def map_npy(path: str | Path) -> Tensor:
    """Map a ``.npy`` file: a tensor whose pages are read when touched, and whose changes never reach the file.

    Raises:
        StoreError: it is missing, or no plain array of numbers in C order.
    """
    path = Path(path)
    with explained(path):
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise StoreError(f"{path}: is not a .npy array ({error}); run the rule that makes it again") from None
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise StoreError(f"{path}: is not one .npy array in C order; run the rule that makes it again")
    return torch.from_numpy(np.asarray(array))


def keep_npy(path: str | Path, tensor: Tensor) -> str:
    """Make ``path`` hold a float32 tensor and return its sha256; a file that already holds these bytes is left."""
    path = Path(path)
    if path.is_file() and path.stat().st_size == len(_header(tuple(tensor.shape))) + 4 * tensor.numel():
        hasher, same = hashlib.sha256(), True
        with path.open("rb") as file:
            for part in _pieces(tensor):
                found = file.read(len(part))
                hasher.update(found)
                same = same and found == part
        if same:
            return hasher.hexdigest()
    with atomic_file(path) as out:
        for part in _pieces(tensor):
            out.write(part)
    return out.sha256


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    """Yield the bytes of the file: header, then rows."""
    yield _header(tuple(tensor.shape))
    for rows in tensor.split(max(1, _PIECE // (4 * max(1, tensor[0].numel())))):
        yield rows.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def _header(shape: tuple[int, ...]) -> bytes:
    """Return what a version 1.0 ``.npy`` file of little-endian float32 in C order begins with."""
    words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}"
    length = -(-(_MAGIC_BYTES + len(words) + 1) // 64) * 64 - _MAGIC_BYTES
    text = words.ljust(length - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.encode("latin1")
