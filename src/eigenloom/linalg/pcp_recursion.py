"""The recursion behind ``pcp``, written so that one dense array is its whole state.

Inexact augmented Lagrangian (Lin, Chen & Ma 2010) for ``min ||L||_* + lambda ||S||_1 + sum N^2 / (2 v)`` subject to
``X = L + S + N``. After an iteration with penalty mu, from ``T = X - L + Y_before / mu`` alone follow

    c = clip(T, +-(lambda/mu + lambda v)),   e = c / (1 + mu v),
    S = T - c,   Y = mu e,   N = v Y = c - e,

and the argument of the next thresholding is ``X - S - N + Y/mu' = X - T + (1 + mu/mu') e``. Where nothing is
observed, ``v`` is infinite and X is taken as 0: then ``e = 0``, ``S = 0`` and ``N = T``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_store import Panel
from eigenloom.linalg.svt import Factors

Number = float | Tensor


@dataclass(frozen=True)
class Blocks:
    """A matrix of the problem's shape, its blocks formed anew at every walk."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    walk: Callable[[], Iterator[tuple[slice, Tensor]]]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Walk."""
        return self.walk()


@dataclass(frozen=True)
class Residuals:
    """What an iteration left: Frobenius norms in the units of X, and the entries of S.

    ``primal`` is ``||X - L - S - N||``, ``change`` is ``||(S + N) - (S + N)_before||``, ``multiplier`` is ``||Y||``.
    """

    primal: float
    change: float
    multiplier: float
    nnz: int


