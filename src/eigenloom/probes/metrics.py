"""From pairs to what a table says: best features, Probe R, AP, coverage, purity, with their floors.

Per-class columns are lists over all classes but void; a class that was not evaluated has None. With balanced
weights losses are other quantities: they carry the suffix ``_balanced`` and the plain names stay empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eigenloom.probes.precision import PLACES
from eigenloom.probes.problem import STATUSES, PairTable, Problem, baselines, cross_entropy

COVERED = 0.3
LOSSES = ("train_ce", "val_ce", "h_train", "h_val", "h_split_prior", "margin", "mean_ce", "oracle_val_ce")
LOSS_METRICS = ("probe_r", "probe_r_train", "probe_r_split_prior", "probe_r_all", "oracle_probe_r", "mean_ce", "margin")
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Sums:
    """What every scalar is derived from: counts and float64 sums over classes.

    Sums run over evaluated classes; ``_all`` sums over every declared class, where an unevaluated one has AP 0 and
    the loss of its baseline.
    """

    n_classes: int
    n_evaluated: int
    val_ce: float
    train_ce: float
    oracle_val_ce: float
    mean_ce: float
    h_val: float
    h_train: float
    h_split_prior: float
    h_unevaluated: float
    ap: float
    oracle_ap: float
    ap_floor: float
    n_covered: int
    n_covered_floor: int
    purity: float
    purity_raw: float
    n_short: int

    def __post_init__(self) -> None:
        """Check what must hold between them."""
        assert 0 < self.n_evaluated <= self.n_classes
        assert 0 <= self.n_covered <= self.n_evaluated
        assert 0 <= self.n_short <= self.n_evaluated
        assert all(0 <= total <= self.n_evaluated + 1e-9 for total in (self.ap, self.oracle_ap, self.purity))
        assert self.oracle_val_ce <= self.val_ce + 1e-9
        assert min(self.val_ce, self.train_ce, self.h_val, self.h_train) >= 0

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]], baseline: Sequence[float]) -> "Sums":
        """Add up per-class columns; ``baseline [c]`` is H on probe_val of every class."""
        done = [c for c, reason in enumerate(columns["skipped"]) if reason is None]

        def total(name: str) -> float:
            return float(sum(columns[name][c] for c in done))

        return cls(
            n_classes=len(columns["class"]),
            n_evaluated=len(done),
            **{name: total(name) for name in ("val_ce", "train_ce", "oracle_val_ce", "mean_ce")},
            **{name: total(name) for name in ("h_val", "h_train", "h_split_prior")},
            h_unevaluated=float(sum(h for c, h in enumerate(baseline) if c not in done)),
            **{name: total(name) for name in ("ap", "oracle_ap", "ap_floor")},
            n_covered=sum(columns["ap"][c] > COVERED for c in done),
            n_covered_floor=sum(columns["ap_floor"][c] > COVERED for c in done),
            **{name: total(name) for name in ("purity", "purity_raw")},
            n_short=sum(columns["rows_found"][c] < PLACES for c in done),
        )

    def metrics(self) -> dict[str, float]:
        """Derive the scalars. Probe R is a ratio of sums, not a mean of ratios."""
        n = self.n_evaluated
        return {
            "probe_r": 1 - self.val_ce / self.h_val,
            "probe_r_train": 1 - self.train_ce / self.h_train,
            "probe_r_split_prior": 1 - self.val_ce / self.h_split_prior,
            "probe_r_all": 1 - (self.val_ce + self.h_unevaluated) / (self.h_val + self.h_unevaluated),
            "oracle_probe_r": 1 - self.oracle_val_ce / self.h_val,
            "mean_ce": self.mean_ce / n,
            "margin": (self.h_val - self.val_ce) / n,
            "map": self.ap / n,
            "map_all": self.ap / self.n_classes,
            "oracle_map": self.oracle_ap / n,
            "floor_map": self.ap_floor / n,
            "floor_probe_r": 0.0,
            "coverage_03": self.n_covered / n,
            "coverage_03_all": self.n_covered / self.n_classes,
            "floor_coverage_03": self.n_covered_floor / n,
            "purity_16": self.purity / n,
            "purity_16_raw": self.purity_raw / n,
            "purity_16_short": float(self.n_short),
        }


@dataclass(frozen=True, eq=False)
class ProbeMetrics:
    """Scalars, counts and per-class columns of one probe; checks on creation that they follow from each other.

    ``scalars`` and ``classes`` hold unweighted names, ``balanced`` tells whether losses are balanced quantities;
    ``baseline [c]`` is H on probe_val of every class.
    """

    scalars: dict[str, float | None]
    counts: dict[str, int]
    classes: Columns
    baseline: list[float]
    balanced: bool

    def __post_init__(self) -> None:
        """Derive the scalars again from the columns and compare."""
        derived = Sums.of(self.classes, self.baseline)
        for name, value in derived.metrics().items():
            stored = self.scalars[name]
            assert stored is not None, name
            assert abs(stored - value) <= 1e-12 * max(1.0, abs(value)), name
        assert self.counts["n_evaluated"] == derived.n_evaluated
        assert sum(self.counts[f"n_pairs_{status}"] for status in STATUSES) == self.counts["n_pairs"]

    def document(self) -> dict[str, Any]:
        """Return JSON values: ``metrics``, ``counts``, ``classes``; losses under ``_balanced`` names where they are."""
        classes, scalars = dict(self.classes), dict(self.scalars)
        if self.balanced:
            for table, names in ((classes, LOSSES), (scalars, (*LOSS_METRICS, "ceiling_probe_r"))):
                for name in names:
                    if name in table:
                        table[f"{name}_balanced"] = table[name]  # type: ignore[assignment]
                        table[name] = [None] * len(self.baseline) if table is classes else None  # type: ignore[assignment]
        return {"metrics": scalars, "counts": dict(self.counts), "classes": classes}


@dataclass(frozen=True, eq=False)
class Precisions:
    """Validation figures of chosen features, all ``[e]`` over evaluated classes: of the best and the oracle feature."""

    ap: NDArray[np.float64]
    oracle_ap: NDArray[np.float64]
    purity: NDArray[np.float64]
    purity_raw: NDArray[np.float64]
    rows_found: NDArray[np.int64]


def choose(problem: Problem, table: PairTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the feature of least train loss and that of least val loss ``[e]``, the lowest index on ties."""
    evaluated = problem.evaluated
    return table.train_loss[:, evaluated].argmin(0), table.val_loss[:, evaluated].argmin(0)


