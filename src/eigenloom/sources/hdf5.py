"""Rows of a matrix in an HDF5 file, as ``Batches``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import DataError, StoreError


class Hdf5Rows:
    """The rows of a two-dimensional data set, float32 ``[b, d]``, read as they are needed."""

    def __init__(self, path: str | Path, dataset: str, rows: Any = None, columns: Any = None, batch_size: int = 8192):
        """Look at the data set; nothing stays open.

        Args:
            path: of the file.
            dataset: key of the data set, nested (``group/name``) or flat.
            rows: which rows, a slice; all by default.
            columns: which numbers of each row, likewise.
            batch_size: rows per batch.

        Raises:
            StoreError: no HDF5 file.
            DataError: no such data set (those there are, are listed), or not a matrix.
        """
        self._path, self._key, self._batch_size = Path(path), dataset, batch_size
        self._columns = columns or slice(None)
        try:
            with h5py.File(path) as file:
                found: list[str] = []
                file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
                if not isinstance(file.get(dataset), h5py.Dataset):
                    raise DataError(f"{path}: no data set is called `{dataset}`; there are: {', '.join(found)}")
                shape = file[dataset].shape
        except OSError as error:
            raise StoreError(f"{path}: is damaged or no HDF5 file ({error})") from None
        if len(shape) != 2:
            raise DataError(f"{path}: `{dataset}` has the shape {list(shape)}; rows are a matrix [n, d]")
        self._rows = np.arange(shape[0])[rows or slice(None)]
        self.n_rows, self.n_features = len(self._rows), len(range(shape[1])[self._columns])

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches in stored order."""
        return self._read(self._rows)

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield the rows in one random permutation."""
        return self._read(self._rows[torch.randperm(self.n_rows, generator=generator).numpy()[skip_rows:]])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct rows in random order.

        Raises:
            DataError: more rows are asked for than there are.
        """
        if n > self.n_rows:
            raise DataError(f"{n} distinct rows were asked for, but there are only {self.n_rows}")
        return torch.cat(list(self._read(self._rows[torch.randperm(self.n_rows, generator=generator).numpy()[:n]])))

    def _read(self, numbers: np.ndarray) -> Iterator[Tensor]:
        """Yield the rows of those numbers, batch by batch."""
        with h5py.File(self._path) as file:
            for start in range(0, len(numbers), self._batch_size):
                wanted = numbers[start : start + self._batch_size]
                ascending, places = np.unique(wanted, return_inverse=True)
                rows = file[self._key][ascending][places][:, self._columns]
                yield torch.from_numpy(np.ascontiguousarray(rows, np.float32))
