"""Every path against the reference, hard pairs included; streaming against memory."""

from typing import Any

import numpy as np
import pytest
import torch
from code_streams import ArrayCodes, planted, probe

from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.probes import polish
from eigenloom.probes.fit import ProbeResult, fit_probe
from eigenloom.probes.histogram import HistogramBuilder, HistogramSums
from eigenloom.probes.problem import APPROXIMATE, CONVERGED, DEAD, SKIPPED
from eigenloom.probes.reference import fit_reference
from eigenloom.probes.rows import Columns, LabelledRows
from eigenloom.probes.sparse import ColumnSums

TOLERANCE = {"label": 1e-9, "sparse": 1e-8, "dense": 1e-8}
LAYOUTS = ("label", "sparse", "dense")


def assert_reference(result: ProbeResult, z: Any, y: Any, tolerance: float) -> None:
    """Compare every converged pair with the slow fit, relative to ``1 + abs``."""
    settings = result.settings
    for j, c in np.argwhere(result.table.status == CONVERGED):
        target = (np.asarray(y) == c).astype(float)
        n, n_positive = len(target), target.sum()
        weights = np.where(target == 1, n / (2 * n_positive), n / (2 * (n - n_positive))) if settings.weighted else None
        expected = fit_reference(z[:, j], target, l2=settings.l2, weights=weights, objective=settings.objective)
        for name, value in zip(("b", "w", "train_loss"), expected, strict=True):
            found = getattr(result.table, name)[j, c]
            assert abs(found - value) <= tolerance * (1 + abs(value)), (j, c, name, found, value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "more",
    [{}, {"l2": 1e-4}, {"class_weight": "inverse_frequency"}, {"objective": "saev", "l2": 1e-3}],
    ids=["default", "scaled", "weighted", "saev"],
)
def test_equals_reference(layout: str, more: dict[str, Any]) -> None:
    z, y = planted(layout)
    zv, yv = planted(layout, n=400, seed=1)
    result = probe(z, y, layout, zv, yv, polish="all", **more)
    assert (result.table.status == CONVERGED).all()
    assert_reference(result, z, y, TOLERANCE[layout])
    j, c = 3, 1
    eta = result.table.b[j, c] + result.table.w[j, c] * zv[:, j].astype(float)
    target = (yv == c).astype(float)
    n, n_positive = len(yv), target.sum()
    weights = np.where(target == 1, n / 2 / n_positive, n / 2 / (n - n_positive)) if "class_weight" in more else None
    loss = np.average(np.logaddexp(0, eta) - target * eta, weights=weights)
    assert result.table.val_loss[j, c] == pytest.approx(loss, abs=1e-12)


def hard_features() -> tuple[np.ndarray, np.ndarray]:
    """One column per hard case, for class 0 (40 rows of 240) against class 1."""
    rng = np.random.default_rng(7)
    n = 240
    y = (np.arange(n) >= 40).astype(np.int64)
    noise = rng.standard_normal(n)
    columns = [
        np.where(y == 0, 2.0, 1.0) + 0.1 * rng.random(n),  # separable
        np.where(y == 0, 2.0, 1.0) + 0.1 * rng.random(n) - 0.6 * (np.arange(n) == 5),  # nearly separable
        (y == 0).astype(float),  # the class itself
        (y == 1).astype(float),  # its complement
        np.full(n, 3.0),  # constant
        np.where(np.arange(n) == 50, 100.0, noise),  # an outlier at 100 sigma
        np.where(np.arange(n) == 3, 1e-3, 0.0),  # one small row of the class, else off
        1e4 + noise + (y == 0),  # far from zero
        1e-6 * (noise + (y == 0)),  # tiny
        np.abs(noise) + 1,  # always on
        np.where((y == 0) & (np.arange(n) < 20), 0.5, 0.0),  # pure, half of the class
    ]
    return np.stack(columns, axis=1).astype(np.float32), y


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("l2", [1e-8, 1e-4])
def test_hard_pairs(layout: str, l2: float) -> None:
    z, y = hard_features()
    table = probe(z, y, layout, l2=l2).table
    assert (table.steps <= 50).all()
    assert (table.status[4] == DEAD).all()
    assert (table.w[4] == 0).all()
    assert table.train_loss[4, 0] == pytest.approx(-(1 / 6) * np.log(1 / 6) - (5 / 6) * np.log(5 / 6), abs=1e-12)
    assert (np.delete(table.status, 4, axis=0) == CONVERGED).all()
    assert all(np.isfinite(getattr(table, name)).all() for name in ("b", "w", "train_loss", "val_loss"))
    for j in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10):
        _, w, loss = fit_reference(z[:, j], (y == 0).astype(float), l2=l2)
        sigma = z[:, j].astype(float).std()
        assert table.w[j, 0] * sigma == pytest.approx(w * sigma, rel=1e-6, abs=1e-8), j
        assert table.train_loss[j, 0] == pytest.approx(loss, rel=1e-6, abs=1e-13), j


