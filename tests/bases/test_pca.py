"""PCA against the singular values of the same rows, at every size, mean and cut."""

import os
import signal

import pytest
import torch
from problems import decaying_rows

from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.pca import PCA
from eigenloom.errors import ConfigError, DataError, Interrupted, MismatchError
from eigenloom.linalg.accumulate import BLOCK_ROWS
from eigenloom.moments import Standardization, StandardizedRows, merge, moments_of_rows
from eigenloom.sources.arrays import ArrayRows


def fit(rows, batch_size=8192, **parameters):
    return PCA.fit(ArrayRows(rows, batch_size), seed=0, **parameters)


def truth(rows):
    """Variances and directions from the float64 singular value decomposition."""
    centred = rows.double() - rows.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    return singular**2 / (len(rows) - 1), directions


def projector_error(pca, directions, k):
    ours, theirs = pca.components[:k].double(), directions[:k]
    return (ours.T @ ours - theirs.T @ theirs).norm(2).item()


def nmse(pca, rows):
    residual = pca.decode(pca.encode(rows)).double() - rows.double()
    return (residual.square().sum() / (rows.double() - rows.double().mean(0)).square().sum()).item()


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 5e-7), (10.0, 5e-7), (1e4, 5e-6)])
def test_equals_the_svd_of_the_centred_rows(mean, tolerance):
    rows = decaying_rows(6000, 24, power=1.0, mean=mean)
    pca = fit(rows, 1000)
    variances, directions = truth(rows)
    assert (pca.explained_variance - variances).abs().max() < tolerance * variances[0]
    assert pca.total_variance == pytest.approx(variances.sum().item(), rel=tolerance)
    gaps = (variances[:-1] - variances[1:] > 0.02 * variances[0]).nonzero().squeeze(1) + 1
    assert len(gaps) >= 4
    assert max(projector_error(pca, directions, int(k)) for k in gaps) < 20 * tolerance
    assert nmse(pca, rows) < 1e-12
    assert (pca.rank, pca.n_elements, pca.rows_used) == (24, 24, 6000)


def test_massive_dimensions_leave_the_small_ones_alone():
    rows = decaying_rows(5000, 32)
    rows[:, :4] = 300 + 100 * rows[:, :4]
    variances, _ = truth(rows)
    pca = fit(rows)
    assert (pca.explained_variance - variances).abs().max() < 1e-7 * variances[0]
    # Small variances beside ones 10^4 times as large keep the digits that float32 products leave them.
    assert ((pca.explained_variance - variances).abs() / variances).max() < 1e-3


def test_known_moments_replace_the_pass():
    rows = decaying_rows(3000, 10, mean=4.0)
    moments = moments_of_rows(ArrayRows(rows))
    standardization = Standardization.from_moments(moments)

    class Unread(ArrayRows):
        def __iter__(self):
            raise AssertionError("the rows were read")

    quick = PCA.fit(StandardizedRows(Unread(rows), standardization, moments), seed=0)
    slow = PCA.fit(StandardizedRows(ArrayRows(rows), standardization), seed=0)
    assert ((quick.explained_variance - slow.explained_variance).abs() / slow.explained_variance).max() < 1e-6
    assert (quick.components - slow.components).abs().max() < 1e-5
    assert (quick.mean - slow.mean).abs().max() < 1e-6
    with pytest.raises(MismatchError, match="the moments are of 3000 rows, the data have 2000; measure them again"):
        PCA.fit(StandardizedRows(ArrayRows(rows[:2000]), standardization, moments), seed=0)


