"""SRHT-PCA by all its ways against the singular value decomposition of the same rows.

The sketched fits are judged by what they leave (a residual close to the best) and by projectors, never by columns.
"""

import os
import signal

import numpy as np
import pytest
import torch
from problems import decaying_rows

from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.batches import ColumnBlocks, generator
from eigenloom.errors import ConfigError, DataError, Interrupted
from eigenloom.linalg.fwht import fwht
from eigenloom.linalg.srht import SRHT
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.provenance import file_digest
from eigenloom.sources.arrays import ArrayRows

METHODS = ("dual", "covariance", "srht")


class RowsOnly:
    """A stream of rows that offers no columns."""

    def __init__(self, rows, batch_size=64):
        self._rows, self._batch_size = rows, batch_size
        self.n_rows, self.n_features = rows.shape

    def __iter__(self):
        return iter(self._rows.float().split(self._batch_size))

    def shuffled(self, generator, skip_rows=0):
        raise NotImplementedError

    def sample(self, n, generator):
        raise NotImplementedError


class ColumnsOnly:
    """A source of columns that offers no rows, counts its reads, and can be interrupted at a block."""

    def __init__(self, rows, interrupt_at=None):
        self._rows, self._at, self.reads = rows, interrupt_at, 0
        self.n_rows, self.n_features = rows.shape

    def column_blocks(self, size):
        self.reads += 1
        for block in self._rows.float().split(size, dim=1):
            if self._at is not None and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                if self._at == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                self._at -= 1
            yield block


def flat_tail(n=64, d=20_000, leading=16, seed=0, mean=0.0):
    """Rows of 16 strong directions over a flat tail, the problem on which a sketch loses most."""
    source = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(d, leading, dtype=torch.float64, generator=source)).Q
    scales = torch.linspace(3.0, 1.0, leading, dtype=torch.float64) * (d / n) ** 0.5
    strong = torch.randn(n, leading, dtype=torch.float64, generator=source) * scales @ frame.T
    return (strong + 0.5 * torch.randn(n, d, dtype=torch.float64, generator=source) + mean).float()


def fit(rows, **parameters):
    rows = ArrayRows(rows) if isinstance(rows, torch.Tensor) else rows
    return SRHTPCA.fit(rows, **{"seed": 0, "n_components": 8, **parameters})


def truth(rows):
    """Squared singular values and right vectors ``[m, d]`` of the centred rows, float64."""
    centred = rows.double() - rows.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    return singular**2, directions


def residual(basis, rows):
    return (basis.decode(basis.encode(rows)).double() - rows.double()).square().sum().item()


def best(rows, k):
    return truth(rows)[0][k:].sum().item()


def projector_error(basis, directions, k):
    """Sine of the largest angle between the leading ``k`` components and the true ones."""
    ours = basis.components[:, :k].double()
    return torch.linalg.matrix_norm(ours - directions[:k].T @ (directions[:k] @ ours), 2).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(40, 300), (300, 40), (30, 30)])
def test_equals_the_svd_where_components_reach_the_rank(method, n, d):
    rank = min(n - 1, d)
    rows = decaying_rows(n, d, mean=0.5)
    basis = fit(rows, method=method, n_components=rank)
    squares, directions = truth(rows)
    assert (basis.explained_variance - squares[:rank] / (n - 1)).abs().max() < 1e-6 * squares[0] / (n - 1)
    assert basis.total_variance == pytest.approx(squares.sum().item() / (n - 1), rel=1e-6)
    assert residual(basis, rows) < 1e-12 * squares.sum()
    assert basis.orthonormality_error < 1e-5
    inner = basis.components.double().T @ basis.components.double()
    assert (inner - torch.eye(rank)).abs().max() < 1e-5
    assert basis.method == method
    assert projector_error(basis, directions, 3) < 1e-4


@pytest.mark.parametrize("method", ["dual", "covariance"])
def test_the_exact_methods_leave_what_the_best_leave(method):
    rows = flat_tail(64, 3000)
    basis = fit(rows, method=method, n_components=16)
    assert residual(basis, rows) == pytest.approx(best(rows, 16), rel=1e-6)
    assert projector_error(basis, truth(rows)[1], 16) < 1e-4