@pytest.mark.parametrize("l2", [1e-8, 1e-4, 1e-1])
def test_hard_tables(l2: float) -> None:
    """Pure, empty, single-row and whole-class clusters."""
    cells = [[(0, 40)], [(1, 1)], [(0, 1)], [(1, 30), (0, 2)], [(1, 60)], [(2, 25)], [(2, 1), (1, 9)]]
    z = [feature for feature, parts in enumerate(cells) for _, count in parts for _ in range(count)]
    y = np.array([label for parts in cells for label, count in parts for _ in range(count)])
    codes = np.eye(8, dtype=np.float32)[z]
    result = probe(codes, y, "label", l2=l2)
    assert (result.table.status[:7] == CONVERGED).all()
    assert (result.table.status[7] == DEAD).all()
    assert result.table.steps.max() <= 19
    assert_reference(result, codes, y, 1e-7 if l2 < 1e-6 else 1e-9)


def test_two_rows() -> None:
    for layout in LAYOUTS:
        result = probe(np.eye(2, dtype=np.float32), np.array([0, 1]), layout)
        assert (result.table.status == CONVERGED).all()
        assert result.metrics.scalars["map"] == 1.0
        assert result.metrics.scalars["probe_r"] > 0.99


def test_sharpness_bands() -> None:
    """Unpolished fits are as good as their sharpness promises, and say so."""
    rng = np.random.default_rng(11)
    n = 20_000
    y = rng.integers(0, 2, n)
    gaps = (0.1, 1.0, 3.0, 5.0)
    z = np.stack([*(rng.standard_normal(n) + gap * y for gap in gaps), rng.random(n) + y], axis=1).astype(np.float32)
    rough, exact, best = (probe(z, y, "dense", polish=kind, cut=5000) for kind in ("none", "all", "best"))
    error = np.abs(rough.table.w - exact.table.w) / (1 + np.abs(exact.table.w))
    good = rough.table.status == CONVERGED
    assert good[:2].all()
    assert (rough.table.status[4] == APPROXIMATE).all()
    assert error[good].max() < 2e-6
    assert error[2:4].max() < 1e-2
    assert (best.table.status == CONVERGED).all()
    np.testing.assert_allclose(best.table.w, exact.table.w, rtol=1e-8)


def test_sums_over_bins_are_of_second_order() -> None:
    """Each of the six sums, on bins of sharpness 1/2 filled evenly: the error left is of fourth order."""
    z = np.linspace(-2, 2, 40_000, dtype=np.float32) ** 3 / 4
    classes = np.zeros(len(z), dtype=np.int16)
    columns = Columns(np.arange(1), np.array([0, len(z)]), z, classes, np.array([len(z)]))
    builder = HistogramBuilder(np.zeros(1), np.ones(1), np.array([-2.0]), np.array([2.0]), 32)
    builder.add(z[None], classes)
    binned, exact = HistogramSums(builder.finish()), ColumnSums(columns, np.zeros(1), np.ones(1))
    row, beta, u = torch.zeros(1, dtype=torch.int64), torch.tensor([0.7]).double(), torch.tensor([4.0]).double()
    assert binned.sharpness(row, u).item() == pytest.approx(0.5)
    terms = torch.stack([*exact.derivatives(row, row, beta, u)[:, 0], exact.softplus(row, row, beta, u)[0]])
    found = torch.stack([*binned.derivatives(row, row, beta, u)[:, 0], binned.softplus(row, row, beta, u)[0]])
    error = ((found - terms) / len(z)).abs()
    assert error[[0, 1, 5]].max() < 1e-5  # 1e-4 and more without any one of their corrections
    assert error[2:4].max() < 1e-3  # the Hessian only steers: first order in the variances would be enough
    assert error[4] < 9e-5


