"""Mean, scale, range and class sums of features over labelled rows: what every objective needs before it starts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenloom.probes.rows import Columns, LabelledRows

Floats = NDArray[np.float64]
ENTRIES_PER_PIECE = 1 << 17  # float64 temporaries of a piece stay in the second-level cache


@dataclass(frozen=True, eq=False)
class Scales:
    """Per feature, over the labelled rows of one split, zeros included.

    Fields, float64: ``mean [k]``; ``scale [k]``, the population std, 1 where the feature is dead; ``low [k]`` and
    ``high [k]``, the range of the stored values; ``dead [k]`` bool, constant; ``centred [k, c]``, per class the sum
    of ``z - mean``; ``entries [k]`` int64, stored values (for dense codes all rows); ``nonzeros [k]`` int64.
    """

    mean: Floats
    scale: Floats
    low: Floats
    high: Floats
    dead: NDArray[np.bool_]
    centred: Floats
    entries: NDArray[np.int64]
    nonzeros: NDArray[np.int64]

    def moments(self, other: "Scales", class_counts: NDArray[np.int64]) -> Floats:
        """Return ``[k, c]``: per class the sum of ``t = (z - m)/sigma`` with mean and scale of ``other``."""
        shift = (self.mean - other.mean)[:, None] * class_counts
        return (self.centred + shift) / other.scale[:, None]


def measure(rows: LabelledRows) -> Scales:
    """Measure all features of a split: dense codes in one walk, sparse ones block by block.

    Chunks are merged by Chan's formula in stored order, float64; differences are taken from each chunk's own mean.
    """
    if rows.stream.layout == "dense":
        return _measure_dense(rows)
    parts = [_measure_columns(columns) for columns in rows.columns()]
    fields = [np.concatenate([getattr(p, name) for p in parts]) for name in Scales.__dataclass_fields__]
    return Scales(*fields)


def pieces(chunk: NDArray[np.float32]) -> Iterator[slice]:
    """Cut the features of a feature-major chunk so that one piece fits the cache."""
    size = max(1, ENTRIES_PER_PIECE // max(chunk.shape[1], 1))
    for first in range(0, len(chunk), size):
        yield slice(first, min(first + size, len(chunk)))


def _measure_dense(rows: LabelledRows) -> Scales:
    """Walk feature-major chunks."""
    k, n_classes = rows.n_features, len(rows.class_counts)
    n = 0
    counts = np.zeros(n_classes, dtype=np.int64)
    mean, scatter = np.zeros(k), np.zeros(k)
    low, high = np.full(k, np.inf), np.full(k, -np.inf)
    centred = np.zeros((k, n_classes))
    nonzeros = np.zeros(k, dtype=np.int64)
    for chunk, classes in rows.chunks():
        m = chunk.shape[1]
        if not m:
            continue
        chunk_counts = np.bincount(classes, minlength=n_classes)
        for piece in pieces(chunk):
            values = chunk[piece].astype(np.float64)
            chunk_mean = values.mean(1)
            values -= chunk_mean[:, None]
            delta = chunk_mean - mean[piece]
            cells = classes + n_classes * np.arange(len(values))[:, None]
            sums = np.bincount(cells.ravel(), weights=values.ravel(), minlength=len(values) * n_classes)
            # both parts are moved from their own mean to the common one
            weight = m / (n + m)
            centred[piece] += sums.reshape(-1, n_classes)
            centred[piece] += (delta * (1 - weight))[:, None] * chunk_counts - (delta * weight)[:, None] * counts
            scatter[piece] += np.einsum("ij,ij->i", values, values) + delta**2 * (n * weight)
            mean[piece] += delta * weight
            nonzeros[piece] += np.count_nonzero(chunk[piece], axis=1)
            low[piece] = np.minimum(low[piece], chunk[piece].min(1))
            high[piece] = np.maximum(high[piece], chunk[piece].max(1))
        n += m
        counts += chunk_counts
    entries = np.full(k, n, dtype=np.int64)
    return _finish(mean, scatter / max(n, 1), low, high, low >= high, centred, entries, nonzeros)


def _measure_columns(columns: Columns) -> Scales:
    """Measure gathered columns; rows without an entry count as zeros."""
    n, n_classes, k = columns.n_rows, len(columns.class_counts), len(columns)
    mean, variance = np.zeros(k), np.zeros(k)
    low, high = np.zeros(k), np.zeros(k)
    centred = np.zeros((k, n_classes))
    dead = np.ones(k, dtype=bool)
    for j in range(k):
        values, classes = columns.column(j)
        if not len(values):
            continue
        n_zero = n - len(values)
        wide = values.astype(np.float64)
        low[j], high[j] = wide.min(), wide.max()
        mean[j] = wide.sum() / n
        wide -= mean[j]
        variance[j] = (wide @ wide + n_zero * mean[j] ** 2) / n
        centred[j] = np.bincount(classes, weights=wide, minlength=n_classes)
        if n_zero:
            centred[j] -= mean[j] * columns.zeros(j)
        dead[j] = not n_zero and low[j] == high[j]
    entries = np.diff(columns.offsets)
    return _finish(mean, variance, low, high, dead, centred, entries, entries)


def _finish(
    mean: Floats, variance: Floats, low: Floats, high: Floats, dead: NDArray, centred: Floats, *counts: NDArray
) -> Scales:
    """Take roots; dead features get the scale 1 and an exact mean."""
    scale = np.sqrt(variance)
    dead = dead | (scale == 0)
    return Scales(np.where(dead, low, mean), np.where(dead, 1.0, scale), low, high, dead, centred, *counts)
