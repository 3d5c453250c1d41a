"""One probe from two streams of codes: fit every pair, choose features, measure them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenloom.codes.stream import CodeStream
from eigenloom.errors import DataError, MismatchError
from eigenloom.probes.metrics import Precisions, ProbeMetrics, choose, summarize
from eigenloom.probes.onehot import ceiling_losses, fit_onehot
from eigenloom.probes.polish import PairFitter
from eigenloom.probes.precision import average_precisions, onehot_precisions, onehot_purity, purity
from eigenloom.probes.problem import PairTable, Problem, Settings
from eigenloom.probes.rows import LabelledRows, encode_classes

PATHS = {"label": "tables", "sparse": "columns", "dense": "histogram"}
CANDIDATES_PER_PLACE = 4


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Everything about one probe.

    Fields: ``table``, all pairs ``[k, c]``; ``metrics``; ``top_features [c, n]`` int32 (-1 fills) and ``top_ap``
    float64, per class the features of highest AP on probe_val; ``settings``; ``path`` that was taken.
    """

    table: PairTable
    metrics: ProbeMetrics
    top_features: NDArray[np.int32]
    top_ap: NDArray[np.float64]
    settings: Settings
    path: str

    def arrays(self) -> dict[str, Tensor]:
        """Return the arrays of the artifact."""
        names = ("b", "w", "train_loss", "val_loss", "steps", "status")
        arrays = {name: getattr(self.table, name) for name in names}
        arrays |= {"top_features": self.top_features, "top_ap": self.top_ap}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def document(self) -> dict[str, Any]:
        """Return the JSON part of the artifact: metrics, counts, per-class columns, top features, settings, path."""
        names = self.metrics.classes["class"]
        columns: dict[str, list[Any]] = {name: [] for name in ("class", "rank", "feature", "ap", "b", "w", "val_ce")}
        for c, (features, aps) in enumerate(zip(self.top_features.tolist(), self.top_ap.tolist(), strict=True)):
            for rank, (j, ap) in enumerate(zip(features, aps, strict=True), start=1):
                if j >= 0:
                    pair = (self.table.b[j, c], self.table.w[j, c], self.table.val_loss[j, c])
                    row = (names[c], rank, j, ap, *map(float, pair))
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
        settings = asdict(self.settings)
        for bound in ("memory_mb", "device"):  # neither is part of the result
            del settings[bound]
        return {**self.metrics.document(), "top_features": columns, "path": self.path, **settings}


def fit_probe(
    train: CodeStream,
    train_labels: Tensor | NDArray,
    val: CodeStream,
    val_labels: Tensor | NDArray,
    *,
    classes: Sequence[str],
    void: int | None = None,
    names: tuple[str, str] = ("probe_train", "probe_val"),
    **settings: Any,
) -> ProbeResult:
    """Fit a 1-D logistic probe for every feature and class, and measure the best feature of each class.

    Args:
        train: codes of all rows of probe_train, void ones included, in stored order; walked more than once.
        train_labels: integers ``[n_rows]`` below ``len(classes)``.
        val: codes of probe_val.
        val_labels: likewise.
        classes: names; their number and order come from the data set, never from the labels seen.
        void: the label to be left out of everything; None counts every label as a class.
        names: of the splits, for messages.
        settings: the fields of ``Settings``: l2, objective, class_weight, polish, bins, polish_limit, top_n,
            memory_mb, device.

    Returns:
        All pairs, metrics and top features; a function of codes, labels and settings alone. Other batch sizes and
        memory bounds move results by rounding only (1e-12).

    Raises:
        ConfigError: a setting is out of range.
        DataError: labels do not fit, codes are not finite, no class can be evaluated.
        MismatchError: the streams are of different codings.
    """
    chosen = Settings(**settings)
    if (train.layout, train.n_features) != (val.layout, val.n_features):
        raise MismatchError(
            f"{names[0]} has {train.n_features} {train.layout!r} features, {names[1]} {val.n_features} "
            f"{val.layout!r}: codes of one basis and one coding are needed; encode both splits again"
        )
    declared = [name for label, name in enumerate(classes) if label != void]

    def labelled(stream: CodeStream, labels: Tensor | NDArray, name: str) -> LabelledRows:
        numbers = encode_classes(labels, classes, void, name)
        rows = LabelledRows(stream, numbers, len(declared), name, chosen.memory_mb)
        if not rows.n_rows:
            raise DataError(f"{name}: all {stream.n_rows} rows are void")
        return rows

    problem = Problem.of(labelled(train, train_labels, names[0]), labelled(val, val_labels, names[1]), declared, chosen)
    parts = _onehot(problem) if train.layout == "label" else _columns(problem)
    table, precisions, ap, l0, ceiling = parts
    metrics = summarize(problem, declared, table, precisions, l0=l0, ceiling=ceiling)
    top_features, top_ap = _top(problem, ap, len(declared))
    return ProbeResult(table, metrics, top_features, top_ap, chosen, PATHS[train.layout])


