"""Read rows of an HDF5 matrix: at their offset in the file where they lie plain, else whole chunks at a time."""

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import h5py
import numpy as np

from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained
from eigenloom.store.hdf5 import Matrix, find_dataset, open_hdf5
from eigenloom.store.reading import read_at


class MatrixReader:
    """Rows of a matrix by number, as float32; a context manager that holds the open file.

    ``rows`` are the row numbers to deliver, strictly ascending (all by default), and ``columns`` which numbers of
    each. The file is opened at the first read, so that no handle crosses a fork. What lies contiguous in the file is
    read at its offset, without HDF5; else whole chunks are, each once while rows are read in ascending order.
    """

    def __init__(self, matrix: Matrix, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> None:
        """Choose what to read; nothing is opened yet."""
        self._matrix = matrix
        self._rows = np.arange(matrix.shape[0]) if rows is None else rows
        self._columns: slice | np.ndarray = slice(None) if columns is None else columns
        if columns is not None and columns[-1] - columns[0] == len(columns) - 1:
            self._columns = slice(columns[0], columns[-1] + 1)  # a view where numbers are neighbours
        self._plain = matrix.offset is not None and matrix.dtype == np.float32 and columns is None
        self._open = ExitStack()
        self._file: int | None = None
        self._dataset: h5py.Dataset | None = None
        self._held = (0, 0, np.empty((0, matrix.shape[1]), matrix.dtype))
        self._bytes = bytearray()

    def __enter__(self) -> Self:
        """Return itself; the file is opened when first read."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._open.close()
        self._file = self._dataset = None

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, float32 ``[n, d]``, with the chosen rows from number ``first`` on.

        Raises:
            StoreError: the file is gone, was cut short, or a chunk cannot be read.
        """
        with explained(self._matrix.path), np.errstate(over="ignore"):  # consumers refuse and name an infinity
            ids = self._rows[first : first + len(out)]
            done = 0
            if self._plain and len(ids) and ids[-1] - ids[0] == len(ids) - 1:
                self._fill(int(ids[0]), out.data.cast("B"))
                return
            while done < len(ids):
                start, stop, values = self._span(int(ids[done]), int(ids[-1]) + 1)
                end = int(np.searchsorted(ids, stop))
                wanted = ids[done:end] - start
                neighbours = wanted[-1] - wanted[0] == end - done - 1
                values = values[wanted[0] : wanted[-1] + 1] if neighbours else values[wanted]
                out[done:end] = values[:, self._columns]
                done = end

    def _span(self, row: int, stop: int) -> tuple[int, int, np.ndarray]:
        """Return ``(first, stop, values)`` of a span of consecutive rows that holds ``row``."""
        matrix = self._matrix
        if matrix.offset is not None:
            stop = min(stop, row + matrix.span)
            return row, stop, self._at_offset(row, stop)
        if not self._held[0] <= row < self._held[1]:
            first = row // matrix.span * matrix.span
            stop = min(first + matrix.span, matrix.shape[0])
            self._held = (first, stop, self._through_hdf5(first, stop))
        return self._held

    def _at_offset(self, first: int, stop: int) -> np.ndarray:
        """Read consecutive rows where they lie in the file."""
        matrix = self._matrix
        if not self._bytes:
            self._bytes = bytearray(min(matrix.span, matrix.shape[0]) * matrix.row_bytes)
        view = memoryview(self._bytes)[: (stop - first) * matrix.row_bytes]
        self._fill(first, view)
        return np.frombuffer(view, matrix.dtype).reshape(stop - first, matrix.shape[1])

    def _fill(self, first: int, view: memoryview) -> None:
        """Fill bytes with what lies in the file from a row on."""
        matrix = self._matrix
        assert matrix.offset is not None
        if self._file is None:
            self._file = os.open(matrix.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self._open.callback(os.close, self._file)
        read_at(self._file, matrix.path, matrix.offset + first * matrix.row_bytes, view)

    def _through_hdf5(self, first: int, stop: int) -> np.ndarray:
        """Read consecutive rows, whole chunks, into memory that is used again."""
        matrix = self._matrix
        if self._dataset is None:
            file = self._open.enter_context(open_hdf5(matrix.path, rdcc_nbytes=0))  # every chunk is read once
            self._dataset = find_dataset(file, matrix.path, matrix.key)
            self._bytes = bytearray(min(matrix.span, matrix.shape[0]) * matrix.row_bytes)
        view = memoryview(self._bytes)[: (stop - first) * matrix.row_bytes]
        values = np.frombuffer(view, matrix.dtype).reshape(stop - first, matrix.shape[1])
        try:
            self._dataset.read_direct(values, np.s_[first:stop])
        except OSError as error:
            raise StoreError(
                f"{matrix.path}: rows {first} to {stop - 1} of `{matrix.key}` cannot be read ({error}); copy the file "
                "again"
            ) from None
        return values
