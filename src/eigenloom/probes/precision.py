"""Average precision with ties, one sort per feature for all classes; purity of the best rows.

The score of a pair is ``sign(w) z``: AP of ``b + w z`` depends on nothing else, and comparing codes instead of logits
avoids ties made by rounding. Rows are validation rows with a class.
"""

import numpy as np
from numpy.typing import NDArray

from eigenloom.probes.rows import Columns

PLACES = 16
Floats = NDArray[np.float64]


def average_precisions(columns: Columns, position: int, signs: NDArray) -> Floats:
    """Return the AP ``[c]`` of one column for every class, equal to scikit-learn's ``average_precision_score``.

    Every positive contributes precision at the end of its group of equal scores, so one sort serves all classes.
    Rows without an entry are one group at the score 0. A class without rows has no AP: NaN.

    Args:
        columns: gathered validation columns.
        position: of the column.
        signs: ``[c]``, sign of w; 0 gives the prevalence.
    """
    values, classes = columns.column(position)
    totals, zeros = columns.class_counts, columns.zeros(position)
    n, n_zero = columns.n_rows, int(zeros.sum())
    order = descending(values)
    ordered = values[order]
    by_class = np.argsort(_narrow(classes)[order], kind="stable")  # places in the order, class after class
    counts = totals - zeros
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(by_class)) - np.repeat(starts, counts)
    first, last, rank_first, rank_last = _spread_ties(ordered, by_class, rank, starts[counts > 0])
    falling = signs > 0
    n_above = int(np.count_nonzero(values > 0)) if n_zero else len(values)
    hits_above = np.bincount(classes[values > 0], minlength=len(totals)) if n_zero else totals
    if n_zero:  # the rows without an entry stand between the positive and the negative scores
        below = by_class >= n_above
        first, last = first + n_zero * below, last + n_zero * below
        passed = np.repeat(zeros, counts) * below
        rank_first, rank_last = rank_first + passed, rank_last + passed
    if falling.all():
        precision = (rank_last + 1) / (last + 1)
    else:
        down = np.repeat(falling, counts)
        hits = np.where(down, rank_last + 1, np.repeat(totals, counts) - rank_first)
        precision = hits / np.where(down, last + 1, n - first)
    zero_hits = np.where(falling, hits_above + zeros, totals - hits_above)
    zero_rows = np.where(falling, n_above + n_zero, n - n_above)
    total = _sums(precision, starts, counts) + zeros * zero_hits / np.maximum(zero_rows, 1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, np.where(signs == 0, totals / n, total / totals), np.nan)