def test_moments_of_random_splits_merge_to_the_same_basis():
    rows = decaying_rows(4000, 12, mean=10.0)
    parts = [moments_of_rows(ArrayRows(part)) for part in rows.split([1, 900, 2100, 999])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    identity = Standardization.identity(12)
    split, whole = PCA.fit(StandardizedRows(ArrayRows(rows), identity, merged), seed=0), fit(rows)
    assert ((split.explained_variance - whole.explained_variance).abs() / whole.explained_variance).max() < 1e-6
    assert (split.components - whole.components).abs().max() < 1e-4


@pytest.mark.parametrize("whiten", [False, True])
def test_fewer_rows_than_features_completes_with_null_components(whiten):
    rows = decaying_rows(9, 30, mean=1.0)
    pca = fit(rows, whiten=whiten)
    assert pca.rank == 8
    assert pca.components.shape == (30, 30)
    assert (pca.components @ pca.components.T - torch.eye(30)).abs().max() < 1e-5
    z = pca.encode(rows)
    assert torch.isfinite(z).all()
    assert z[:, 8:].abs().max() < 1e-5
    assert nmse(pca, rows) < 1e-10
    assert fit(rows, n_components=5).rank == 5
    assert fit(rows, rank_tol=0.0).rank == 8  # n - 1 whatever the rounding
    with pytest.raises(DataError, match="9 rows cannot carry n_components: 10"):
        fit(rows, n_components=10)


@pytest.mark.parametrize("whiten", [False, True])
def test_energies_give_the_error_at_every_k(whiten):
    rows = decaying_rows(400, 10, mean=2.0)
    pca = fit(rows, n_components=8, whiten=whiten)
    z = pca.encode(rows)
    energies = pca.code_energies(z)
    total = (rows - pca.mean).double().square().sum(1)
    order = energies.argsort(dim=1, descending=True, stable=True)
    kept = energies.gather(1, order).double().cumsum(1)
    for k in range(1, 9):
        sparse = torch.zeros_like(z).scatter(1, order[:, :k], z.gather(1, order[:, :k]))
        residual = (pca.decode(sparse) - rows).double().square().sum(1)
        assert (residual - (total - kept[:, k - 1])).abs().max() < 1e-6 * total.max()


def test_whitened_codes_have_unit_variance_and_come_back():
    rows = decaying_rows(3000, 12, power=1.5, mean=10.0)
    rows[:, 4] = 0.1
    pca = fit(rows, whiten=True)
    z = pca.encode(rows)
    assert pca.rank == 11
    assert (z[:, :11].var(0) - 1).abs().max() < 1e-4
    assert not z[:, 11].any()
    assert (pca.decode(z) - rows).abs().max() < 1e-4
    assert torch.equal(pca.decode(z)[:, 4], rows[:, 4])


@pytest.mark.parametrize("kind", ["standard", "center", "none"])
def test_signs_follow_the_raw_mean_and_survive_order_and_batches(kind):
    rows = decaying_rows(5000, 16, power=1.0, mean=0.3)
    moments = moments_of_rows(ArrayRows(rows))
    standardization = Standardization.from_moments(moments, kind)
    shuffled = rows[torch.randperm(5000, generator=torch.Generator().manual_seed(2))]

    def components(data, batch_size):
        return PCA.fit(StandardizedRows(ArrayRows(data, batch_size), standardization), seed=0).components

    reference = components(rows, 8192)
    raw = moments.mean / standardization.scale
    inner = reference.double() @ raw
    decided = inner.abs() > 1e-4 * raw.norm()
    assert decided.sum() > 8
    assert (inner[decided] > 0).all()
    assert torch.equal(components(rows, 77), reference)
    assert (components(shuffled, 1000) - reference).abs().max() < 1e-3


def test_tol_stops_once_the_spectrum_has_settled():
    rows = decaying_rows(210_000, 5, mean=1.0)
    whole, early = fit(rows), fit(rows, tol=0.01)
    assert whole.rows_used == 210_000
    assert whole.spectrum_history[:, 0].tolist() == [65_536, 131_072, 210_000]
    assert early.rows_used == 131_072
    assert torch.equal(early.spectrum_history, whole.spectrum_history[:2])
    assert fit(rows, tol=1e-12).rows_used == 210_000
    held_out = decaying_rows(20_000, 5, mean=1.0)[131_072 % 7 :]
    centred = (held_out - early.mean).double().square().sum()
    for column, k in ((1, 1), (2, 4)):
        left = 1 - early.code_energies(early.encode(held_out))[:, :k].double().sum() / centred
        assert abs(left - early.spectrum_history[-1, column]) < 0.01


def test_nan_in_the_block_of_a_check_is_still_named():
    rows = decaying_rows(70_000, 3)
    rows[65_000, 1] = torch.nan
    with pytest.raises(DataError, match="row 65000, feature 1 is NaN; 1 entries of 70000 rows"):
        fit(rows)


def test_the_history_survives_an_interruption(tmp_path):
    rows = decaying_rows(80_000, 3)

    class Interrupting(ArrayRows):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 9:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    with pytest.raises(Interrupted):
        PCA.fit(Interrupting(rows), seed=0, resume=tmp_path / "state")
    resumed = PCA.fit(ArrayRows(rows), seed=0, resume=tmp_path / "state")
    assert resumed.spectrum_history[:, 0].tolist() == [65_536, 80_000]
    assert torch.equal(resumed.spectrum_history, fit(rows).spectrum_history)


def test_rank_tol_decides_what_is_null():
    rows = decaying_rows(2000, 8, power=2.0)  # variances i^-4, the last 2.4e-4 of the first
    assert [fit(rows, rank_tol=share).rank for share in (None, 0.0, 1e-2, 0.5)] == [8, 8, 3, 1]
    assert fit(rows).rank_tol == 1e-7


def test_history_of_known_moments_is_its_last_line():
    rows = decaying_rows(500, 20)
    (line,) = fit(rows, n_components=3).spectrum_history.tolist()
    variances, _ = truth(rows)
    tails = [500.0] + [(variances[k:].sum() / variances.sum()).item() for k in (1, 4, 16)]
    assert line == pytest.approx(tails, rel=1e-5)


def test_out_of_range_parameters_are_refused():
    rows = decaying_rows(50, 4)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match=f"n_components: {wrong}, but rows have 4 features; use 1..4"):
            fit(rows, n_components=wrong)
    with pytest.raises(ConfigError, match=r"tol: -1 and rank_tol: 1e-07 must not be negative"):
        fit(rows, tol=-1)


def test_parameters_survive_the_artifact(tmp_path):
    pca = fit(decaying_rows(2 * BLOCK_ROWS, 6), n_components=4, whiten=True)
    save_basis(pca, tmp_path)
    again = load_basis(tmp_path)
    names = ("total_variance", "rank", "rank_tol", "rows_used", "whiten")
    assert [getattr(again, name) for name in names] == [getattr(pca, name) for name in names]
    assert torch.equal(again.explained_variance, pca.explained_variance)
    assert torch.equal(again.spectrum_history, pca.spectrum_history)


def test_directions_that_are_not_orthonormal_have_no_energies(tmp_path):
    pca = fit(decaying_rows(100, 4))
    pca.components[0] *= 1.001
    assert pca.code_energies(torch.ones(1, 4)) is None
