"""Path B and every exact pass: sums over gathered columns, one product with three rows per feature.

The rows of a column that have no entry share one value of ``t``, so they enter in closed form; a dense column is one
without such rows.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from eigenloom.probes.rows import Columns

CELLS_PER_PIECE = 1 << 15  # entries x pairs whose float64 intermediates stay in the second-level cache


class ColumnSums:
    """The sums of the objective over gathered columns (see ``objective.Sums``); exact.

    Args:
        columns: values and classes.
        mean, scale: float64 ``[f]`` numpy, those of probe_train for the same columns.
        weights: row weights ``[c]`` of positives and of negatives, or None for ones.
        device: where the products run.
    """

    def __init__(
        self,
        columns: Columns,
        mean: Any,
        scale: Any,
        weights: tuple[Tensor, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ):
        """Keep references; nothing is copied before a pass."""
        self.columns, self.device, self.weights = columns, torch.device(device), weights
        self.mean, self.scale = mean, scale
        n_zero = columns.n_rows - np.diff(columns.offsets)
        self._t_zero = torch.from_numpy(-mean / scale).to(device)
        self._n_zero = torch.from_numpy(n_zero.astype(np.float64)).to(device)
        self._zeros: Tensor | None = None
        if weights is not None:
            zeros = np.stack([columns.zeros(j) for j in range(len(columns))]).astype(np.float64)
            self._zeros = torch.from_numpy(zeros).to(device)

    def derivatives(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[5, p]``: sums of omega times ``f, f t, s, s t, s t^2``."""
        total = torch.zeros((5, len(row)), dtype=torch.float64, device=self.device)
        for at, t, omega in self._pieces(row, label):
            powers = torch.stack([torch.ones_like(t), t, t * t])
            f = torch.addr(beta[at].expand(len(t), -1), t, u[at]).sigmoid_()
            s = torch.addcmul(f, f, f, value=-1)
            if omega is not None:
                f *= omega
                s *= omega
            total[:2, at] += powers[:2] @ f
            total[2:, at] += powers @ s
        t = self._t_zero[row]
        weight = self._zero_weight(row, label)
        f = torch.sigmoid(beta + u * t)
        s = weight * f * torch.sigmoid(-(beta + u * t))
        f = weight * f
        return total.add_(torch.stack([f, f * t, s, s * t, s * t * t]))

    def softplus(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[p]``: sums of omega times ``softplus``."""
        total = torch.zeros(len(row), dtype=torch.float64, device=self.device)
        for at, t, omega in self._pieces(row, label):
            loss = softplus(torch.addr(beta[at].expand(len(t), -1), t, u[at]), threshold=40.0)
            total[at] += loss.sum(0) if omega is None else (loss * omega).sum(0)
        at_zero = softplus(beta + u * self._t_zero[row], threshold=40.0)
        return total.add_(self._zero_weight(row, label) * at_zero)

    def _pieces(self, row: Tensor, label: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield, for each column asked for and each piece of it: the pairs, ``t [m]`` and row weights ``[m, pairs]``."""
        columns, lengths = torch.unique_consecutive(row, return_counts=True)
        ends = np.cumsum(lengths.cpu().numpy())
        for j, first, last in zip(columns.tolist(), ends - lengths.cpu().numpy(), ends, strict=True):
            at = slice(int(first), int(last))
            values, classes = self.columns.column(j)
            size = max(256, CELLS_PER_PIECE // int(last - first))
            for start in range(0, len(values), size):
                piece = torch.from_numpy(values[start : start + size]).to(self.device)
                t = piece.double().sub_(self.mean[j]).div_(self.scale[j])
                yield at, t, self._omega(classes[start : start + size], label[at])

    def _omega(self, classes: Any, label: Tensor) -> Tensor | None:
        """Row weights ``[m, pairs]`` of a piece."""
        if self.weights is None:
            return None
        positive, negative = self.weights[0][label], self.weights[1][label]
        same = torch.from_numpy(classes.astype(np.int64)).to(self.device)[:, None] == label
        return torch.where(same, positive, negative)

    def _zero_weight(self, row: Tensor, label: Tensor) -> Tensor:
        """Weight of the rows without an entry, per pair."""
        n_zero = self._n_zero[row]
        if self.weights is None or self._zeros is None:
            return n_zero
        positive, negative = self.weights[0][label], self.weights[1][label]
        return negative * n_zero + (positive - negative) * self._zeros[row, label]
