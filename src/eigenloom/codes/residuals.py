"""What Top-K codes leave out, for every K at once.

With orthonormal elements the squared error of keeping K entries is the part of the row outside their span plus the
energies of the entries that were dropped. Sorting the energies of a row once gives it for all K. The dropped tail is
summed, from its smallest entry up; total minus kept would cancel where the error is small.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.codes.selection import cache_blocks, keep_largest, largest, sorted_ascending

logger = logging.getLogger("eigenloom")
TOLERANCE = 1e-5
"""Largest entry of ``U U^T - I`` at which elements pass for orthonormal."""


@dataclass(frozen=True, eq=False)
class Tails:
    """How a basis with orthonormal elements turns code entries into energies.

    Fields: ``uniform`` (energies rank entries as their absolute values do), ``complete`` (the elements span the whole
    space, so that nothing lies outside).
    """

    basis: Basis
    uniform: bool
    complete: bool

    @classmethod
    def of(cls, basis: Basis, device: torch.device | str = "cpu") -> "Tails | None":
        """Check the elements; None for a basis that claims nothing, or claims it wrongly."""
        eye = torch.eye(basis.n_elements, device=device)
        energies = basis.code_energies(eye)
        if energies is None:
            return None
        weights = energies.diagonal()
        origin = basis.decode(torch.zeros_like(eye[:1]))
        # Steps far longer than the origin, so that subtracting it loses nothing.
        length = 16 * max(1.0, float(origin.abs().max()))
        steps = torch.where(weights > 0, length / weights.sqrt(), 0.0)
        directions = (basis.decode(torch.diag(steps)) - origin) / length
        expected = torch.diag((weights > 0).to(torch.float32))
        error = float((directions @ directions.T - expected).abs().max())
        if error > TOLERANCE:
            logger.warning("elements of %s are off orthonormal by %.1e: errors go through decode", basis.kind, error)
            return None
        complete = basis.n_elements == basis.n_features and bool((weights > 0).all())
        return cls(basis, uniform=bool((weights == weights[0]).all()), complete=complete)

    def ascending(self, z: Tensor) -> Tensor:
        """Energies ``[b, k]`` in the order in which Top-K would drop the entries of codes ``z [b, k]``."""
        energies = self.basis.code_energies(z)
        assert energies is not None
        if self.uniform:
            return sorted_ascending(energies)
        order = largest(z, z.shape[1])[1].flip(1)
        return energies.gather(1, order.to(torch.int64))

    def outside(self, x: Tensor, z: Tensor) -> Tensor:
        """Squared distance ``[b]`` float64 of rows ``x [b, d]`` with codes ``z`` to the span of the elements."""
        if self.complete:
            return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        return squared_norms(x - self.basis.decode(z))

    def column_sums(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sse [k + 1]`` and ``n_kept [k + 1]``, float64: squared error and non-zero entries over the rows.

        Entry K is for keeping K entries of every row.
        """
        k = z.shape[1]
        sums = torch.zeros(k + 1, dtype=torch.float64, device=z.device)
        n_kept = torch.zeros_like(sums)
        for block in cache_blocks(z):
            energies = self.ascending(block)
            sums[1:] += energies.sum(0, dtype=torch.float64)
            n_kept[1:] += (energies != 0).sum(0).flip(0)
        return sums.cumsum(0).flip(0) + self.outside(x, z).sum(), n_kept.cumsum(0)

    def row_errors(self, x: Tensor, z: Tensor, ks: Sequence[int]) -> Tensor:
        """Return ``[b, len(ks)]`` float32: squared error of each row when K entries are kept; ``ks`` rises."""
        k, dropped = z.shape[1], []
        for block in cache_blocks(z):
            energies, start, columns = self.ascending(block), 0, []
            tail = torch.zeros(len(block), dtype=torch.float64, device=z.device)
            for kept in reversed(ks):
                tail = tail + energies[:, start : k - kept].sum(1, dtype=torch.float64)
                start = k - kept
                columns.append(tail)
            dropped.append(torch.stack(columns[::-1], dim=1))
        return (torch.cat(dropped) + self.outside(x, z)[:, None]).to(torch.float32)


def row_errors(basis: Basis, tails: Tails | None, x: Tensor, z: Tensor, ks: Sequence[int]) -> Tensor:
    """Return ``|x - xhat|^2`` per row ``[b, len(ks)]`` float32, keeping K entries of the codes ``z``; ``ks`` rises.

    Through ``decode`` where there are no ``tails``.
    """
    if tails is not None:
        return tails.row_errors(x, z, ks)
    return torch.stack([squared_norms(x - basis.decode(keep_largest(z, k))) for k in ks], dim=1).to(torch.float32)


def squared_norms(x: Tensor) -> Tensor:
    """Return ``sum_j x_ij^2`` ``[b]`` float64 of float32 rows."""
    return torch.cat([block.square().sum(1, dtype=torch.float64) for block in cache_blocks(x)])
