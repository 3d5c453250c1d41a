"""Metrics against hand counts, planted features, floors."""

import dataclasses

import numpy as np
import pytest
from code_streams import planted, probe

from eigenloom.probes.metrics import ProbeMetrics
from eigenloom.probes.precision import average_precisions
from eigenloom.probes.problem import cross_entropy
from eigenloom.probes.rows import Columns


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_planted_features_are_found(layout: str) -> None:
    rng = np.random.default_rng(2)
    n = 400
    y = rng.integers(0, 3, n)
    z = np.stack([rng.standard_normal(n), y == 0, y != 1, rng.standard_normal(n)], axis=1).astype(np.float32)
    result = probe(z, y, layout)
    columns, scalars = result.metrics.classes, result.metrics.scalars
    assert columns["best_feature"][:2] == [1, 2]
    assert columns["w"][0] > 0 > columns["w"][1]
    assert columns["ap"][:2] == [1.0, 1.0]
    assert columns["val_ce"][0] < 1e-5
    assert result.top_features[:2, 0].tolist() == [1, 2]
    assert scalars["probe_r"] is not None
    assert 0.6 < scalars["probe_r"] < 1
    two = probe(z, (y == 0).astype(int), layout)
    assert two.metrics.scalars["probe_r"] == pytest.approx(1, abs=1e-4)


def test_probe_r_is_a_ratio_of_sums() -> None:
    z, y = planted("dense", n=500)
    zv, yv = planted("dense", n=300, seed=1)
    yv[:60] = 0  # another prevalence
    result = probe(z, y, "dense", zv, yv)
    p, q = np.bincount(y) / 500, np.bincount(yv) / 300
    h = -q * np.log(p) - (1 - q) * np.log(1 - p)
    ce = []
    for c in range(4):
        j = int(result.table.train_loss[:, c].argmin())
        eta = result.table.b[j, c] + result.table.w[j, c] * zv[:, j].astype(float)
        ce.append(np.mean(np.logaddexp(0, eta) - (yv == c) * eta))
    scalars, columns = result.metrics.scalars, result.metrics.classes
    assert scalars["probe_r"] == pytest.approx(1 - sum(ce) / h.sum(), abs=1e-12)
    own = -q * np.log(q) - (1 - q) * np.log(1 - q)
    assert scalars["probe_r_split_prior"] == pytest.approx(1 - sum(ce) / own.sum(), abs=1e-12)
    np.testing.assert_allclose(columns["margin"], h - ce, atol=1e-12)
    np.testing.assert_allclose(columns["mean_ce"], result.table.val_loss.mean(0), atol=1e-14)
    oracle = result.table.val_loss.min(0)
    assert scalars["oracle_probe_r"] == pytest.approx(1 - oracle.sum() / h.sum(), abs=1e-12)
    assert scalars["floor_map"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("layout", ["label", "sparse", "dense"])
def test_shuffled_labels_know_nothing(layout: str) -> None:
    z, y = planted(layout, n=3000, k=4)
    zv, yv = planted(layout, n=3000, k=4, seed=1)
    rng = np.random.default_rng(0)
    result = probe(z, rng.permutation(y), layout, zv, rng.permutation(yv))
    assert abs(result.metrics.scalars["probe_r"] or 1) < 5e-3
    assert result.metrics.scalars["map"] == pytest.approx(0.25, abs=0.03)
    honest = probe(z, y, layout, zv, yv)
    assert (honest.metrics.scalars["probe_r"] or 0) > 0.02


def test_a_constant_score_is_the_floor() -> None:
    y = np.arange(40) % 4
    constant = Columns(np.arange(1), np.array([0, 40]), np.ones(40, np.float32), y.astype(np.int16), np.bincount(y))
    np.testing.assert_allclose(average_precisions(constant, 0, np.ones(4)), 0.25)
    result = probe(np.stack([np.ones(40), np.full(40, 2.0)], axis=1).astype(np.float32), y, "dense")
    assert result.metrics.scalars["map"] == result.metrics.scalars["floor_map"] == 0.25
    assert result.metrics.scalars["probe_r"] == pytest.approx(0, abs=1e-15)
    assert result.metrics.counts["n_features_dead"] == 2


def test_coverage_is_strict() -> None:
    """A constant score of a class with prevalence .3 has AP exactly .3."""
    y = np.repeat([0, 1], [3, 7])
    result = probe(np.ones((10, 1), np.float32), y, "dense")
    assert result.metrics.classes["ap"] == [0.3, 0.7]
    assert result.metrics.classes["covered"] == [False, True]
    assert result.metrics.scalars["coverage_03"] == 0.5


def test_one_hot_ceiling() -> None:
    z, y = planted("label", n=900, k=12)
    result = probe(z, y, "label")
    scalars = result.metrics.scalars
    assert scalars["probe_r"] is not None
    assert scalars["ceiling_probe_r"] is not None
    assert scalars["probe_r"] < scalars["ceiling_probe_r"] < 1
    pure = probe(np.eye(4, dtype=np.float32)[y], y, "label")
    assert pure.metrics.scalars["probe_r"] == pytest.approx(pure.metrics.scalars["ceiling_probe_r"], abs=1e-9)


def test_balanced_losses_have_their_own_names() -> None:
    z, y = planted("dense")
    document = probe(z, y, "dense", class_weight="inverse_frequency").document()
    assert document["metrics"]["probe_r"] is None
    assert 0 < document["metrics"]["probe_r_balanced"] < 1
    assert document["classes"]["h_val"] == [None] * 4
    np.testing.assert_allclose(document["classes"]["h_val_balanced"], np.log(2))
    assert document["metrics"]["map"] is not None


def test_screened_top_equals_exact_top(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = planted("dense", n=2000, k=60)
    zv, yv = planted("dense", n=2000, k=60, seed=1)
    exact = probe(z, y, "dense", zv, yv, top_n=3)
    monkeypatch.setattr("eigenloom.probes.fit.CANDIDATES_PER_PLACE", 1000)
    everything = probe(z, y, "dense", zv, yv, top_n=3)
    assert exact.top_features.tolist() == everything.top_features.tolist()
    np.testing.assert_array_equal(exact.top_ap, everything.top_ap)
    monkeypatch.undo()
    for layout in ("sparse", "label"):
        z, y = planted(layout, n=2000, k=60)
        result = probe(z, y, layout, top_n=3)
        assert result.top_features.shape == (4, 3)
        assert (np.diff(result.top_ap, axis=1) <= 0).all()
        listed = result.document()["top_features"]
        assert listed["rank"] == [1, 2, 3] * 4
        assert listed["ap"] == result.top_ap.ravel().tolist()
    assert probe(z, y, "label", top_n=0).document()["top_features"]["feature"] == []


def test_the_record_checks_itself() -> None:
    metrics = probe(*planted("dense"), "dense").metrics
    with pytest.raises(AssertionError, match="map"):
        dataclasses.replace(metrics, scalars={**metrics.scalars, "map": 0.5})
    worse = {**metrics.classes, "val_ce": [2 * ce for ce in metrics.classes["val_ce"]]}
    with pytest.raises(AssertionError):
        ProbeMetrics(metrics.scalars, metrics.counts, worse, metrics.baseline, balanced=False)


def test_cross_entropy_at_the_ends() -> None:
    np.testing.assert_allclose(cross_entropy(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.0])), [0, 0, np.log(2)])