def test_long_tails_use_asinh_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    n = 20_000
    y = rng.integers(0, 2, n)
    z = (1 / (np.abs(rng.standard_normal((n, 1)) + 2 * y[:, None]) + 1e-4)).astype(np.float32)
    assert (z.max() - z.min()) / z.std() > 40
    exact, rough = (probe(z, y, "dense", polish=kind, cut=5000) for kind in ("all", "none"))
    monkeypatch.setattr("eigenloom.probes.histogram.WIDE_RANGE", np.inf)
    uniform = probe(z, y, "dense", polish="none", cut=5000)
    error = np.abs(rough.table.train_loss - exact.table.train_loss).max()
    assert error < 2e-3
    assert error < 0.1 * np.abs(uniform.table.train_loss - exact.table.train_loss).max()
    assert (rough.table.status == APPROXIMATE).all()


def test_polish_limit_keeps_the_best() -> None:
    z, y = planted("dense", k=40)
    result = probe(z, y, "dense", polish_limit=0)
    exact = probe(z, y, "dense", polish="all")
    assert (result.table.status != SKIPPED).all()
    np.testing.assert_allclose(result.metrics.classes["train_ce"], exact.metrics.classes["train_ce"], rtol=1e-10)
    assert result.metrics.classes["best_feature"] == exact.metrics.classes["best_feature"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("more", [{}, {"class_weight": "inverse_frequency"}], ids=["plain", "weighted"])
def test_streaming_equals_memory(layout: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = planted(layout, n=700, k=9)
    zv, yv = planted(layout, n=500, k=9, seed=1)
    whole = probe(z, y, layout, zv, yv, cut=10_000, **more)
    monkeypatch.setattr("eigenloom.probes.rows.MIB", 1 << 13)  # a "megabyte" of 8 KiB forces blocks of few columns
    for cut in (7, 97):
        parts = probe(z, y, layout, zv, yv, cut=cut, memory_mb=1, **more)
        for name in ("b", "w", "train_loss", "val_loss"):
            np.testing.assert_allclose(getattr(parts.table, name), getattr(whole.table, name), rtol=1e-11, atol=1e-12)
        for name, value in whole.metrics.scalars.items():
            assert parts.metrics.scalars[name] == (pytest.approx(value, abs=1e-12) if value is not None else None)
        assert parts.top_features.tolist() == whole.top_features.tolist()


def test_histogram_feature_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = planted("dense", k=11)
    whole = probe(z, y, "dense")
    monkeypatch.setattr(polish, "MIB", 1 << 17)  # 32 KiB for histograms of 28 KiB each: one at a time
    single = probe(z, y, "dense", memory_mb=1)
    np.testing.assert_allclose(single.table.b, whole.table.b, rtol=1e-12, atol=1e-12)


def test_sparse_beyond_the_exact_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = planted("sparse", n=900, k=24)
    exact = probe(z, y, "sparse")
    monkeypatch.setattr(polish, "EXACT_CELLS", 0)
    rough = probe(z, y, "sparse")
    assert set(np.unique(rough.table.status)) <= {CONVERGED, APPROXIMATE}
    np.testing.assert_allclose(rough.table.train_loss, exact.table.train_loss, atol=1e-5)
    assert rough.metrics.classes["best_feature"] == exact.metrics.classes["best_feature"]
    np.testing.assert_allclose(rough.metrics.classes["val_ce"], exact.metrics.classes["val_ce"], rtol=1e-10)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gathered block of columns exceeds half of the bound, whatever k."""
    sizes = []
    original = LabelledRows.columns

    def spy(self: LabelledRows, features: Any = None) -> Any:
        for columns in original(self, features):
            sizes.append(columns.values.nbytes)
            yield columns

    monkeypatch.setattr(LabelledRows, "columns", spy)
    monkeypatch.setattr("eigenloom.probes.rows.MIB", 1 << 14)
    for k in (8, 64):
        probe(*planted("dense", n=1000, k=k), "dense", memory_mb=2)
        assert max(sizes) <= 1 << 14
    with pytest.raises(ConfigError, match="the least is 5"):
        probe(*planted("dense", n=10_000), "dense", memory_mb=2)


def test_void_rows_do_not_matter() -> None:
    z, y = planted("dense")
    plain = probe(z, y, "dense", classes=["a", "b", "c", "d"])
    wild = np.where(np.arange(600)[:, None] % 2 == 0, 1e3, -1e3) * np.ones((600, 6), np.float32)
    both = np.stack([z, wild], axis=1).reshape(1200, 6)
    labels = np.stack([np.where(y >= 2, y + 1, y), np.full(600, 2)], axis=1).reshape(-1)
    masked = probe(both, labels, "dense", classes=["a", "b", "void", "c", "d"], void=2)
    np.testing.assert_allclose(masked.table.b, plain.table.b, rtol=1e-12, atol=1e-13)
    assert masked.metrics.classes["class"] == ["a", "b", "c", "d"]
    as_class = probe(both, labels, "dense", classes=["a", "b", "void", "c", "d"])
    assert as_class.metrics.counts["n_classes"] == 5


def test_refusals() -> None:
    z, y = planted("dense")
    with pytest.raises(DataError, match="599 labels for 600 rows"):
        probe(z, y[:-1], "dense", z, y)
    with pytest.raises(DataError, match="row 0 has label"):
        probe(z, y * 0 + 9, "dense", classes=["a"] * 4)
    with pytest.raises(ConfigError, match="l2: 0 is not above 0"):
        probe(z, y, "dense", l2=0)
    with pytest.raises(ConfigError, match="polish"):
        probe(z, y, "dense", polish="some")
    with pytest.raises(DataError, match="no class left"):
        probe(z, y * 0, "dense", classes=["a", "b"])
    with pytest.raises(MismatchError, match="encode both splits again"):
        fit_probe(ArrayCodes(z), y, ArrayCodes(z[:, :5]), y, classes=list("abcd"))
    with pytest.raises(DataError, match="void"):
        probe(z, y * 0, "dense", classes=["a", "b"], void=0)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_non_finite_codes_are_found(layout: str) -> None:
    z, y = planted(layout)
    row, feature = 597, int(np.flatnonzero(z[597])[-1])
    stream = ArrayCodes(z, layout)
    z = z.copy()
    z[row, feature] = np.nan
    stream.z = torch.from_numpy(z)
    with pytest.raises(DataError, match=f"row {row} at feature {feature} is nan"):
        fit_probe(stream, y, ArrayCodes(np.nan_to_num(z), layout), y, classes=list("abcd"))


def test_absent_classes_are_skipped() -> None:
    z, y = planted("dense")
    zv, yv = planted("dense", seed=1)
    result = probe(z, np.where(y == 3, 2, y), "dense", zv, yv, classes=["a", "b", "c", "d", "e"])
    assert (result.table.status[:, 3:] == SKIPPED).all()
    columns = result.metrics.classes
    assert columns["skipped"] == [None, None, None, "no row in probe_train", "no row in probe_train"]
    assert columns["ap"][3] is None
    assert result.metrics.counts["n_evaluated"] == 3
    scalars = result.metrics.scalars
    assert scalars["map_all"] == pytest.approx(scalars["map"] * 3 / 5)
    assert scalars["probe_r_all"] < scalars["probe_r"]