def summarize(
    problem: Problem,
    names: Sequence[str],
    table: PairTable,
    precisions: Precisions,
    *,
    l0: tuple[float, float],
    ceiling: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> ProbeMetrics:
    """Build the record.

    Args:
        problem: what was fitted.
        names: of the classes, void left out.
        table: fitted pairs.
        precisions: of the chosen features.
        l0: mean number of non-zero entries per labelled row, in probe_train and probe_val.
        ceiling: train and val losses ``[e]`` of the best that one-hot features of these sizes could do.
    """
    done = problem.evaluated
    best, oracle = choose(problem, table)
    n_train, n_val = problem.train.class_counts, problem.val.class_counts
    p, q = n_train / problem.train.n_rows, n_val / problem.val.n_rows
    h_val = baselines(problem, problem.val)
    h_split = h_val if problem.settings.weighted else cross_entropy(q, q)
    per_class: dict[str, NDArray] = {
        "best_feature": best,
        "b": table.b[best, done],
        "w": table.w[best, done],
        "train_ce": table.train_loss[best, done],
        "val_ce": table.val_loss[best, done],
        "h_train": baselines(problem, problem.train)[done],
        "h_val": h_val[done],
        "h_split_prior": h_split[done],
        "margin": h_val[done] - table.val_loss[best, done],
        "mean_ce": table.val_loss[:, done].mean(0),
        "ap": precisions.ap,
        "ap_floor": q[done],
        "covered": precisions.ap > COVERED,
        "purity": precisions.purity,
        "purity_raw": precisions.purity_raw,
        "rows_found": precisions.rows_found,
        "oracle_feature": oracle,
        "oracle_val_ce": table.val_loss[oracle, done],
        "oracle_ap": precisions.oracle_ap,
    }
    columns: Columns = {
        "class": list(names),
        "skipped": list(problem.reasons),
        "n_train": n_train.tolist(),
        "n_val": n_val.tolist(),
        "prevalence_train": p.tolist(),
        "prevalence_val": q.tolist(),
    }
    for name, values in per_class.items():
        columns[name] = [None] * len(names)
        for position, value in zip(done, values.tolist(), strict=True):
            columns[name][position] = value
    scalars: dict[str, float | None] = {**Sums.of(columns, h_val.tolist()).metrics()}
    scalars["ceiling_probe_r"] = None if ceiling is None else float(1 - ceiling[1].sum() / h_val[done].sum())
    scalars["l0_train"], scalars["l0_val"] = l0
    return ProbeMetrics(scalars, _counts(problem, table), columns, h_val.tolist(), problem.settings.weighted)


def _counts(problem: Problem, table: PairTable) -> dict[str, int]:
    """Count rows, classes, features, and pairs by status."""
    k, n_classes = table.status.shape
    statuses = np.bincount(table.status.ravel(), minlength=len(STATUSES))
    alive = table.status[:, problem.evaluated]
    return {
        "n_features": k,
        "n_features_dead": int((alive[:, 0] == STATUSES.index("dead")).sum()),
        "n_classes": n_classes,
        "n_evaluated": len(problem.evaluated),
        "n_rows_train": problem.train.n_rows,
        "n_rows_val": problem.val.n_rows,
        "n_pairs": k * n_classes,
        **{f"n_pairs_{name}": int(count) for name, count in zip(STATUSES, statuses, strict=True)},
        "max_steps": int(table.steps.max()),
    }
