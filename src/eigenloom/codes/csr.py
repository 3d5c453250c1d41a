"""Codes that somebody else wrote as one CSR matrix, such as ``token_acts.npz`` of saev's sparse autoencoders.

The file is what ``scipy.sparse.save_npz`` writes: a zip of five ``.npy`` members. It is streamed member by member and
never held whole; nothing in it can be an object, so nothing is unpickled.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import MismatchError, StoreError
from eigenloom.store.atomic import explained

BATCH_ROWS = 8192
BATCH_ENTRIES = 1 << 24
"""Bound on rows times the longest of them."""
SMALL_BYTES = 4096
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError)


class CsrCodes:
    """The rows of a CSR matrix as a ``CodeStream`` of layout ``sparse``; only the ends of rows are in memory.

    Attributes: ``n_rows``, ``n_features``, ``n_entries``.
    """

    layout = "sparse"

    def __init__(self, path: str | Path, n_rows: int):
        """Open the file of codes of ``n_rows`` rows, void ones included, in stored order, and check its outline.

        Raises:
            StoreError: the file is missing, damaged, no CSR matrix, or its parts contradict each other.
            MismatchError: it has another number of rows; both are named.
        """
        self.path = Path(path)
        with self._explained(), zipfile.ZipFile(self.path) as archive:
            kind = _whole(archive, "format", SMALL_BYTES).item()
            kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
            if kind != "csr":
                raise StoreError(f"{self.path}: is a {kind!r} matrix, where 'csr' is needed; write `codes.tocsr()`")
            shape = [int(n) for n in _whole(archive, "shape", SMALL_BYTES).reshape(-1)]
            if len(shape) != 2 or min(shape) < 1:
                raise StoreError(f"{self.path}: its shape {shape} is that of no matrix")
            if shape[0] != n_rows:
                raise MismatchError(
                    f"{self.path}: has {shape[0]} rows, but the recording has {n_rows}; codes of every row are needed"
                )
            self.n_rows, self.n_features = shape
            (n_entries,), _ = _outline(archive, "data", "fiu")
            (n_columns,), _ = _outline(archive, "indices", "iu")
            (n_ends,), _ = _outline(archive, "indptr", "iu")
            if n_ends != n_rows + 1 or n_columns != n_entries:
                raise StoreError(
                    f"{self.path}: {n_entries} values, {n_columns} columns, {n_ends} ends for {n_rows} rows"
                )
            self._ends = _whole(archive, "indptr", 1 << 62).astype(np.int64)
        lengths = np.diff(self._ends)
        if self._ends[0] != 0 or self._ends[-1] != n_entries or lengths.min() < 0 or lengths.max() > self.n_features:
            raise StoreError(
                f"{self.path}: the ends of its rows do not rise from 0 to {n_entries} by at most {self.n_features}"
            )
        self.n_entries = n_entries

    def __iter__(self) -> Iterator[CodeBatch]:
        """Yield the rows in batches."""
        with self._explained(), ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            values, value_type = _opened(stack, archive, "data")
            columns, column_type = _opened(stack, archive, "indices")
            for first, stop in self._cuts():
                n = int(self._ends[stop] - self._ends[first])
                yield self._batch(first, stop, _next(values, value_type, n), _next(columns, column_type, n))

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into batches of bounded size."""
        first = 0
        while first < self.n_rows:
            stop = min(first + BATCH_ROWS, self.n_rows)
            while stop - first > 1 and (stop - first) * np.diff(self._ends[first : stop + 1]).max() > BATCH_ENTRIES:
                stop = first + (stop - first) // 2
            yield first, stop
            first = stop

    def _batch(self, first: int, stop: int, values: NDArray[Any], columns: NDArray[Any]) -> CodeBatch:
        """Lay out rows of unequal length as one rectangle, filled up with zeros at columns that a row leaves free."""
        lengths = np.diff(self._ends[first : stop + 1])
        n, width = stop - first, max(int(lengths.max()), 1)
        rows = np.repeat(np.arange(n), lengths)
        columns = columns.astype(np.int64)
        if len(columns) and not 0 <= columns.min() <= columns.max() < self.n_features:
            raise StoreError(
                f"{self.path}: columns {columns.min()} to {columns.max()}, but there are {self.n_features}"
            )
        cells = np.sort(rows * self.n_features + columns)
        if (twice := np.flatnonzero(np.diff(cells) == 0)).size:
            row, column = divmod(int(cells[twice[0]]), self.n_features)
            raise StoreError(f"{self.path}: row {first + row} names column {column} twice; write `sum_duplicates()`")
        places = np.arange(len(rows)) - np.repeat(self._ends[first:stop] - self._ends[first], lengths)
        codes = np.zeros((n, width), dtype=np.float32)
        codes[rows, places] = values
        taken = np.zeros((n, width), dtype=bool)
        low = columns < width
        taken[rows[low], columns[low]] = True
        free = np.argsort(taken, axis=1, kind="stable")
        spare = np.maximum(np.arange(width) - lengths[:, None], 0)
        indices = np.take_along_axis(free, spare, axis=1)
        indices[rows, places] = columns
        return CodeBatch.sparse(torch.from_numpy(codes), torch.from_numpy(indices.astype(np.int32)), self.n_features)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what a broken file makes the readers raise into a sentence."""
        with explained(self.path):
            try:
                yield
            except (StoreError, MismatchError):
                raise
            except _BROKEN as error:
                raise StoreError(
                    f"{self.path}: is damaged, or not what scipy.sparse.save_npz writes ({error}); write it again"
                ) from None


def _outline(archive: zipfile.ZipFile, name: str, kinds: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of a vector, having compared them with the size of the member."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _header(file)
        expected = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    found = archive.getinfo(f"{name}.npy").file_size
    if dtype.kind not in kinds or len(shape) != 1 or found != expected:
        raise ValueError(f"{name} is {dtype} {list(shape)} in {found} bytes, {expected} expected")
    return shape, dtype


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the head of a ``.npy`` member; objects are refused."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds objects, which are never unpickled")
    return shape, dtype


def _whole(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """Read a small member."""
    if archive.getinfo(f"{name}.npy").file_size > most:
        raise ValueError(f"{name} is too large")
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _header(file)
        return _next(file, dtype, int(np.prod(shape, dtype=object))).reshape(shape)


def _opened(stack: ExitStack, archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], np.dtype]:
    """Open a member where its numbers begin."""
    file = stack.enter_context(archive.open(f"{name}.npy"))
    return file, _header(file)[1]


def _next(file: IO[bytes], dtype: np.dtype, n: int) -> NDArray[Any]:
    """Read the next ``n`` numbers."""
    data = file.read(n * dtype.itemsize)
    if len(data) != n * dtype.itemsize:
        raise EOFError(f"ends {n * dtype.itemsize - len(data)} bytes early")
    return np.frombuffer(data, dtype)