@pytest.mark.parametrize(("r_factor", "bound"), [(4, 1.02), (16, 1.01)])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
def test_the_sketch_stays_close_to_the_best_on_a_flat_tail(r_factor, bound, by):
    rows = flat_tail()
    optimum, excess = best(rows, 16), []
    for seed in range(3):
        basis = fit(by(rows), method="srht", n_components=16, r_factor=r_factor, seed=seed, block_size=1 << 13)
        excess.append(residual(basis, rows) / optimum)
        assert basis.sketch_width == 16 * r_factor
        assert basis.orthonormality_error < 1e-5
    assert max(excess) <= bound
    assert min(excess) >= 1 - 1e-6


def test_power_rounds_and_wider_sketches_help():
    rows = flat_tail()

    def mean_residual(**parameters):
        fits = [fit(rows, method="srht", n_components=16, seed=seed, **parameters) for seed in range(4)]
        return sum(residual(basis, rows) for basis in fits)

    rounds = [mean_residual(power_iter=p) for p in (0, 1, 3)]
    assert rounds[0] > rounds[1] > rounds[2] > 4 * best(rows, 16) * (1 - 1e-6)
    widths = [mean_residual(power_iter=0, r_factor=r) for r in (2, 4, 16)]
    assert widths[0] > widths[1] > widths[2]


def test_the_transpose_of_the_sketch_is_no_basis():
    """What published code returns: ``R^T U``. It fails the test that the lift through the data passes."""
    rows = flat_tail()
    sketch = SRHT(seed=0, n_features=rows.shape[1], width=64, block_size=1 << 15)
    codes = sketch(rows - rows[0])
    right = torch.linalg.svd(codes - codes.mean(0), full_matrices=False).Vh[:16]
    matrix = torch.zeros(rows.shape[1], 64, dtype=torch.float64)
    for block in range(sketch.n_blocks):
        first = block * sketch.block_size
        used = min(sketch.block_size, rows.shape[1] - first)
        signs, chosen = sketch.operator(block)
        unit = torch.zeros(64, len(signs)).scatter_(1, chosen[:, None], 1.0)
        matrix[first : first + used] = ((fwht(unit) * signs)[:, :used].T / 64**0.5).double()
    assert (rows.double() @ matrix - sketch(rows)).abs().max() < 1e-3
    centred = rows.double() - rows.double().mean(0)
    lifted = torch.linalg.qr(matrix @ right.T).Q
    left = (centred - centred @ lifted @ lifted.T).square().sum() / centred.square().sum()
    ours = residual(fit(rows, method="srht", n_components=16, block_size=1 << 15), rows) / centred.square().sum()
    optimum = best(rows, 16) / centred.square().sum()
    assert left > 0.95
    assert ours < 1.02 * optimum < 0.5


