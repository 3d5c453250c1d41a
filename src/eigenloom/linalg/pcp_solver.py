"""The loop of ``pcp``: when the penalty grows, when to stop, and what the end may be called."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_recursion import Recursion, Residuals
from eigenloom.linalg.pcp_store import Checkpoint, Panel
from eigenloom.linalg.svt import Factors, WarmSVT, full_svt, gram, gram_svt, spectral_norm

SVDS = ("randomized", "full", "gram")
NAMES = ("primal_resid", "dual_resid", "rank", "nnz", "mu")
"""Columns of a history."""
GROWTH = 1.5
"""Factor of the penalty."""
SETTLED = 0.015
"""The penalty grows once S + N has settled: ``mu ||change|| < SETTLED ||Y||``, which no unit of X changes."""
ROUNDS, BACK = 3, 6
"""How often an uncertified split is taken up again, and how many steps the penalty then goes back."""
DRIFT = 0.1
"""Sine of the angle by which the subspace of an iteration may still be turning."""
EXACT_NORM = 1024
"""Columns up to which the norm of the multiplier comes from its Gram matrix."""


@dataclass(frozen=True)
class Settings:
    """What the loop can be told; see ``pcp``."""

    mu: float | None = None
    tol: float = 1e-6
    max_iter: int = 1000
    svd: str = "randomized"
    rank_guess: int = 50
    oversampling: int = 10
    power_iter: int = 2
    gap_tol: float = 1e-3
    max_rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: a value that means nothing.
        """
        if self.svd not in SVDS:
            raise ConfigError(f"svd: {self.svd!r} is unknown; use {', '.join(SVDS)}")
        for name, least in (
            ("max_iter", 1),
            ("rank_guess", 1),
            ("oversampling", 0),
            ("power_iter", 0),
            ("max_rank", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")
        for name in ("mu", "tol", "gap_tol"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: {value!r} is not a positive number")


@dataclass
class Course:
    """How far a loop is: the next penalty, how strict growth is, rounds taken up, and all that was seen."""

    mu: float
    sigma1: float
    settled: float = SETTLED
    rounds: int = 0
    status: str = "max_iter"
    lines: list[list[float]] = field(default_factory=list)
    gaps: list[list[float]] = field(default_factory=list)

    def position(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Solution:
    """The last state of the recursion, the factors of L, and the course it took."""

    recursion: Recursion
    low_rank: Factors
    course: Course


def decompose(
    problem: Problem,
    settings: Settings,
    panel: Panel,
    checkpoint: Checkpoint | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, line: None,
) -> Solution:
    """Run the loop on a measured problem, from the start or from where ``checkpoint`` left it."""
    if problem.norm == 0:
        return _zero(problem, panel)
    saved = None if checkpoint is None else checkpoint.load()
    draws = _Draws(settings.seed, problem.shape[1])
    warm = WarmSVT(draws, settings.rank_guess + settings.oversampling, settings.power_iter + 1, DRIFT)
    if saved is None:
        recursion, course = _first(problem, settings, panel, draws)
    else:
        tensors, position = saved
        panel.restore(tensors)
        course = Course(**{name: position[name] for name in vars(Course(0.0, 0.0))})
        recursion = Recursion(problem, panel, course.lines[-1][-1] if course.lines else course.mu)
        warm.basis = tensors["basis"].to(problem.device) if "basis" in tensors else None
    while True:
        low_rank, capped = _threshold(recursion, course.mu, warm, settings)
        residuals = recursion.update(low_rank, course.mu)
        line = _line(residuals, len(low_rank.values), recursion)
        course.lines.append(line)
        report(len(course.lines), dict(zip(NAMES, line, strict=True)))
        if _finished(recursion, low_rank, capped, course, settings):
            return Solution(recursion, low_rank, course)
        if checkpoint is not None and checkpoint.due():
            carried = {} if warm.basis is None else {"basis": warm.basis}
            checkpoint.tick({**panel.tensors(), **carried}, course.position())


def duality_gap(recursion: Recursion, low_rank: Factors, seed: int) -> float:
    """Return ``(primal - dual) / primal`` for L with the best S and N, and Y scaled until it is feasible.

    ``|Y| <= lambda`` holds already; ``||Y||_2 <= 1`` is made true by dividing by the norm, which comes from the Gram
    matrix up to 1024 columns and from Lanczos beyond. A gap of g proves the objective of L to lie within the share g
    above the least.
    """
    y, m = recursion.multiplier(), recursion.problem.shape[1]
    if m <= EXACT_NORM:
        norm = float(torch.linalg.eigvalsh(gram(y))[-1].clamp_min(0).sqrt())
    else:
        norm = spectral_norm(y, torch.randn(m, dtype=torch.float64, generator=generator(seed, "norm", 1)), 1e-5)
    left_over, inner, energy = recursion.objectives(low_rank)
    primal, excess = float(low_rank.values.sum()) + left_over, max(norm, 1.0)
    return (primal - inner / excess + energy / (2 * excess**2)) / primal if primal > 0 else 0.0


class _Draws:
    """Gaussian columns for a growing subspace; those that follow the first ``have`` are always the same."""

    def __init__(self, seed: int, m: int):
        self._seed, self._m = seed, m

    def __call__(self, have: int, count: int) -> Tensor:
        """Return ``[m, count]`` float64."""
        return torch.randn(self._m, count, dtype=torch.float64, generator=generator(self._seed, "sketch", have))


def _first(problem: Problem, settings: Settings, panel: Panel, draws: _Draws) -> tuple[Recursion, Course]:
    """Set the recursion to its start: ``Y = X / max(sigma_1, max|X| / lambda)``."""
    start = torch.randn(problem.shape[1], dtype=torch.float64, generator=generator(settings.seed, "norm"))
    sigma1 = spectral_norm(Recursion(problem, panel, 1.0).data(), start, 1e-3)
    course = Course(1.25 / sigma1 if settings.mu is None else settings.mu, sigma1)
    recursion = Recursion(problem, panel, course.mu)
    recursion.start(max(sigma1, problem.largest / problem.lambda_))
    return recursion, course


def _threshold(recursion: Recursion, mu: float, warm: WarmSVT, settings: Settings) -> tuple[Factors, bool]:
    """Return the next L, and whether ``max_rank`` cut it."""
    argument = recursion.argument(mu)
    if settings.svd == "randomized":
        factors = warm(argument, 1 / mu, settings.max_rank)
    else:
        factors = (full_svt if settings.svd == "full" else gram_svt)(argument, 1 / mu)
    if settings.max_rank is None or len(factors.values) <= settings.max_rank:
        return factors, False
    return factors.head(settings.max_rank), True


def _line(residuals: Residuals, rank: int, recursion: Recursion) -> list[float]:
    """Return a line of history, in the order of ``NAMES``."""
    dual = recursion.mu * residuals.change / residuals.multiplier if residuals.multiplier > 0 else 0.0
    return [residuals.primal / recursion.problem.norm, dual, rank, residuals.nnz, recursion.mu]


def _finished(recursion: Recursion, low_rank: Factors, capped: bool, course: Course, settings: Settings) -> bool:
    """Decide what follows an iteration: the end with its status, another round, or a larger penalty."""
    primal, dual = course.lines[-1][:2]
    last = len(course.lines) >= settings.max_iter
    if primal <= settings.tol or last:
        gap = duality_gap(recursion, low_rank, settings.seed)
        course.gaps.append([len(course.lines), gap])
        if capped:
            course.status = "rank_capped"
        elif primal <= settings.tol and gap <= settings.gap_tol:
            course.status = "converged"
        elif primal <= settings.tol and course.rounds == ROUNDS:
            course.status = "uncertified"
        elif not last:
            course.rounds += 1
            course.settled /= 10
            course.mu /= GROWTH**BACK
            return False
        return True
    if dual < course.settled:
        course.mu *= GROWTH
    return False


def _zero(problem: Problem, panel: Panel) -> Solution:
    """Return the split of a zero matrix: nothing."""
    recursion = Recursion(problem, panel, 1.0)
    recursion.start(1.0)
    left, right = (torch.zeros(side, 0, dtype=problem.dtype, device=problem.device) for side in problem.shape)
    low_rank = Factors(left, torch.zeros(0, dtype=torch.float64), right)
    return Solution(recursion, low_rank, Course(1.0, 0.0, status="converged", gaps=[[0, 0.0]]))
