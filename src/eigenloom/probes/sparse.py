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
ENTRIES_PER_BLOCK = 1 << 14


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
        self._logits, self._spare = torch.empty((2, CELLS_PER_PIECE), dtype=torch.float64, device=device)
        self._zeros: Tensor | None = None
        if weights is not None:
            zeros = np.stack([columns.zeros(j) for j in range(len(columns))]).astype(np.float64)
            self._zeros = torch.from_numpy(zeros).to(device)

    def derivatives(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[5, p]``: sums of omega times ``f, f t, s, s t, s t^2``."""
        total = torch.zeros((5, len(row)), dtype=torch.float64, device=self.device)
        for at, powers, logits, omega in self._pieces(row, label, torch.stack([beta, u])):
            f = logits.sigmoid_()
            s = torch.addcmul(f, f, f, value=-1, out=self._spare[: f.numel()].view(f.shape))
            if omega is not None:
                f *= omega
                s *= omega
            total[:2, at].addmm_(powers[:2], f)
            total[2:, at].addmm_(powers, s)
        t = self._t_zero[row]
        weight = self._zero_weight(row, label)
        f = torch.sigmoid(beta + u * t)
        s = weight * f * torch.sigmoid(-(beta + u * t))
        f = weight * f
        return total.add_(torch.stack([f, f * t, s, s * t, s * t * t]))

    def softplus(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[p]``: sums of omega times ``softplus``."""
        total = torch.zeros(len(row), dtype=torch.float64, device=self.device)
        for at, _, logits, omega in self._pieces(row, label, torch.stack([beta, u])):
            loss = softplus(logits, threshold=40.0)
            total[at] += loss.sum(0) if omega is None else (loss * omega).sum(0)
        at_zero = softplus(beta + u * self._t_zero[row], threshold=40.0)
        return total.add_(self._zero_weight(row, label) * at_zero)

    def _pieces(
        self, row: Tensor, label: Tensor, parameters: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Yield the pairs, ``1, t, t^2 [3, m]``, logits and row weights ``[m, pairs]`` of each piece of each column.

        The logits lie in a buffer that the next piece overwrites.
        """
        columns, lengths = torch.unique_consecutive(row, return_counts=True)
        ends = np.cumsum(lengths.cpu().numpy())
        for j, first, last in zip(columns.tolist(), ends - lengths.cpu().numpy(), ends, strict=True):
            at = slice(int(first), int(last))
            values, classes = self.columns.column(j)
            n_pairs = int(last - first)
            size = max(1, CELLS_PER_PIECE // n_pairs)
            if n_pairs > CELLS_PER_PIECE:
                self._logits, self._spare = (torch.empty_like(self._logits).resize_(n_pairs) for _ in range(2))
            for outer in range(0, len(values), ENTRIES_PER_BLOCK):
                block = torch.from_numpy(values[outer : outer + ENTRIES_PER_BLOCK]).to(self.device)
                powers = torch.ones((3, len(block)), dtype=torch.float64, device=self.device)
                powers[1] = block.double().sub_(self.mean[j]).div_(self.scale[j])
                torch.mul(powers[1], powers[1], out=powers[2])
                for start in range(0, len(block), size):
                    piece = powers[:, start : start + size]
                    logits = self._logits[: piece.shape[1] * n_pairs].view(-1, n_pairs)
                    torch.mm(piece[:2].T, parameters[:, at], out=logits)
                    where = slice(outer + start, outer + start + piece.shape[1])
                    yield at, piece, logits, self._omega(classes[where], label[at])

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