@pytest.mark.parametrize("method", ["dual", "srht"])
def test_cutting_into_blocks_does_not_matter(method):
    rows = flat_tail(20, 9000)
    sizes = (1 << 18, 1 << 14) if method == "dual" else (1 << 14,)
    bases = [fit(ColumnsOnly(rows), method=method, block_size=size) for size in sizes]
    bases.append(fit(ArrayRows(rows, 7), method=method, block_size=sizes[0]))
    for other in bases[1:]:
        assert torch.equal(other.components, bases[0].components)
        assert torch.equal(other.scores, bases[0].scores)
    if method == "srht":
        again = fit(RowsOnly(rows, 3), method=method, block_size=sizes[0])
        assert torch.equal(again.components, fit(RowsOnly(rows, 20), method=method, block_size=sizes[0]).components)
        assert residual(again, rows) == pytest.approx(residual(bases[0], rows), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_samples_and_a_constant_do_not_matter(method):
    rows = decaying_rows(50, 400, power=1.0)
    k = 6
    basis = fit(rows, method=method, n_components=k, power_iter=4)
    order = torch.randperm(50, generator=generator(0, "test"))
    constant = torch.randn(400, generator=torch.Generator().manual_seed(5))
    for changed in (rows[order], rows + constant):
        other = fit(changed, method=method, n_components=k, power_iter=4)
        assert ((other.explained_variance - basis.explained_variance) / basis.explained_variance).abs().max() < 1e-4
        assert projector_error(other, basis.components.double().T, k) < 2e-3
    shuffled = fit(rows[order], method=method, n_components=k, power_iter=4)
    assert (shuffled.encode(rows).abs() - basis.encode(rows).abs()).abs().max() < 2e-3 * rows.norm(dim=1).max()


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
def test_a_millionth_of_variation_on_large_weights_is_recovered(method, by):
    source = torch.Generator().manual_seed(1)
    base = 0.04 * torch.randn(30_000, dtype=torch.float64, generator=source)
    variation = torch.randn(12, 3, dtype=torch.float64, generator=source) @ torch.randn(
        3, 30_000, dtype=torch.float64, generator=source
    )
    rows = (base + 1e-6 * variation).float()
    basis = fit(by(rows), method=method, n_components=3)
    squares, directions = truth(rows)
    assert (basis.explained_variance * 11 / squares[:3] - 1).abs().max() < 1e-5
    assert projector_error(basis, directions, 3) < 1e-4
    # What is left is the rounding of the float32 rows; that of the float32 mean is as large, and common to all.
    left = (rows.double() - basis.mean.double() - basis.encode(rows).double() @ basis.components.double().T).norm()
    assert left <= 2 * best(rows, 3) ** 0.5


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
def test_what_is_kept_of_each_row_agrees_with_the_rows(method, by):
    rows = flat_tail(24, 5000, mean=0.3)
    basis = fit(by(rows), method=method)
    centred = rows.double() - rows.double().mean(0)
    left = (basis.decode(basis.encode(rows)).double() - rows.double()).norm(dim=1)
    assert (basis.norms / rows.double().norm(dim=1) - 1).abs().max() < 1e-6
    assert (basis.centred_norms / centred.norm(dim=1) - 1).abs().max() < 1e-6
    assert (basis.residuals / left - 1).abs().max() < 1e-5
    assert (basis.scores - basis.encode(rows)).abs().max() < 1e-5 * basis.scores.abs().max()
    assert (basis.mean - rows.double().mean(0)).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
def test_residuals_that_would_cancel_are_taken_from_differences(method, by):
    rows = flat_tail(9, 4000)
    basis = fit(by(rows), method=method)
    left = (basis.decode(basis.encode(rows)).double() - rows.double()).norm(dim=1)
    assert (basis.residuals < 1e-5 * basis.centred_norms).all()
    assert (left < 1e-5 * basis.centred_norms).all()


def test_columns_are_read_as_often_as_promised():
    rows = flat_tail(24, 5000)
    for method, power_iter, reads in (("dual", 1, 2), ("srht", 0, 3), ("srht", 1, 4), ("srht", 3, 6)):
        source = ColumnsOnly(rows)
        assert isinstance(source, ColumnBlocks)
        fit(source, method=method, power_iter=power_iter)
        assert source.reads == reads


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("n", [2, 3])
def test_very_few_samples(method, n):
    rows = flat_tail(n, 3000)
    basis = fit(rows, method=method, n_components=n - 1)
    assert residual(basis, rows) < 1e-10 * (rows - rows.mean(0)).square().sum()
    with pytest.raises(DataError, match=rf"{n} rows span at most {n - 1} directions about their mean, fewer than"):
        fit(rows, method=method, n_components=n)
    with pytest.raises(DataError, match="1 row has no variance"):
        fit(rows[:1], method=method, n_components=1)


def test_fewer_features_than_the_sketch_has_numbers():
    rows = decaying_rows(50, 12)
    basis = fit(rows, method="srht", n_components=12)
    assert basis.sketch_width == 48
    assert residual(basis, rows) < 1e-10 * rows.square().sum()


@pytest.mark.parametrize("method", ["dual", "srht"])
def test_directions_near_rounding_still_come_out_orthonormal(method):
    source = torch.Generator().manual_seed(3)
    frame = torch.linalg.qr(torch.randn(2000, 6, dtype=torch.float64, generator=source)).Q
    scales = torch.tensor([1.0, 1.0, 1e-1, 1e-2, 3e-3, 1e-3], dtype=torch.float64)
    rows = (torch.randn(20, 6, dtype=torch.float64, generator=source) * scales @ frame.T).float()
    basis = fit(rows, method=method, n_components=6)
    assert basis.orthonormality_error < 1e-5
    assert (basis.residuals < 1e-5 * basis.centred_norms).all()


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_less_rank_than_components_are_refused(method):
    rows = decaying_rows(40, 60)
    rows = rows[:, :5] @ decaying_rows(5, 60, seed=9)
    message = (
        "40 rows vary in 5 directions only, fewer than n_components: 6, and further ones would be arbitrary; lower"
    )
    with pytest.raises(DataError, match=message):
        fit(rows, method=method, n_components=6)
    assert fit(rows, method=method, n_components=5).n_elements == 5


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "Inf"), (-torch.inf, "Inf")])
@pytest.mark.parametrize("row", [0, 11])
def test_what_is_not_finite_is_named(method, by, value, word, row):
    rows = flat_tail(20, 3000)
    rows[row, 2000] = value
    with pytest.raises(DataError, match=f"row {row}, feature 2000 is {word}; 1 entries .* not finite: repair them"):
        fit(by(rows), method=method, block_size=1 << 11, n_components=4)


