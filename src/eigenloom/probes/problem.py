"""What is to be fitted: settings, which classes take part, row weights, and the table of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenloom.errors import ConfigError, DataError
from eigenloom.probes.objective import OBJECTIVES
from eigenloom.probes.rows import LabelledRows

STATUSES = ("converged", "max_iter", "approximate", "dead", "skipped")
CONVERGED, MAX_ITER, APPROXIMATE, DEAD, SKIPPED = range(len(STATUSES))
CLASS_WEIGHTS = ("none", "inverse_frequency")
POLISH = ("best", "all", "none")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How to fit; every field changes results, save for ``memory_mb`` (bound of the working set) and ``device``.

    ``l2`` is the ridge, above 0. ``polish``: which pairs of dense codes get exact passes, at most ``polish_limit``.
    ``bins`` per feature of the histograms. ``top_n`` features of highest AP are listed per class.
    """

    l2: float = 1e-8
    objective: str = "scaled"
    class_weight: str = "none"
    polish: str = "best"
    bins: int = 256
    polish_limit: int = 20_000
    top_n: int = 10
    memory_mb: int = 1024
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: with the value and what would do.
        """
        if not (isinstance(self.l2, int | float) and 0 < self.l2 < math.inf):
            raise ConfigError(f"l2: {self.l2!r} is not above 0; a separable class would have no optimum (try 1e-8)")
        choices = {"objective": OBJECTIVES, "class_weight": CLASS_WEIGHTS, "polish": POLISH}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name, least in {"bins": 2, "polish_limit": 0, "top_n": 0, "memory_mb": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}: {value!r} must be an integer of at least {least}")

    @property
    def weighted(self) -> bool:
        """Whether rows carry weights."""
        return self.class_weight != "none"


@dataclass(frozen=True, eq=False)
class Problem:
    """Two splits with the classes of their rows, and settings. ``evaluated [e]`` are the classes that take part."""

    train: LabelledRows
    val: LabelledRows
    settings: Settings
    evaluated: NDArray[np.int64]
    reasons: tuple[str | None, ...]

    @classmethod
    def of(cls, train: LabelledRows, val: LabelledRows, names: Sequence[str], settings: Settings) -> "Problem":
        """Find the classes that can be evaluated: with positives and negatives in both splits.

        Raises:
            DataError: no such class, with the counts.
        """
        if train.n_features != val.n_features:
            raise DataError(f"{train.name} has {train.n_features} features, {val.name} {val.n_features}")
        reasons = tuple(_reason((train, val), c) for c in range(len(names)))
        evaluated = np.array([c for c, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        if not len(evaluated):
            counts = {s.name: s.class_counts.tolist() for s in (train, val)}
            raise DataError(f"no class left to evaluate; rows per class: {counts}")
        return cls(train, val, settings, evaluated, reasons)

    @property
    def prior_logit(self) -> Floats:
        """Where every pair starts, ``[e]``: the logit of the training prevalence, 0 with balanced weights."""
        positives = self.train.class_counts[self.evaluated]
        if self.settings.weighted:
            return np.zeros(len(positives))
        return np.log(positives / (self.train.n_rows - positives))

    def weights(self, rows: LabelledRows) -> tuple[Tensor, Tensor] | None:
        """Row weights ``[c]`` of positives and of negatives in one split; None for ones."""
        if not self.settings.weighted:
            return None
        counts = torch.from_numpy(rows.class_counts).to(torch.float64).to(self.settings.device)
        n = rows.n_rows
        return n / (2 * counts.clamp(min=1)), n / (2 * (n - counts).clamp(min=1))

    def positive_weights(self, rows: LabelledRows) -> Floats:
        """Weight ``[c]`` of a positive row in one split."""
        weights = self.weights(rows)
        return np.ones(len(rows.class_counts)) if weights is None else weights[0].cpu().numpy()


@dataclass(frozen=True, eq=False)
class PairTable:
    """Results ``[k, c]`` of all pairs, filled in place: float64, ``steps`` int32, ``status`` int8 (``STATUSES``).

    ``b`` and ``w`` are in code units; losses are means without the penalty.
    """

    b: Floats
    w: Floats
    train_loss: Floats
    val_loss: Floats
    steps: NDArray[np.int32]
    status: NDArray[np.int8]

    @classmethod
    def for_problem(cls, problem: Problem) -> "PairTable":
        """Start with every pair skipped, at zero."""
        shape = (problem.train.n_features, len(problem.reasons))
        b, w, train_loss, val_loss = (np.zeros(shape) for _ in range(4))
        return cls(b, w, train_loss, val_loss, np.zeros(shape, dtype=np.int32), np.full(shape, SKIPPED, dtype=np.int8))

    def mark_dead(self, problem: Problem, dead: NDArray[np.bool_]) -> None:
        """Give constant features the intercept-only answer."""
        cells = np.ix_(np.flatnonzero(dead), problem.evaluated)
        prior = problem.prior_logit
        self.b[cells], self.w[cells], self.status[cells], self.steps[cells] = prior, 0.0, DEAD, 0
        self.train_loss[cells] = baselines(problem, problem.train)[problem.evaluated]
        self.val_loss[cells] = baselines(problem, problem.val)[problem.evaluated]


def baselines(problem: Problem, rows: LabelledRows) -> Floats:
    """Return ``H [c]`` on one split: the loss of predicting the training prevalence; ln 2 with balanced weights.

    Where a class is absent from probe_train, the entropy of its own prevalence stands in.
    """
    if problem.settings.weighted:
        return np.full(len(rows.class_counts), math.log(2))
    p, q = (split.class_counts / split.n_rows for split in (problem.train, rows))
    p = np.where((p > 0) & (p < 1), p, q)
    return cross_entropy(p, q)


def cross_entropy(p: Floats, q: Floats) -> Floats:
    """Return ``-q ln p - (1-q) ln(1-p)`` with ``0 ln 0 = 0``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(q > 0, q * np.log(p), 0.0) - np.where(q < 1, (1 - q) * np.log1p(-p), 0.0)


def _reason(splits: tuple[LabelledRows, LabelledRows], c: int) -> str | None:
    """Say why a class cannot be evaluated."""
    for rows in splits:
        if rows.class_counts[c] == 0:
            return f"no row in {rows.name}"
        if rows.class_counts[c] == rows.n_rows:
            return f"every row of {rows.name}"
    return None
