"""Rows in memory: the plainest ``Batches`` and ``ColumnBlocks``, against which every other is tested."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import DataError


class ArrayRows:
    """The rows of a 2-D tensor or array, float of any width or integer, delivered as float32."""

    def __init__(self, rows: Tensor | np.ndarray, batch_size: int = 8192):
        """Keep a reference to ``rows`` ``[n, d]``.

        Raises:
            DataError: not two-dimensional, or without a row or a column.
        """
        tensor = torch.as_tensor(rows)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise DataError(f"rows must be a matrix with at least one row and one column, not {tuple(tensor.shape)}")
        self._rows = tensor
        self._batch_size = batch_size
        self.n_rows, self.n_features = tensor.shape

    def __iter__(self) -> Iterator[Tensor]:
        """Yield slices in order."""
        return (batch.to(torch.float32) for batch in self._rows.split(self._batch_size))

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield the rows in one random permutation."""
        order = torch.randperm(self.n_rows, generator=generator)[skip_rows:]
        return (self._rows[ids].to(torch.float32) for ids in order.split(self._batch_size))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct rows in random order.

        Raises:
            DataError: more rows are asked for than there are.
        """
        if n > self.n_rows:
            raise DataError(f"{n} distinct rows were asked for, but there are only {self.n_rows}")
        return self._rows[torch.randperm(self.n_rows, generator=generator)[:n]].to(torch.float32)

    def column_blocks(self, size: int) -> Iterator[Tensor]:
        """Yield ranges of ``size`` columns ``[n, c]`` in order."""
        return (block.to(torch.float32) for block in self._rows.split(size, dim=1))