def _spread_ties(
    ordered: NDArray, by_class: NDArray, rank: NDArray, starts: NDArray
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return first and last place, and first and last rank in its class, of the equal scores around each entry."""
    tied = ordered[1:] == ordered[:-1]
    if not tied.any():
        return by_class, by_class, rank, rank
    place = np.arange(len(ordered))
    changes = np.flatnonzero(np.diff(np.concatenate([[False], tied, [False]]).astype(np.int8)))
    lows, highs = changes[::2], changes[1::2]  # each tie runs from a low to a high place, both included
    lengths = highs - lows + 1
    members = np.repeat(lows - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    lowest, highest = place.copy(), place
    lowest[members], highest[members] = np.repeat(lows, lengths), np.repeat(highs, lengths)
    first, last = lowest[by_class], highest[by_class]
    changed = np.ones(len(first) + 1, dtype=bool)
    np.not_equal(first[1:], first[:-1], out=changed[1:-1])
    changed[starts] = True
    if changed.all():
        return first, last, rank, rank
    runs = np.flatnonzero(changed)
    lengths = np.diff(runs)
    return first, last, np.repeat(rank[runs[:-1]], lengths), np.repeat(rank[runs[1:] - 1], lengths)


def _sums(values: Floats, starts: NDArray, counts: NDArray) -> Floats:
    """Sum consecutive stretches; an empty one gives 0."""
    total = np.zeros(len(counts))
    filled = counts > 0
    if filled.any():
        total[filled] = np.add.reduceat(values, starts[filled])
    return total


def descending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the order of falling values: two stable passes of a radix sort over the halves of the float's bits."""
    bits = np.ascontiguousarray(values).view(np.int32)
    # as unsigned integers the bits of negative floats already fall with the value and lie above the others',
    # whose bits rise with it and are therefore flipped
    keys = np.where(bits < 0, bits, bits ^ np.int32(0x7FFFFFFF)).view(np.uint32)
    low, high = keys.astype(np.uint16), (keys >> 16).astype(np.uint16)
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")]


def _narrow(classes: NDArray[np.int16]) -> NDArray:
    """Use the smallest integers, which numpy sorts by counting."""
    return classes.astype(np.uint8) if len(classes) and classes.max() < 256 else classes


def onehot_precisions(n11: Floats, totals: Floats, signs: NDArray) -> Floats:
    """Return APs ``[f, c]`` of one-hot features in closed form; NaN where a class has no rows.

    Args:
        n11: ``[f, c]`` rows of each class that have the feature.
        totals: ``[c]`` rows of each class.
        signs: ``[f, c]`` sign of w.
    """
    n = totals.sum()
    n1 = n11.sum(1, keepdims=True)
    prevalence = totals / n
    with np.errstate(divide="ignore", invalid="ignore"):
        first, first_rows = np.where(signs < 0, totals - n11, n11), np.where(signs < 0, n - n1, n1)
        precision = np.where(first_rows > 0, first / np.maximum(first_rows, 1), prevalence)
        recall = first / totals
        result = recall * precision + (1 - recall) * prevalence
        return np.where(totals > 0, np.where(signs == 0, prevalence, result), np.nan)


def screened_precisions(class_counts: NDArray[np.int64], centres: Floats, signs: NDArray) -> Floats:
    """Estimate APs ``[f, c]`` from histograms in mid-rank form; for choosing candidates, never reported.

    Args:
        class_counts: ``[f, b, c]`` rows of each class in each bin.
        centres: ``[f, b]`` place of each bin.
        signs: ``[f, c]`` sign of w.
    """
    order = np.argsort(-centres, axis=1, kind="stable")
    counts = np.take_along_axis(class_counts, order[:, :, None], axis=1).astype(np.float64)
    falling = _mid_rank(counts)
    rising = _mid_rank(counts[:, ::-1])
    prevalence = counts.sum(1) / counts.sum((1, 2))[:, None]
    return np.where(signs > 0, falling, np.where(signs < 0, rising, prevalence))


def _mid_rank(counts: Floats) -> Floats:
    """Sum ``(c_k/P)(TP_<k + (c_k+1)/2)/(T_<k + (m_k+1)/2)`` over bins in order of the score."""
    rows = counts.sum(2, keepdims=True)
    hits_before = np.cumsum(counts, axis=1) - counts
    rows_before = np.cumsum(rows, axis=1) - rows
    terms = counts * (hits_before + (counts + 1) / 2) / (rows_before + (rows + 1) / 2)
    return terms.sum(1) / np.maximum(counts.sum(1), 1)


def purity(columns: Columns, position: int, sign: float) -> tuple[float, int]:
    """Return the purity of the 16 rows of highest ``sign z``, and how many of the 16 places were filled.

    The largest label share is taken over 16 places, so a missing row counts as impure. Sparse codes offer only rows
    with ``sign z > 0``: a zero is no evidence. Rows tied at the last place share the open places in proportion.
    """
    values, classes = columns.column(position)
    scores = sign * values
    if not columns.shared:
        kept = scores > 0
        scores, classes = scores[kept], classes[kept]
    edge = np.partition(scores, -PLACES)[-PLACES] if len(scores) > PLACES else -np.inf
    sure = np.bincount(classes[scores > edge], minlength=len(columns.class_counts)).astype(np.float64)
    return _share(sure, np.bincount(classes[scores == edge], minlength=len(sure)))


def onehot_purity(counts: NDArray, sign: float) -> tuple[float, int]:
    """Return the same for a one-hot feature with ``counts [c]`` rows of each class: one big tie, or nothing."""
    return _share(np.zeros(len(counts)), counts if sign > 0 else np.zeros(len(counts)))


def _share(sure: Floats, tied: NDArray) -> tuple[float, int]:
    """Give the open places to the tied rows in proportion to their labels."""
    found = int(min(sure.sum() + tied.sum(), PLACES))
    if tied.sum():
        sure = sure + tied * ((found - sure.sum()) / tied.sum())
    return float(sure.max(initial=0.0) / PLACES), found
