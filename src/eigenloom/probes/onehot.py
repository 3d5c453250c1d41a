"""Path A: one-hot codes, where a pair is a 2 x 2 table and its cost does not depend on the number of rows."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from eigenloom.probes.newton import Solution, minimize
from eigenloom.probes.problem import CONVERGED, MAX_ITER, PairTable, Problem
from eigenloom.probes.rows import LabelledRows

PAIRS_PER_BLOCK = 1 << 14  # keeps a block's dozen float64 arrays in the second-level cache


@dataclass(frozen=True, eq=False)
class Tables:
    """Weighted counts of ``p`` tables, float64 ``[p]``: positives and negatives, without (0) and with (1) the feature.

    ``coupling`` is rho, the curvature of the penalty along ``z1 - z0``; ``anchor`` that along ``z0``, whose
    ``origin`` is the prior logit. Unknowns are ``z0 = b`` and ``z1 = b + w``: in these nothing cancels.
    """

    positive0: Tensor
    negative0: Tensor
    positive1: Tensor
    negative1: Tensor
    n: int
    coupling: Tensor
    anchor: float
    origin: Tensor

    def newton(self, index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and full Newton steps at ``x = (z0, z1)``."""
        (p0, q0, p1, q1, rho), z0, z1 = self._at(index), x[0], x[1]
        up0, up1, down0, down1 = (torch.sigmoid(v) for v in (z0, z1, -z0, -z1))
        pull = rho * (z1 - z0)
        g0 = (q0 * up0 - p0 * down0) / self.n - pull
        g1 = (q1 * up1 - p1 * down1) / self.n + pull
        a = (p0 + q0) * (up0 * down0) / self.n
        c = (p1 + q1) * (up1 * down1) / self.n
        if self.anchor:
            g0 += self.anchor * (z0 - self.origin[index])
            a += self.anchor
        determinant = a * c + rho * (a + c)
        total = rho * (g0 + g1)
        step = torch.stack([c * g0 + total, a * g1 + total]).div_(-determinant)
        return torch.stack([g0, g1]), step.nan_to_num_(0.0).clamp_(-1e12, 1e12)

    def value(self, index: Tensor, x: Tensor) -> Tensor:
        """Objectives, penalty included."""
        rho = self.coupling[index]
        pull = self.anchor / 2 * (x[0] - self.origin[index]) ** 2
        return self.loss(index, x) + rho / 2 * (x[1] - x[0]) ** 2 + pull

    def loss(self, index: Tensor, x: Tensor) -> Tensor:
        """Mean losses without the penalty."""
        p0, q0, p1, q1, _ = self._at(index)
        losses = [weight * softplus(v, threshold=40.0) for weight, v in zip((q0, p0, q1, p1), _both(x), strict=True)]
        return (losses[0] + losses[1] + losses[2] + losses[3]) / self.n

    def start(self) -> Tensor:
        """Return a first point ``[2, p]``: smoothed log odds, and for one-sided cells the balance with the penalty.

        A cell without positives (or without negatives) has its logit where ``weight f(z)/n = rho |z1 - z0|``; from
        the smoothed log odds Newton would creep there by one unit a step.
        """
        z = torch.stack([
            torch.log((self.positive0 + 0.5) / (self.negative0 + 0.5)),
            torch.log((self.positive1 + 0.5) / (self.negative1 + 0.5)),
        ])  # fmt: skip
        cells = ((self.positive0, self.negative0), (self.positive1, self.negative1))
        sides = [(cell, torch.nonzero((p == 0) | (q == 0))[:, 0]) for cell, (p, q) in enumerate(cells)]
        for _ in range(4):
            for cell, at in sides:
                positive, negative = (weight[at] for weight in cells[cell])
                side = torch.where(positive == 0, -1.0, 1.0).to(z.dtype)
                gap = (side * (z[cell, at] - z[1 - cell, at])).clamp(min=0.5)
                odds = (positive + negative) / (self.n * self.coupling[at] * gap)
                z[cell, at] = torch.where(odds > 2, side * torch.log((odds - 1).clamp(min=1.0)), z[cell, at])
        return z

    def fit(self) -> tuple[Solution, Tensor]:
        """Return the minimizers ``(z0, z1)`` and the losses without the penalty."""
        solution = minimize(self, self.start())
        return solution, self.loss(torch.arange(solution.x.shape[1], device=solution.x.device), solution.x)

    def _at(self, index: Tensor) -> tuple[Tensor, ...]:
        """Pick weights and coupling; all of them without a copy."""
        arrays = (self.positive0, self.negative0, self.positive1, self.negative1, self.coupling)
        return arrays if len(index) == len(self.coupling) else tuple(a[index] for a in arrays)


