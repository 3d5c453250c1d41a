"""The probe's objective in centred and scaled coordinates, whatever the sums over rows come from.

With ``t = (z - m)/sigma``, ``beta = b + w m``, ``u = w sigma`` the logit is ``beta + u t``. Labels enter only through
``positives = sum omega y`` and ``moment = sum omega y t``, which are constants of a pair.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eigenloom.probes.newton import MAX_ITER, Solution, minimize

OBJECTIVES = ("scaled", "saev")


class Sums(Protocol):
    """Sums over the rows of one column; ``row`` (ascending) picks columns, ``label`` the class of each pair."""

    def derivatives(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[5, p]``: sums of omega times ``f, f t, s, s t, s t^2``, where ``f = sigmoid``, ``s = f(1-f)``."""
        ...

    def softplus(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[p]``: sums of omega times ``softplus(beta + u t)``."""
        ...


@dataclass(frozen=True, eq=False)
class Penalty:
    """``(l2/2) (slope u^2 + anchor (beta - tilt u - origin)^2)``; arrays ``[p]`` float64, ``anchor`` 0 or 1."""

    l2: float
    slope: Tensor
    anchor: float
    tilt: Tensor
    origin: Tensor

    @classmethod
    def of(cls, objective: str, l2: float, mean: Tensor, scale: Tensor, origin: Tensor) -> "Penalty":
        """Build it for pairs of features with ``mean [p]`` and ``scale [p]``; ``origin [p]`` is the prior logit.

        ``scaled`` penalizes ``(w sigma)^2``; ``saev`` penalizes ``w^2 + (b - origin)^2``.
        """
        if objective == "scaled":
            return cls(l2, torch.ones_like(scale), 0.0, torch.zeros_like(mean), origin)
        return cls(l2, scale**-2, 1.0, mean / scale, origin)


@dataclass(frozen=True, eq=False)
class LogisticPairs:
    """Pairs (column, class) of one objective; ``row`` must ascend. ``n`` is the sum of the row weights."""

    sums: Sums
    row: Tensor
    label: Tensor
    positives: Tensor
    moment: Tensor
    n: int
    penalty: Penalty

    def newton(self, index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and full Newton steps at ``x = (beta, u)``."""
        beta, u = x
        total = self.sums.derivatives(self.row[index], self.label[index], beta, u) / self.n
        p = self.penalty
        slope, tilt = p.slope[index], p.tilt[index]
        pull = p.anchor * (beta - tilt * u - p.origin[index])
        g0 = total[0] - self.positives[index] / self.n + p.l2 * pull
        g1 = total[1] - self.moment[index] / self.n + p.l2 * (slope * u - tilt * pull)
        h00 = total[2] + p.l2 * p.anchor
        h01 = total[3] - p.l2 * p.anchor * tilt
        h11 = total[4] + p.l2 * (slope + p.anchor * tilt * tilt)
        return torch.stack([g0, g1]), solve(g0, g1, h00, h01, h11)

    def value(self, index: Tensor, x: Tensor) -> Tensor:
        """Objectives, penalty included."""
        beta, u = x
        p = self.penalty
        pull = beta - p.tilt[index] * u - p.origin[index]
        return self.loss(index, x) + p.l2 / 2 * (p.slope[index] * u * u + p.anchor * pull * pull)

    def loss(self, index: Tensor, x: Tensor) -> Tensor:
        """Mean losses without the penalty."""
        beta, u = x
        total = self.sums.softplus(self.row[index], self.label[index], beta, u)
        return (total - beta * self.positives[index] - u * self.moment[index]) / self.n

    def fit(self, start: Tensor, max_iter: int = MAX_ITER) -> Solution:
        """Minimize from ``start [2, p]``."""
        return minimize(self, start, max_iter)


def solve(g0: Tensor, g1: Tensor, h00: Tensor, h01: Tensor, h11: Tensor) -> Tensor:
    """Return ``-H^-1 g`` as ``[2, p]``; where H is singular to rounding, the step of its diagonal."""
    determinant = h00 * h11 - h01 * h01
    singular = ~(determinant > 1e-14 * h00 * h11)
    step = torch.stack([h01 * g1 - h11 * g0, h01 * g0 - h00 * g1]) / determinant
    if bool(singular.any()):
        diagonal = torch.stack([-g0 / h00.clamp(min=1e-290), -g1 / h11.clamp(min=1e-290)])
        step = torch.where(singular, diagonal, step)
    return step.clamp(-1e12, 1e12)