def test_a_source_can_name_the_place_itself():
    class Named(ColumnsOnly):
        def locate(self, row, feature):
            return f"run-{row}.safetensors, head.weight[{feature}]"

    rows = flat_tail(20, 3000)
    rows[7, 11] = torch.nan
    with pytest.raises(DataError, match=r"run-7.safetensors, head.weight\[11\] is NaN"):
        fit(Named(rows))


@pytest.mark.parametrize("method", ["dual", "srht"])
@pytest.mark.parametrize("by", [ColumnsOnly, RowsOnly])
def test_equal_rows_and_overflowing_rows_are_refused(method, by):
    rows = flat_tail(1, 3000).expand(20, 3000)
    with pytest.raises(DataError, match="all 3000 features are constant over 20 rows"):
        fit(by(rows), method=method)
    with pytest.raises(DataError, match="overflow float32"):
        fit(by(flat_tail(20, 3000) * 1e37), method=method)


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize(
    ("method", "at"), [("dual", at) for at in range(6)] + [("srht", at) for at in (0, 2, 4, 6, 9, 11)]
)
def test_an_interrupted_fit_of_columns_ends_with_the_same_bytes(method, to_file, at, tmp_path):
    rows = flat_tail(20, 20_000)
    parameters = {"method": method, "block_size": 1 << 13, "resume": tmp_path / "state"}
    place = {"components_out": tmp_path / "out" / "components.npy"} if to_file else {}
    with pytest.raises(Interrupted, match="run the same command to resume"):
        fit(ColumnsOnly(rows, at), **parameters, **place)
    resumed = fit(ColumnsOnly(rows), **parameters, **place)
    whole = fit(ColumnsOnly(rows), method=method, block_size=1 << 13)
    for name in ("components", "mean", "scores", "explained_variance", "norms", "centred_norms", "residuals"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert resumed.orthonormality_error == whole.orthonormality_error
    assert not (tmp_path / "state").exists()
    if to_file:
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"components.npy", "mean.npy"}


