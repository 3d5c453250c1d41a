"""Probes and average precision against scikit-learn, scipy and index_add.

Peers that fit one pair at a time are timed on a few pairs and compared per pair: ``pairs`` stands in the settings of
each row. Errors are those of the parameters against a float64 reference fit to the end.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from harness import compare
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from eigenloom.codes.stream import CodeBatch
from eigenloom.probes.fit import fit_probe
from eigenloom.probes.onehot import PAIRS_PER_BLOCK, make_tables
from eigenloom.probes.precision import average_precisions
from eigenloom.probes.reference import fit_reference
from eigenloom.probes.rows import Columns
from eigenloom.probes.sparse import ColumnSums

N_CLASSES = 150
Record = dict[str, Any]


class Dense:
    """A matrix as a stream of dense code batches."""

    layout = "dense"

    def __init__(self, z: torch.Tensor):
        """Take ``z [n, k]``."""
        self.z, (self.n_rows, self.n_features) = z, z.shape

    def __iter__(self) -> Iterator[CodeBatch]:
        """Batches of 8192 rows."""
        yield from (CodeBatch.dense(z) for z in self.z.split(8192))


def labels(rng: np.random.Generator, n: int) -> np.ndarray:
    """Classes whose sizes follow a power law, none empty."""
    sizes = 1 / np.arange(1, N_CLASSES + 1)
    y = rng.choice(N_CLASSES, n, p=sizes / sizes.sum())
    y[:N_CLASSES] = np.arange(N_CLASSES)
    return y.astype(np.int16)


def per_pair(record: Record, pairs: dict[str, int], ours: str = "eigenloom") -> Record:
    """Turn times of different numbers of pairs into ratios of seconds per pair, and give the rate of each."""
    base = statistics.median(next(r for r in record["rows"] if r["name"] == ours)["cpu_s"]) / pairs[ours]
    for row in record["rows"]:
        if row["cpu_s"]:
            each = statistics.median(row["cpu_s"]) / pairs[row["name"]]
            row["ratio"] = each / base
            row["quality"] = {**row["quality"], "seconds_per_pair": each, "pairs_per_second": 1 / each}
    record["settings"]["pairs"] = pairs
    return record


def sklearn_fit(z: np.ndarray, target: np.ndarray, l2: float) -> tuple[float, float]:
    """Fit one pair at the same objective: scaled feature, newton-cholesky to a step below 1e-8."""
    scale = z.std()
    model = LogisticRegression(C=1 / (l2 * len(z)), solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit((z / scale)[:, None], target)
    return float(model.intercept_[0]), float(model.coef_[0, 0] / scale)


def one_hot(rng: np.random.Generator, full: bool, l2: float) -> Record:
    """Fit every pair of one-hot codes, the counting pass included."""
    n, k = (524_288, 16_384) if full else (65_536, 1024)
    y = labels(rng, n)
    # clusters lean to a class each: half of a cluster's rows come from its own class
    cluster = np.where(rng.random(n) < 0.5, (y + N_CLASSES * rng.integers(0, k // N_CLASSES, n)), rng.integers(0, k, n))
    cells = torch.from_numpy(cluster * N_CLASSES + y)
    totals = torch.bincount(torch.from_numpy(y.astype(np.int64)), minlength=N_CLASSES).double()

    def ours() -> tuple[torch.Tensor, int]:
        n11 = torch.bincount(cells, minlength=k * N_CLASSES).reshape(k, N_CLASSES).double()
        n1 = n11.sum(1)
        size = PAIRS_PER_BLOCK // N_CLASSES
        parts, most = [], 0
        for first in range(0, k, size):
            solution, _ = make_tables(n11[first : first + size], n1[first : first + size], totals, n, l2=l2).fit()
            assert bool(solution.converged.all())
            parts.append(solution.x)
            most = max(most, int(solution.steps.max()))
        return torch.cat(parts, dim=1), most

    pairs = [(0, 0), (1, 1), (2, 140), (3, 3)][: 4 if full else 2]

    def quality(result: Any) -> dict[str, float]:
        if not isinstance(result, tuple):
            return {}
        x, most = result
        errors = []
        for j, c in pairs:
            b, w, _ = fit_reference((cluster == j).astype(float), (y == c).astype(float), l2=l2)
            z0, z1 = x[:, j * N_CLASSES + c].tolist()
            errors.append(max(abs(z0 - b) / (1 + abs(b)), abs(z1 - z0 - w) / (1 + abs(w))))
        return {"error": float(max(errors)), "steps": most}

    record = compare(
        "one-hot: all pairs, counting included",
        {"eigenloom": ours, "scikit-learn": lambda: [sklearn_fit((cluster == j) * 1.0, y == c, l2) for j, c in pairs]},
        rounds=5 if full else 3,
        settings={"n": n, "k": k, "classes": N_CLASSES, "l2": l2, "dtype": "float64"},
        quality=quality,
        limits={"counting pass": lambda: torch.bincount(cells, minlength=k * N_CLASSES)},
        target="1M pairs/s, error 1e-9",
    )
    every = k * N_CLASSES
    return per_pair(record, {"eigenloom": every, "scikit-learn": len(pairs), "counting pass": every})


def dense(rng: np.random.Generator, full: bool, l2: float) -> Record:
    """Probe a few dense features from codes to exact AP: all classes, histograms and exact passes of the best."""
    n, k = (524_288, 32) if full else (65_536, 32)
    y, yv = labels(rng, n), labels(rng, n // 4)

    def codes(classes: np.ndarray) -> torch.Tensor:
        z = rng.standard_normal((len(classes), k)) + 1.5 * (classes[:, None] % k == np.arange(k))
        z[:, -1] += 10  # a feature with a mean of ten sigma
        return torch.from_numpy(z.astype(np.float32))

    z, zv = codes(y), codes(yv)
    names = [f"c{c}" for c in range(N_CLASSES)]
    streams = (Dense(z), y, Dense(zv), yv)
    pairs = [(0, 0), (1, 1), (7, 7)]

    def fit(polish: str) -> Callable[[], Any]:
        return lambda: fit_probe(*streams, classes=names, l2=l2, polish=polish, top_n=10).table

    def quality(table: Any) -> dict[str, float]:
        errors = []
        for j, c in pairs:
            b, w, _ = fit_reference(z[:, j].numpy(), y == c, l2=l2)
            found = sklearn_fit(z[:, j].numpy().astype(float), y == c, l2) if isinstance(table, list) else (
                table.b[j, c], table.w[j, c]
            )  # fmt: skip
            errors.append(max(abs(found[0] - b) / (1 + abs(b)), abs(found[1] - w) / (1 + abs(w))))
        return {"error": float(max(errors))}

    record = compare(
        "dense: codes to exact AP",
        {
            "eigenloom": fit("none"),
            "eigenloom, exact best": fit("best"),
            "scikit-learn, fit only": lambda: [
                sklearn_fit(z[:, j].numpy().astype(float), y == c, l2) for j, c in pairs
            ],
        },
        rounds=5 if full else 3,
        settings={"n": n, "n_val": n // 4, "k": k, "classes": N_CLASSES, "l2": l2, "dtype": "float64"},
        quality=quality,
        target="900x scikit-learn's fit; error 1e-8, 1e-12 with an exact pass",
    )
    every = k * N_CLASSES
    return per_pair(record, {"eigenloom": every, "eigenloom, exact best": every, "scikit-learn, fit only": len(pairs)})


def exact_pass(rng: np.random.Generator, full: bool) -> Record:
    """One exact pass over Top-K codes: the five sums of every pair."""
    n, k, stored = (65_536, 512, 64) if full else (16_384, 256, 32)
    y = labels(rng, n)
    indices = np.argsort(rng.random((n, k)), axis=1)[:, :stored].astype(np.int32)
    values = rng.standard_normal((n, stored)).astype(np.float32)
    rows = csr_matrix((values.ravel(), indices.ravel(), np.arange(n + 1) * stored), (n, k))
    by_column = rows.tocsc()
    counts = np.bincount(y, minlength=N_CLASSES)
    columns = Columns(
        np.arange(k), by_column.indptr.astype(np.int64), by_column.data, y[by_column.indices], counts
    )  # fmt: skip
    mean, scale = np.zeros(k), np.ones(k)
    row = torch.arange(k).repeat_interleave(N_CLASSES)
    label = torch.arange(N_CLASSES).repeat(k)
    beta, u = torch.full((k * N_CLASSES,), -4.0).double(), torch.linspace(-1, 1, k * N_CLASSES).double()
    slopes, offsets = u.reshape(k, -1), beta.reshape(k, -1)
    powers = [values.astype(np.float64).ravel() ** p for p in range(3)]
    by_power = [csr_matrix((p, indices.ravel(), np.arange(n + 1) * stored), (n, k)).T.tocsr() for p in powers]

    def ours() -> torch.Tensor:
        return ColumnSums(columns, mean, scale).derivatives(row, label, beta, u)

    def sigmoids() -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        for first in range(0, n, 256):
            at = torch.from_numpy(indices[first : first + 256].astype(np.int64)).reshape(-1)
            z = torch.from_numpy(values[first : first + 256]).double().reshape(-1)
            yield first, at, z, torch.sigmoid(offsets[at] + slopes[at] * z[:, None])

    def index_add() -> list[torch.Tensor]:
        n_zero = torch.from_numpy(n - np.diff(by_column.indptr)).double()[:, None]
        at_zero = torch.sigmoid(offsets)
        total = [torch.zeros((k, N_CLASSES), dtype=torch.float64) for _ in range(5)]
        total[0] += n_zero * at_zero
        total[2] += n_zero * at_zero * (1 - at_zero)
        for _, at, z, f in sigmoids():
            s = f * (1 - f)
            for sums, terms in zip(total, (f, f * z[:, None], s, s * z[:, None], s * (z * z)[:, None]), strict=True):
                sums.index_add_(0, at, terms)
        return total

    def scipy_csr() -> list[np.ndarray]:
        """Products of the transposed codes with rows x classes: f and s at one parameter per class, as CSR allows."""
        f = np.broadcast_to(1 / (1 + np.exp(4.0)) * np.ones(N_CLASSES), (n, N_CLASSES)).copy()
        s = f * (1 - f)
        return [by_power[0] @ f, by_power[1] @ f, by_power[0] @ s, by_power[1] @ s, by_power[2] @ s]

    cells = n * stored * N_CLASSES
    record = compare(
        "Top-K: one exact pass",
        {"eigenloom": ours, "index_add": index_add, "scipy CSR, products only": scipy_csr},
        rounds=5 if full else 3,
        settings={"n": n, "k": k, "stored": stored, "classes": N_CLASSES, "dtype": "float64"},
        quality=lambda result: {"checksum": [float(part.sum()) for part in result][:3]},
        target="300M nonzeros x classes/s",
    )
    for entry in record["rows"]:
        entry["quality"]["cells_per_second"] = cells / statistics.median(entry["cpu_s"])
    return record


def precision(rng: np.random.Generator, full: bool) -> Record:
    """Exact AP of one feature for all classes."""
    n = 131_072 if full else 32_768
    y = labels(rng, n)
    z = (rng.standard_normal(n) + (y % 3)).astype(np.float32)
    column = Columns(np.arange(1), np.array([0, n]), z, y, np.bincount(y, minlength=N_CLASSES))
    signs = np.where(np.arange(N_CLASSES) % 2, 1.0, -1.0)
    classes = [0, 1, 75, 149]

    def quality(result: Any) -> dict[str, float]:
        found = np.asarray(result)[classes if len(result) == N_CLASSES else slice(None)]
        exact = [average_precision_score(y == c, signs[c] * z) for c in classes]
        return {"error": float(np.abs(found - exact).max())}

    record = compare(
        "average precision of one feature, all classes",
        {
            "eigenloom": lambda: average_precisions(column, 0, signs),
            "scikit-learn": lambda: [average_precision_score(y == c, signs[c] * z) for c in classes],
        },
        rounds=7,
        settings={"n": n, "classes": N_CLASSES},
        quality=quality,
        limits={"one sort": lambda: np.sort(z)},
        target="130x scikit-learn",
    )
    return per_pair(record, {"eigenloom": N_CLASSES, "scikit-learn": len(classes), "one sort": N_CLASSES})


def run(full: bool) -> list[Record]:
    """Measure every row, the fits at two ridges."""
    rng = np.random.default_rng(0)
    records = [one_hot(rng, full, l2) for l2 in (1e-4, 1e-8)]
    records += [dense(rng, full, l2) for l2 in (1e-4, 1e-8)]
    records += [exact_pass(rng, full), precision(rng, full)]
    assert all(math.isfinite(row["ratio"]) for record in records for row in record["rows"])
    return records
