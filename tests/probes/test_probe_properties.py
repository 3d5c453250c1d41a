"""What must not matter to a probe, on all three paths."""

from typing import Any

import numpy as np
import pytest
from code_streams import planted, probe
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUTS = st.sampled_from(["sparse", "dense"])
EVERY = {"polish": "all", "l2": 1e-6}
FEW = settings(max_examples=6)


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@FEW
@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(0, 100))
def test_shift_and_scale(shift: float, scale: float, seed: int) -> None:
    z, y = planted("dense", n=200, k=3, seed=seed)
    plain = probe(z, y, "dense", **EVERY).table
    moved_z = (z.astype(np.float64) * scale + shift).astype(np.float32)
    moved = probe(moved_z, y, "dense", **EVERY).table
    tolerance = 1e-5 * (1 + abs(shift) / scale)  # float32 rounding of the moved codes
    close(moved.w * scale, plain.w, tolerance)
    close(moved.b + moved.w * shift, plain.b, tolerance)


@FEW
@given(LAYOUTS, st.integers(0, 100))
def test_flipping_signs_flips_slopes(layout: str, seed: int) -> None:
    z, y = planted(layout, n=200, k=3, seed=seed)
    plain, flipped = (probe(s * z, y, layout, **EVERY).table for s in (1, -1))
    close(flipped.w, -plain.w)
    close(flipped.b, plain.b)


@FEW
@given(st.sampled_from(["label", "sparse", "dense"]), st.integers(0, 100))
def test_permutations(layout: str, seed: int) -> None:
    z, y = planted(layout, n=200, k=5, seed=seed)
    rng = np.random.default_rng(seed)
    rows, features, classes = rng.permutation(200), rng.permutation(5), rng.permutation(4)
    plain = probe(z, y, layout, **EVERY)
    permuted = probe(z[rows][:, features], np.argsort(classes)[y[rows]], layout, **EVERY)
    for name in ("b", "w", "train_loss", "val_loss"):
        close(getattr(permuted.table, name), getattr(plain.table, name)[features][:, classes])
    assert permuted.metrics.scalars["map"] == pytest.approx(plain.metrics.scalars["map"], abs=1e-9)
    assert permuted.metrics.scalars["purity_16"] == pytest.approx(plain.metrics.scalars["purity_16"], abs=1e-9)


@FEW
@given(st.sampled_from(["label", "sparse", "dense"]), st.integers(0, 100))
def test_duplicates_and_dead_features(layout: str, seed: int) -> None:
    z, y = planted(layout, n=200, k=4, seed=seed)
    plain = probe(z, y, layout, **EVERY)
    twice = probe(np.repeat(z, 2, axis=0), np.repeat(y, 2), layout, **EVERY)
    close(twice.table.w, plain.table.w, 1e-8)
    close(twice.table.train_loss, plain.table.train_loss)
    wider = probe(np.concatenate([z, np.zeros((200, 1), np.float32)], axis=1), y, layout, **EVERY)
    close(wider.table.w[:4], plain.table.w)
    assert wider.metrics.counts["n_features_dead"] == plain.metrics.counts["n_features_dead"] + 1


@FEW
@given(st.sampled_from(["label", "sparse", "dense"]), st.sampled_from([1e-8, 1e-4, 1e-1]), st.integers(0, 100))
def test_never_worse_than_the_intercept(layout: str, l2: float, seed: int) -> None:
    z, y = planted(layout, n=150, k=4, seed=seed)
    result = probe(z, y, layout, l2=l2, polish="all")
    prior = np.bincount(y, minlength=4) / len(y)
    entropy = -prior * np.log(prior) - (1 - prior) * np.log(1 - prior)
    assert (result.table.train_loss <= entropy + 1e-12).all()