_Parts = tuple[
    PairTable,
    Precisions,
    NDArray[np.float64],
    tuple[float, float],
    tuple[NDArray[np.float64], NDArray[np.float64]] | None,
]


def _onehot(problem: Problem) -> _Parts:
    """Path A: everything from two contingency tables. The third part is AP ``[k, e]``."""
    counts = [rows.counts() for rows in (problem.train, problem.val)]
    table = fit_onehot(problem, *counts)
    best, oracle = choose(problem, table)
    signs = np.sign(table.w)
    ap = onehot_precisions(counts[1].astype(np.float64), problem.val.class_counts.astype(np.float64), signs)
    ap = ap[:, problem.evaluated]
    e = np.arange(len(best))
    pure = [onehot_purity(counts[1][j], signs[j, c]) for j, c in zip(best, problem.evaluated, strict=True)]
    raw = [onehot_purity(counts[1][j], 1.0)[0] for j in best]
    precisions = Precisions(
        ap[best, e], ap[oracle, e], np.array([p for p, _ in pure]), np.array(raw), np.array([n for _, n in pure])
    )
    return table, precisions, ap, (1.0, 1.0), ceiling_losses(problem, *counts)


def _columns(problem: Problem) -> _Parts:
    """Paths B and C. The third part is AP ``[k, e]``, exact where it matters and -1 elsewhere."""
    settings, evaluated = problem.settings, problem.evaluated
    k, n_candidates = problem.train.n_features, CANDIDATES_PER_PLACE * settings.top_n
    screen = 0 < n_candidates * len(evaluated) < k
    fitter = PairFitter(problem, screen)
    table = fitter.fit()
    best, oracle = choose(problem, table)
    wanted = {*best.tolist(), *oracle.tolist()}
    if settings.top_n and not screen:
        wanted = set(range(k))
    elif fitter.screened is not None:
        wanted |= set(np.argsort(-fitter.screened, axis=0, kind="stable")[:n_candidates].ravel().tolist())
    ap = np.full((k, len(evaluated)), -1.0)
    figures = np.zeros((3, len(best)))
    signs = np.sign(table.w)
    for columns in problem.val.columns(np.array(sorted(wanted))):
        for position, j in enumerate(columns.features.tolist()):
            ap[j] = average_precisions(columns, position, signs[j])[evaluated]
            places = np.flatnonzero(best == j)
            directions = signs[j, evaluated[places]]
            pure = {
                sign: purity(columns, position, sign) for sign in ({*directions.tolist(), 1.0} if len(places) else ())
            }
            for place, sign in zip(places, directions.tolist(), strict=True):
                figures[:, place] = pure[sign][0], pure[1.0][0], pure[sign][1]
    e = np.arange(len(best))
    precisions = Precisions(ap[best, e], ap[oracle, e], figures[0], figures[1], figures[2].astype(np.int64))
    scales = (fitter.scales, fitter.val_scales)
    l0 = [float(s.nonzeros.sum() / rows.n_rows) for s, rows in zip(scales, (problem.train, problem.val), strict=True)]
    return table, precisions, ap, (l0[0], l0[1]), None


def _top(problem: Problem, ap: NDArray[np.float64], n_classes: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """List per class the features of highest AP, the lowest index on ties; ``[c, n]`` filled with -1 and 0."""
    n = min(problem.settings.top_n, len(ap))
    features, values = np.full((n_classes, n), -1, dtype=np.int32), np.zeros((n_classes, n))
    order = np.argsort(-ap, axis=0, kind="stable")[:n]
    features[problem.evaluated] = order.T
    values[problem.evaluated] = np.take_along_axis(ap, order, axis=0).T
    return features, values