class Recursion:
    """T, the penalty it was made with, and everything that follows from them."""

    def __init__(self, problem: Problem, panel: Panel, mu: float):
        """Take a measured problem; T is set by ``start`` or by whoever restored the panel."""
        self.problem, self.panel, self.mu = problem, panel, mu
        self._room = [problem.buffer() for _ in range(3)]

    def start(self, size: float) -> None:
        """Set T so that ``Y = X / size`` where all is observed and exact; see ``initial_multiplier``."""
        for rows, x, _ in self.problem.blocks():
            self.panel.write(rows, x / (size * self.mu))
        self.panel.turn()

    def data(self) -> Blocks:
        """Return X, 0 where it is not observed."""

        def walk() -> Iterator[tuple[slice, Tensor]]:
            for rows, x, _ in self.problem.blocks():
                yield rows, self._room[0][: len(x)].copy_(x)

        return self._blocks(walk)

    def argument(self, mu: float) -> Blocks:
        """Return the matrix whose thresholding at ``1/mu`` is the next L."""

        def walk() -> Iterator[tuple[slice, Tensor]]:
            factor = 1 + self.mu / mu
            for rows, x, v in self.problem.blocks():
                t = self.panel.read(rows)
                e, out = (room[: len(t)] for room in self._room[:2])
                self._clip(t, v, self.mu, e)
                yield rows, torch.sub(x, t, out=out).add_(e, alpha=factor)

        return self._blocks(walk)

    def multiplier(self) -> Blocks:
        """Return Y."""

        def walk() -> Iterator[tuple[slice, Tensor]]:
            for rows, _, v in self.problem.blocks():
                t = self.panel.read(rows)
                yield rows, self._clip(t, v, self.mu, self._room[0][: len(t)]).mul_(self.mu)

        return self._blocks(walk)

    def update(self, low_rank: Factors, mu: float) -> Residuals:
        """Go from T to the next one, given the next L and the penalty it was thresholded with."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.problem.device)
        ratio, right = self.mu / mu, low_rank.right.T.contiguous()
        for rows, x, v in self.problem.blocks():
            t = self.panel.read(rows)
            before, kept, now = (room[: len(t)] for room in self._room)
            self._clip(t, v, self.mu, before)
            torch.sub(t, before, out=kept)
            torch.add(x, before, alpha=ratio, out=t).addmm_(low_rank.left[rows], right, alpha=-1)
            self._clip(t, v, mu, now)
            kept.add_(now).sub_(t)
            sums[1] += _square(kept)
            sums[2] += _square(now)
            now.sub_(before, alpha=ratio)
            sums[0] += _square(now)
            sums[3] += self._count(t, v, mu, kept)
            self.panel.write(rows, t)
        self.panel.turn()
        self.mu = mu
        primal, change, multiplier = sums[:3].sqrt().tolist()
        return Residuals(primal, change, mu * multiplier, int(sums[3]))

    def parts(self, low_rank: Factors) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, L and S of the state, block by block; valid until the next."""
        right = low_rank.right.T.contiguous()
        for rows, _, v in self.problem.blocks():
            t = self.panel.read(rows)
            sparse, dense = (room[: len(t)] for room in self._room[:2])
            torch.mm(low_rank.left[rows], right, out=dense)
            bound = self._bound(v, self.mu)
            yield rows, dense, torch.sub(t, torch.clamp(t, -bound, bound, out=sparse), out=sparse)

    def objectives(self, low_rank: Factors) -> tuple[float, float, float]:
        """Return what L leaves of the objective with the best S and N for it, ``<X, Y>`` and ``sum v Y^2``."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.problem.device)
        right = low_rank.right.T.contiguous()
        for rows, x, v in self.problem.blocks():
            t = self.panel.read(rows)
            e, rest = (room[: len(t)] for room in self._room[:2])
            self._clip(t, v, self.mu, e)
            sums[1] += self.mu * torch.mul(x, e, out=rest).sum(dtype=torch.float64)
            sums[2] += self._noise_energy(t, e, v)
            torch.sub(x, torch.mm(low_rank.left[rows], right, out=rest), out=rest)
            sums[0] += self._huber(rest, v)
        left_over, inner, energy = sums.tolist()
        return left_over, inner, energy

    def _blocks(self, walk: Callable[[], Iterator[tuple[slice, Tensor]]]) -> Blocks:
        return Blocks(self.problem.shape, self.problem.dtype, self.problem.device, walk)

    def _bound(self, v: Number, mu: float) -> Any:
        """Return the largest absolute value that is not taken for sparse."""
        return self.problem.lambda_ * (1 / mu + v)

    def _clip(self, t: Tensor, v: Number, mu: float, out: Tensor) -> Tensor:
        """Return ``e = Y / mu``."""
        bound = self._bound(v, mu)
        torch.clamp(t, -bound, bound, out=out)
        if isinstance(v, Tensor) or v > 0:
            out.mul_(1 / (1 + mu * v))
        return out

    def _count(self, t: Tensor, v: Number, mu: float, room: Tensor) -> Tensor:
        """Count the entries of S; as floats, because a sum of booleans takes four times as long."""
        return torch.gt(torch.abs(t, out=room), self._bound(v, mu), out=room).sum(dtype=torch.float64)

    def _noise_energy(self, t: Tensor, e: Tensor, v: Number) -> Number:
        """Return ``sum v Y^2 = mu sum N e``, which needs no infinite v."""
        if not isinstance(v, Tensor) and v == 0:
            return 0.0
        bound = self._bound(v, self.mu)
        noise = torch.clamp(t, -bound, bound) - e
        return self.mu * torch.dot(noise.flatten(), e.flatten())

    def _huber(self, rest: Tensor, v: Number) -> Tensor:
        """Return the sum of ``min_S lambda |S| + (rest - S)^2 / (2 v)``."""
        lam, size = self.problem.lambda_, rest.abs_()
        if not isinstance(v, Tensor) and v == 0:
            return lam * size.sum(dtype=torch.float64)
        near = torch.minimum(size, torch.as_tensor(lam * v, dtype=size.dtype, device=size.device))
        quadratic = near.square() / (2 * v)
        if isinstance(v, Tensor):
            quadratic = torch.where(v > 0, quadratic, 0.0)
        return (quadratic + lam * (size - near)).sum(dtype=torch.float64)


def _square(block: Tensor) -> Tensor:
    """Return the sum of squares."""
    flat = block.flatten()
    return torch.dot(flat, flat)