@pytest.mark.parametrize("at", [0, 3, 5, 8, 11])
def test_an_interrupted_fit_of_rows_ends_with_the_same_bytes(at, tmp_path, monkeypatch):
    monkeypatch.setattr("eigenloom.bases.srht_rows._HELD", 8 * 2000)
    rows = flat_tail(24, 2000)

    class Interrupting(RowsOnly):
        left = at

        def __iter__(self):
            for batch in super().__iter__():
                if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                    if self.left == 0:
                        os.kill(os.getpid(), signal.SIGTERM)
                    type(self).left -= 1
                yield batch

    with pytest.raises(Interrupted):
        fit(Interrupting(rows, 8), method="srht", resume=tmp_path / "state")
    resumed = fit(RowsOnly(rows), method="srht", resume=tmp_path / "state")
    whole = fit(RowsOnly(rows), method="srht")
    for name in ("components", "mean", "scores", "explained_variance", "norms", "residuals"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name


def test_a_snapshot_whose_files_are_gone_starts_over(tmp_path, caplog):
    rows = flat_tail(20, 20_000)
    parameters = {"block_size": 1 << 13, "components_out": tmp_path / "out" / "components.npy"}
    with pytest.raises(Interrupted):
        fit(ColumnsOnly(rows, 4), resume=tmp_path / "state", **parameters)
    (tmp_path / "out" / ".components.npy.partial").unlink()
    resumed = fit(ColumnsOnly(rows), resume=tmp_path / "state", **parameters)
    assert "starting over" in caplog.text
    assert torch.equal(resumed.components, fit(rows, block_size=1 << 13).components)


@pytest.mark.parametrize("method", METHODS)
def test_the_artifact_keeps_large_arrays_in_files_of_their_own(method, tmp_path):
    rows = flat_tail(20, 3000)
    basis = fit(rows, method=method, components_out=tmp_path / "components.npy")
    before = (tmp_path / "components.npy").stat().st_mtime_ns
    save_basis(basis, tmp_path, mapped=True)
    assert (tmp_path / "components.npy").stat().st_mtime_ns == before
    plain = np.load(tmp_path / "components.npy", mmap_mode="r")
    assert (plain.shape, plain.dtype) == ((3000, 8), np.dtype("<f4"))
    again = load_basis(tmp_path, verify=True)
    assert torch.equal(again.components, fit(rows, method=method).components)
    assert torch.equal(again.mean, torch.from_numpy(np.load(tmp_path / "mean.npy")))
    assert torch.equal(again.encode(rows), basis.encode(rows))
    assert torch.equal(again.decode(again.encode(rows)), basis.decode(basis.encode(rows)))
    digest = file_digest(tmp_path / "meta.json")
    assert save_basis(again, tmp_path / "copy", mapped=True) == digest
    assert save_basis(again, tmp_path, mapped=True) == digest
    save_basis(again, tmp_path / "small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"meta.json", "arrays.safetensors", "run.json"}
    assert torch.equal(load_basis(tmp_path / "small").components, again.components)
    names = ("method", "total_variance", "orthonormality_error", "sketch_width", "seed")
    assert [getattr(again, name) for name in names] == [getattr(basis, name) for name in names]


def test_auto_takes_the_first_method_that_fits(monkeypatch):
    assert fit(decaying_rows(100, 30)).method == "dual"
    assert fit(decaying_rows(1100, 30)).method == "covariance"
    monkeypatch.setattr("eigenloom.bases.srht_pca.COVARIANCE_FEATURES", 20)
    assert fit(decaying_rows(1100, 30)).method == "srht"
    assert fit(ColumnsOnly(decaying_rows(1100, 30))).method == "srht"
    monkeypatch.setattr("eigenloom.bases.srht_pca._HELD_BYTES", 1000)
    assert fit(decaying_rows(100, 30)).method == "dual"
    assert fit(RowsOnly(decaying_rows(100, 30))).method == "srht"
    with pytest.raises(ConfigError, match="method: dual needs the columns of all rows at once: 100 rows of 30 numbers"):
        fit(RowsOnly(decaying_rows(100, 30)), method="dual")
    with pytest.raises(ConfigError, match="method: covariance walks over rows, and this source offers columns only"):
        fit(ColumnsOnly(decaying_rows(100, 30)), method="covariance")


@pytest.mark.parametrize("method", ["dual", "covariance", "srht"])
def test_standardized_rows_lend_their_standardization(method):
    rows = decaying_rows(200, 30, mean=3.0)
    moments = moments_of_rows(ArrayRows(rows))
    standardization = Standardization.from_moments(moments, "standard", "layer-03")
    basis = fit(StandardizedRows(ArrayRows(rows, 64), standardization), method=method)
    assert basis.standardization.digest == standardization.digest
    raw = moments.mean / standardization.scale
    inner = basis.components.double().T @ raw
    assert (inner[inner.abs() > 1e-3 * raw.norm()] > 0).all()
    fitted = standardization.apply(rows)
    assert residual(basis, fitted) <= 1.02 * best(fitted, 8)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_components": 0}, "n_components: 0"),
        ({"n_components": 31}, "n_components: 31, but rows have 30 features; use 1..30"),
        ({"method": "exact"}, "method: 'exact' is unknown; use one of auto, dual, covariance, srht"),
        ({"block_size": 1000}, "block_size: 1000 is not a power of two"),
        ({"block_size": 16, "method": "srht"}, "block_size: 16 must be a power of two and hold the 32 numbers"),
        ({"r_factor": 0.5}, "r_factor: 0.5 must be at least 1"),
        ({"power_iter": -1}, "power_iter: -1 at least 0"),
    ],
)
def test_out_of_range_parameters_are_refused(parameters, words):
    with pytest.raises(ConfigError, match=words):
        fit(decaying_rows(100, 30), **parameters)


def test_the_identity_of_long_rows_costs_nothing(tmp_path):
    identity = Standardization.identity(5_000_000, "x")
    assert identity.mean.untyped_storage().nbytes() == 8
    same = Standardization("none", "x", torch.zeros(5_000_000, dtype=torch.float64), torch.ones(5_000_000).double())
    assert identity.digest == same.digest
    basis = fit(flat_tail(20, 3000))
    save_basis(basis, tmp_path)
    again = load_basis(tmp_path)
    assert again.n_features == 3000
    assert again.standardization.digest == basis.standardization.digest
    assert "standardization.mean" not in (tmp_path / "arrays.safetensors").read_bytes().decode("latin1")
