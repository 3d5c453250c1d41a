"""Average precision against scikit-learn, purity against hand counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from eigenloom.probes.precision import (
    average_precisions,
    descending,
    onehot_precisions,
    onehot_purity,
    purity,
    screened_precisions,
)
from eigenloom.probes.rows import Columns


def column(z: NDArray, y: NDArray, n_classes: int, sparse: bool) -> Columns:
    """One column, dense or without its zeros."""
    z, y = np.asarray(z, np.float32), np.asarray(y, np.int16)
    kept = z != 0 if sparse else np.ones(len(z), dtype=bool)
    offsets = np.array([0, kept.sum()])
    return Columns(np.arange(1), offsets, z[kept], y[kept], np.bincount(y, minlength=n_classes))


def expected(z: NDArray, y: NDArray, signs: NDArray) -> NDArray:
    scores = [average_precision_score(y == c, s * z) if (y == c).any() else np.nan for c, s in enumerate(signs)]
    return np.array(scores)


@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(["random", "tied", "sparse", "constant", "onehot"]))
def test_average_precision_equals_scikit_learn(n: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    z = {
        "random": rng.standard_normal(n),
        "tied": rng.integers(-2, 3, n) / 2,
        "sparse": rng.integers(-3, 4, n) * (rng.random(n) < 0.4),
        "constant": np.full(n, -1.5),
        "onehot": (rng.random(n) < 0.3) * 1.0,
    }[kind].astype(np.float32)
    y = rng.integers(0, 4, n)
    signs = rng.choice([-1, 1], 4)
    wanted = expected(z, y, signs)
    order = rng.permutation(n)
    for sparse in (False, True):
        found = average_precisions(column(z, y, 4, sparse), 0, signs)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        moved = average_precisions(column(z[order], y[order], 4, sparse), 0, signs)
        np.testing.assert_allclose(moved, found, rtol=0, atol=1e-15)
    if kind == "onehot":
        counts = np.array([[np.sum((y == c) & (z == 1)) for c in range(4)]], dtype=float)
        closed = onehot_precisions(counts, np.bincount(y, minlength=4).astype(float), signs[None])
        np.testing.assert_allclose(closed[0], wanted, rtol=0, atol=1e-12)


def test_all_positive_and_no_direction() -> None:
    z = np.array([3.0, 1.0, 2.0, 0.0])
    assert average_precisions(column(z, np.zeros(4), 2, False), 0, np.array([1, 1]))[0] == 1.0
    y = np.array([0, 0, 0, 1])
    found = average_precisions(column(z, y, 2, True), 0, np.array([0, 0]))
    np.testing.assert_allclose(found, [0.75, 0.25])
    empty = onehot_precisions(np.zeros((1, 2)), np.array([3.0, 1.0]), np.ones((1, 2)))
    np.testing.assert_allclose(empty, [[0.75, 0.25]])


def test_more_than_256_classes() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal(900).astype(np.float32), np.arange(900) % 300
    found = average_precisions(column(z, y, 300, False), 0, np.ones(300))
    np.testing.assert_allclose(found, expected(z, y, np.ones(300)), atol=1e-12)


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=30))
def test_descending_order(values: list[float]) -> None:
    z = np.array(values, dtype=np.float32)
    np.testing.assert_array_equal(z[descending(z)], np.sort(z)[::-1])


def test_screening_is_close() -> None:
    rng = np.random.default_rng(5)
    n, bins = 20_000, 256
    y = rng.integers(0, 3, n)
    z = (rng.standard_normal(n) + y).astype(np.float32)
    cells = np.clip(((z - z.min()) / (z.max() - z.min()) * bins).astype(int), 0, bins - 1)
    counts = np.zeros((1, bins, 3), dtype=np.int64)
    np.add.at(counts, (0, cells, y), 1)
    signs = np.array([[-1, 1, 1]])
    shuffled = rng.permutation(bins)
    estimate = screened_precisions(counts[:, shuffled], np.arange(bins)[None, shuffled].astype(float), signs)
    np.testing.assert_allclose(estimate[0], expected(z, y, signs[0]), atol=5e-3)


def test_purity_of_few_rows() -> None:
    dead = column(np.zeros(40), np.arange(40) % 4, 4, True)
    assert purity(dead, 0, 1.0) == (0.0, 0)
    four = column(np.r_[np.ones(4), np.zeros(36)], np.r_[0, 1, 2, 3, np.zeros(36)], 4, True)
    assert purity(four, 0, 1.0) == (1 / 16, 4)
    eight = column(np.r_[np.ones(8), np.zeros(36)], np.r_[np.full(8, 2), np.zeros(36)], 4, True)
    assert purity(eight, 0, 1.0) == (0.5, 8)
    twenty = column(np.r_[np.arange(1, 21), np.zeros(36)], np.r_[np.full(20, 2), np.zeros(36)], 4, True)
    assert purity(twenty, 0, 1.0) == (1.0, 16)
    assert purity(twenty, 0, -1.0) == (0.0, 0)
    assert onehot_purity(np.array([0, 20, 0]), 1.0) == (1.0, 16)
    assert onehot_purity(np.array([0, 8, 0]), 1.0) == (0.5, 8)
    assert onehot_purity(np.array([24, 8, 0]), 1.0) == (0.75, 16)
    assert onehot_purity(np.array([24, 8, 0]), -1.0) == (0.0, 0)


def test_purity_shares_the_last_place() -> None:
    # 12 sure rows of class 0; 8 rows tied for the last 4 places, 6 of them of class 1 and 2 of class 0
    z = np.r_[np.full(12, 3.0), np.full(8, 2.0), np.full(30, 1.0)]
    y = np.r_[np.zeros(12), np.full(6, 1), np.zeros(2), np.full(30, 2)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(z))
        assert purity(column(z[order], y[order], 3, False), 0, 1.0) == (13 / 16, 16)
    assert purity(column(-z, y, 3, False), 0, -1.0) == (13 / 16, 16)
    assert purity(column(z, y, 3, False), 0, -1.0) == (1.0, 16)


def test_class_without_rows_has_no_precision() -> None:
    z, y = np.array([1.0, 2.0]), np.array([0, 0])
    assert np.isnan(average_precisions(column(z, y, 2, False), 0, np.array([1, 1]))[1])
    assert average_precisions(column(z, y, 2, True), 0, np.array([1, 1]))[0] == pytest.approx(1.0)