def make_tables(
    n11: Tensor,
    n1: Tensor,
    totals: Tensor,
    n: int,
    *,
    l2: float = 0.0,
    objective: str = "scaled",
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tables:
    """Build the tables of ``f`` features and ``c`` classes, flattened feature-major to ``p = f c``.

    Args:
        n11: ``[f, c]`` float64, rows of class c that have feature f.
        n1: ``[f]`` (or ``[f, c]``) float64, rows that have feature f.
        totals: ``[c]`` float64, rows of class c.
        n: rows.
        l2: ridge.
        objective: ``scaled`` or ``saev``.
        weights: row weights ``[c]`` of positives and of negatives.
    """
    n1 = (n1[:, None] if n1.ndim == 1 else n1).expand_as(n11)
    p1, q1, p0 = n11, n1 - n11, totals - n11
    q0 = (n - n1) - p0
    origin = torch.log(totals / (n - totals)).expand_as(n11)
    if weights is not None:
        p0, p1, q0, q1 = weights[0] * p0, weights[0] * p1, weights[1] * q0, weights[1] * q1
        origin = torch.zeros_like(origin)
    coupling = l2 * (n1 / n) * ((n - n1) / n) if objective == "scaled" else torch.full_like(n1, l2)
    anchor = 0.0 if objective == "scaled" else l2
    p0, q0, p1, q1, coupling, origin = (part.reshape(-1) for part in (p0, q0, p1, q1, coupling, origin))
    return Tables(p0, q0, p1, q1, n, coupling, anchor, origin)


def fit_onehot(problem: Problem, train_counts: NDArray[np.int64], val_counts: NDArray[np.int64]) -> PairTable:
    """Fit all pairs of one-hot features from ``[k, c]`` rows of each class that have each feature, in both splits."""
    table = PairTable.for_problem(problem)
    n, evaluated = problem.train.n_rows, problem.evaluated
    n1 = train_counts.sum(1)
    dead = (n1 == 0) | (n1 == n)
    alive = np.flatnonzero(~dead)
    size = max(1, PAIRS_PER_BLOCK // len(evaluated))
    for first in range(0, len(alive), size):
        block = alive[first : first + size]
        cells = np.ix_(block, evaluated)
        fitted = _tables_of(problem, problem.train, train_counts[cells], n1[block])
        solution, losses = fitted.fit()
        shape = (len(block), len(evaluated))
        z0, z1 = (z.cpu().numpy().reshape(shape) for z in solution.x)
        table.b[cells], table.w[cells] = z0, z1 - z0
        table.train_loss[cells] = losses.cpu().numpy().reshape(shape)
        table.steps[cells] = solution.steps.cpu().numpy().reshape(shape)
        table.status[cells] = np.where(solution.converged.cpu().numpy().reshape(shape), CONVERGED, MAX_ITER)
        seen = _tables_of(problem, problem.val, val_counts[cells], val_counts[block].sum(1))
        table.val_loss[cells] = (
            seen.loss(torch.arange(z0.size, device=solution.x.device), solution.x).cpu().reshape(shape)
        )
    table.mark_dead(problem, dead)
    return table


def ceiling_losses(
    problem: Problem, train_counts: NDArray[np.int64], val_counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return train and val losses ``[e]`` that the sizes of the features allow if each held one class only.

    With ``n11 = min(n1, N)`` the loss falls while the feature fits into the class and rises once it overflows, so
    the two features nearest in size decide.
    """
    n, evaluated = problem.train.n_rows, problem.evaluated
    n1 = train_counts.sum(1)
    best = np.full((2, len(evaluated)), np.inf)
    for e, c in enumerate(evaluated):
        total, val_total = problem.train.class_counts[c], problem.val.class_counts[c]
        usable = np.flatnonzero((n1 > 0) & (n1 < n))
        inside, outside = usable[n1[usable] <= total], usable[n1[usable] >= total]
        nearest = [
            *inside[np.argsort(-n1[inside], kind="stable")[:1]],
            *outside[np.argsort(n1[outside], kind="stable")[:1]],
        ]
        for j in nearest:
            sizes = (np.array([n1[j]]), np.array([val_counts[j].sum()]))
            tables = [
                _tables_of(problem, rows, np.minimum(size, most)[:, None], size, np.array([c]))
                for rows, size, most in zip((problem.train, problem.val), sizes, (total, val_total), strict=True)
            ]
            solution, losses = tables[0].fit()
            if float(losses[0]) < best[0, e]:
                best[:, e] = float(losses[0]), float(tables[1].loss(torch.arange(1), solution.x)[0])
    return best[0], best[1]


def _tables_of(
    problem: Problem, rows: LabelledRows, n11: NDArray, n1: NDArray, classes: NDArray[np.int64] | None = None
) -> Tables:
    """Make the tables of some features in one split."""
    classes = problem.evaluated if classes is None else classes
    settings, weights = problem.settings, problem.weights(rows)
    sides, sizes, totals = (
        torch.from_numpy(a.astype(np.float64)).to(settings.device) for a in (n11, n1, rows.class_counts[classes])
    )
    picked = None if weights is None else (weights[0][classes], weights[1][classes])
    return make_tables(sides, sizes, totals, rows.n_rows, l2=settings.l2, objective=settings.objective, weights=picked)


def _both(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``z0, -z0, z1, -z1``."""
    return x[0], -x[0], x[1], -x[1]
