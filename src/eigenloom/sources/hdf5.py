"""Rows of a matrix in an HDF5 file, as ``Batches``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eigenloom.errors import ConfigError
from eigenloom.sources.block_rows import BlockRows
from eigenloom.store.hdf5 import open_matrix
from eigenloom.store.hdf5_reading import MatrixReader

BATCH_BYTES = 32 << 20
Selection = slice | Sequence[int] | np.ndarray | None


class Hdf5Rows(BlockRows):
    """The rows of a two-dimensional data set, float16 to 64 or integer, either byte order: float32 ``[b, d]``.

    A number too large for float32 becomes an infinity, which fits refuse and name. Memory does not grow with the
    number of rows. The order of ``shuffled`` depends on the rows' number and length, and on the chunk rows of the
    file where whole chunks are read: blocks of the shuffle are then whole chunks.
    """

    def __init__(
        self,
        path: str | Path,
        dataset: str,
        rows: Selection = None,
        columns: Selection = None,
        batch_size: int = 8192,
        block_bytes: int = 4 << 20,
        pool_bytes: int = 256 << 20,
    ) -> None:
        """Look at the data set and choose what to deliver; nothing stays open.

        Args:
            path: of the file.
            dataset: key of the data set, nested (``dataset/arrays/flux/value``) or flat.
            rows: which rows, as a slice that steps forward, ascending numbers, or a mask; all by default.
            columns: which numbers of each row, likewise.
            batch_size: rows per batch, at most; fewer where rows are long, so that a batch has at most 32 MiB.
            block_bytes: of float32 rows that stay together when shuffling, at least.
            pool_bytes: of float32 rows that are permuted in memory.

        Raises:
            StoreError: the file is missing or no HDF5 file.
            DataError: no such data set, or not a matrix of numbers that lies in this file.
            ConfigError: rows or columns do not exist, do not ascend, or a size is not positive.
        """
        self._matrix = open_matrix(path, dataset)
        n_rows, n_columns = self._matrix.shape
        where = f"{path}: `{dataset}`"
        self._rows = chosen(rows, n_rows, f"{where}: rows")
        self._columns = None if columns is None else chosen(columns, n_columns, f"{where}: columns")
        n_features = n_columns if self._columns is None else len(self._columns)
        block_rows = -(-block_bytes // (n_features * 4))
        if self._matrix.offset is None:
            block_rows = -(-block_rows // self._matrix.chunk_rows) * self._matrix.chunk_rows
        batch_size = min(batch_size, max(1, BATCH_BYTES // (n_features * 4)))
        super().__init__(
            len(self._rows), n_features, batch_size=batch_size, block_rows=block_rows, pool_bytes=pool_bytes
        )

    def locate(self, row: int, feature: int) -> str:
        """Say where a number lies, for a message: file, data set, row and column as the file counts them, from 0."""
        column = feature if self._columns is None else int(self._columns[feature])
        return f"{self._matrix.path}: `{self._matrix.key}`, row {self._rows[row]}, column {column}"

    def _reader(self) -> MatrixReader:
        """Return a new reader; nothing is open before the first read."""
        return MatrixReader(self._matrix, self._rows, self._columns)


def chosen(selection: Selection, n: int, what: str) -> np.ndarray:
    """Turn a selection among ``n`` into strictly ascending numbers, int64.

    Raises:
        ConfigError: nothing is chosen, a number is outside ``0 .. n-1`` or does not ascend, a mask has another length.
    """
    if selection is None or isinstance(selection, slice):
        numbers = np.arange(n)[selection if selection is not None else slice(None)]
    else:
        numbers = np.asarray(selection)
        if numbers.dtype == bool:
            if numbers.shape != (n,):
                raise ConfigError(f"{what}: a mask of shape {list(numbers.shape)} was given for {n}")
            numbers = np.flatnonzero(numbers)
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu":
        raise ConfigError(f"{what}: at least one must be chosen, by whole numbers, a slice or a mask")
    numbers = numbers.astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= n:
        raise ConfigError(f"{what}: {numbers.min()} to {numbers.max()} leave 0..{n - 1}, which is what there is")
    if (np.diff(numbers) <= 0).any():
        raise ConfigError(f"{what}: the numbers must ascend, each once; sort them")
    return numbers
