"""NMSE by discarded tails against decoding in float64, against the moments, and at its known values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_bases import (
    PlantedCentres,
    PlantedDirections,
    PlantedFrame,
    planted_centres,
    planted_directions,
    planted_rows,
)

from eigenloom.bases.kmeans import KMeans
from eigenloom.bases.pca import PCA
from eigenloom.codes.residuals import Tails, row_errors
from eigenloom.errors import DataError, MismatchError
from eigenloom.evaluation.reconstruction import reconstruct
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.sources.arrays import ArrayRows

D = 12


def standardization(kind, x):
    return Standardization.from_moments(moments_of_rows(ArrayRows(x)), kind, "layer-03")


def evaluate(basis, x, mean, topk=(), sizes=(130, 170), batch_size=64):
    shards = [ArrayRows(part, batch_size) for part in x.split(list(sizes))]
    return reconstruct(basis, shards, moments=moments_of_rows(ArrayRows(x)), fit_mean=mean, topk=topk)


def reference(basis, x, mean, k):
    """Keep, decode, subtract, in float64. Returns the three errors and the L0."""
    standard = basis.standardization
    fitted, scale = standard.apply(x), standard.scale
    z = basis.encode(fitted)
    order = np.argsort(-z.abs().numpy(), axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(z)
    np.put_along_axis(kept, order, np.take_along_axis(z.numpy(), order, 1), 1)
    residual = fitted.double() - basis.decode(torch.from_numpy(kept)).double()
    around, own = x.double() - mean, x.double() - x.double().mean(0)
    squares = [(t**2).sum().item() for t in (residual, residual * scale, around / scale, around, own)]
    l0 = np.count_nonzero(kept) / len(x)
    return [squares[0] / squares[2], squares[1] / squares[3], squares[1] / squares[4], l0]


CASES = {
    "complete": {},
    "partial": {"k": 7},
    "whitened": {"whiten": True},
    "partial whitened": {"k": 7, "whiten": True},
    "not orthonormal": {"cls": PlantedFrame, "k": 9},
}


@pytest.mark.parametrize("kind", ["standard", "center", "none"])
@pytest.mark.parametrize("case", CASES)
def test_errors_equal_decoding_at_every_k(case, kind):
    train, x = planted_rows(300, D, offset=2.0), planted_rows(300, D, seed=2, offset=2.2)
    basis = planted_directions(D, **{"k": D, **CASES[case]}, standardization=standardization(kind, train))
    mean = train.double().mean(0)
    found = evaluate(basis, x, mean, topk=range(1, 20))
    names = [*(f"topk-{k:05d}" for k in range(1, basis.n_elements)), "dense"]
    assert list(found.codings) == names
    assert found.n_rows == 300
    for k, name in enumerate(names, start=1):
        coding = found.codings[name]
        expected = reference(basis, x, mean, k)
        ours = [coding.nmse, coding.nmse_raw, coding.nmse_raw_own_mean, coding.l0]
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert coding.nominal_l0 == k
    ours = [point for point in found.curve if point.k in (1, 3)]
    for point in ours:
        coding = found.codings[f"topk-{point.k:05d}"]
        assert (point.nmse, point.nmse_raw, point.l0) == (coding.nmse, coding.nmse_raw, pytest.approx(coding.l0))


@pytest.mark.parametrize("whiten", [False, True])
def test_the_tail_is_summed_where_a_difference_would_cancel(whiten):
    spread = torch.logspace(0, -5, D)
    basis = planted_directions(D, D, whiten=whiten)
    g = torch.Generator().manual_seed(4)
    z = torch.randn(300, D, generator=g) * spread
    x = basis.mean + z @ basis.components
    sse, _ = Tails.of(basis).column_sums(x, basis.encode(x))
    z = basis.encode(x).double() * basis.scales.double()
    ranked = basis.encode(x).abs().argsort(dim=1, descending=True, stable=True)
    energies = z.square().gather(1, ranked)
    for k in range(D + 1):
        assert sse[k].item() == pytest.approx(energies[:, k:].sum().item(), rel=1e-6, abs=0)
    assert sse[D] == 0


def test_l0_counts_what_is_not_zero():
    basis = PlantedDirections(Standardization.identity(4), torch.zeros(4), torch.eye(4), torch.ones(4))
    x = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 4]])
    found = evaluate(basis, x, torch.zeros(4, dtype=torch.float64), topk=[1, 2, 3], sizes=(4,))
    assert [coding.l0 for coding in found.codings.values()] == [0.75, 1.25, 1.5, 1.75]
    assert [point.l0 for point in found.curve] == [0.75, 1.25, 1.5, 1.75]


@given(st.integers(0, 10**6), st.booleans(), st.integers(1, D), st.integers(1, 40))
def test_error_falls_with_k_and_row_errors_add_up(seed, whiten, k, n):
    basis, x = planted_directions(D, k, seed=seed, whiten=whiten), planted_rows(n, D, seed=seed)
    z, tails = basis.encode(x), Tails.of(basis)
    sse, kept = tails.column_sums(x, z)
    if not whiten:
        assert (sse.diff() <= 0).all()
        assert sse[0].item() == pytest.approx((x - basis.mean).double().square().sum().item(), rel=1e-5)
    assert kept.tolist() == [n * i for i in range(k + 1)]
    ks = sorted({1, (k + 1) // 2, k})
    rows = row_errors(basis, tails, x, z, ks)
    assert rows.shape == (n, len(ks))
    assert rows.dtype == torch.float32
    assert rows.double().sum(0).tolist() == pytest.approx(sse[ks].tolist(), rel=1e-6, abs=1e-9)
    by_decoding = row_errors(basis, None, x, z, ks)
    torch.testing.assert_close(rows, by_decoding, rtol=1e-4, atol=1e-5)


def test_centres():
    train, x = planted_rows(300, 6, offset=1.0), planted_rows(300, 6, seed=2, offset=1.0)
    basis = planted_centres(standardization=standardization("standard", train))
    mean = train.double().mean(0)
    found = evaluate(basis, x, mean, topk=[1, 4])
    assert list(found.codings) == ["onehot"]
    coding = found.codings["onehot"]
    expected = reference(basis, x, mean, 10)
    assert [coding.nmse, coding.nmse_raw, coding.nmse_raw_own_mean, coding.l0] == pytest.approx(expected, rel=1e-6)
    assert [(point.k, point.l0, point.nmse) for point in found.curve] == [(1, 1.0, coding.nmse)]
    labels = basis.assign(basis.standardization.apply(x))[0].long()
    assert [shard.tolist() for shard in found.counts["onehot"]] == [
        torch.bincount(part, minlength=10).tolist() for part in labels.split([130, 170])
    ]


def test_counts_of_topk_codes():
    x = planted_rows(300, D)
    basis = planted_directions(D)
    found = evaluate(basis, x, x.double().mean(0), topk=[2])
    chosen = basis.encode(x).abs().argsort(dim=1, descending=True, stable=True)[:, :2]
    assert (
        torch.stack(found.counts["topk-00002"]).sum(0).tolist() == torch.bincount(chosen.ravel(), minlength=D).tolist()
    )
    assert torch.stack(found.counts["dense"]).sum(0).tolist() == [300] * D


def test_identity_is_exact_and_the_mean_is_one():
    x = planted_rows(300, D, offset=10.0)
    mean = x.double().mean(0)
    exact = evaluate(planted_directions(D), x, mean).codings["dense"]
    assert (exact.nmse, exact.nmse_raw) == (0.0, 0.0)
    at_the_mean = PlantedCentres(Standardization.identity(D), mean.float()[None])
    coding = evaluate(at_the_mean, x, mean).codings["onehot"]
    assert coding.nmse == pytest.approx(1.0, rel=1e-6)
    assert coding.nmse_raw_own_mean == pytest.approx(1.0, rel=1e-6)


def test_the_mean_of_the_fitting_rows_counts():
    x = planted_rows(300, D, offset=1.0)
    elsewhere = x.double().mean(0) + 3.0
    at_the_mean = PlantedCentres(Standardization.identity(D), elsewhere.float()[None])
    coding = evaluate(at_the_mean, x, elsewhere).codings["onehot"]
    assert coding.nmse == pytest.approx(1.0, rel=1e-6)
    assert coding.nmse_raw_own_mean > 1.5


def test_equal_scales_make_raw_and_standardized_equal():
    x = planted_rows(300, D)
    mean = x.double().mean(0)
    standard = Standardization("standard", "", mean, torch.full((D,), 2.5, dtype=torch.float64))
    for basis in (planted_directions(D, 5, standardization=standard), planted_centres(D, standardization=standard)):
        for coding in evaluate(basis, x, mean, topk=[2]).codings.values():
            assert coding.nmse_raw == pytest.approx(coding.nmse, rel=1e-6)


@pytest.mark.parametrize("make", [planted_centres, planted_directions])
def test_results_do_not_depend_on_the_cut(make):
    x = planted_rows(300, D)
    basis, mean = make(D), x.double().mean(0)
    one = evaluate(basis, x, mean, topk=[3], sizes=(300,), batch_size=300)
    other = evaluate(basis, x, mean, topk=[3], sizes=(1, 99, 200), batch_size=7)
    for name, coding in one.codings.items():
        assert other.codings[name].nmse == pytest.approx(coding.nmse, rel=1e-6, abs=1e-12)
        assert torch.equal(torch.stack(one.counts[name]).sum(0), torch.stack(other.counts[name]).sum(0))


def test_refusals():
    x = planted_rows(300, D)
    basis, mean = planted_directions(D), x.double().mean(0)
    moments = moments_of_rows(ArrayRows(x))
    with pytest.raises(MismatchError, match="299 rows were evaluated, but their moments are of 300"):
        reconstruct(basis, [ArrayRows(x[:299])], moments=moments, fit_mean=mean)
    with pytest.raises(MismatchError, match="0 rows"):
        reconstruct(basis, [], moments=moments, fit_mean=mean)
    bad = x.clone()
    bad[140, 3] = float("nan")
    with pytest.raises(DataError, match="evaluated shard 1, row 10"):
        reconstruct(basis, [ArrayRows(part, 64) for part in bad.split([130, 170])], moments=moments, fit_mean=mean)
    same = x[:1].repeat(300, 1)
    with pytest.raises(DataError, match="equals the mean"):
        evaluate(basis, same, same[0].double())


@pytest.mark.parametrize("whiten", [False, True])
def test_fitted_components_with_null_ones(whiten):
    train, x = (planted_rows(300, D, seed=seed, offset=1.0) for seed in (1, 2))
    for rows in (train, x):
        rows[:, 5] = rows[:, 4]  # a null component
    rows = StandardizedRows(ArrayRows(train), standardization("standard", train))
    basis = PCA.fit(rows, seed=0, whiten=whiten)
    assert basis.rank == D - 1
    mean = train.double().mean(0)
    found = evaluate(basis, x, mean, topk=range(1, D))
    for k, coding in enumerate(found.codings.values(), start=1):
        expected = reference(basis, x, mean, k)
        assert [coding.nmse, coding.nmse_raw, coding.nmse_raw_own_mean] == pytest.approx(
            expected[:3], rel=1e-5, abs=1e-6
        )
        assert coding.l0 == pytest.approx(expected[3], abs=0.05)  # a null code is rounding, or exactly 0


def test_fitted_centres_agree_with_their_inertia():
    train = planted_rows(300, 6, offset=1.0)
    standard = standardization("standard", train)
    basis = KMeans.fit(StandardizedRows(ArrayRows(train), standard), seed=0, n_clusters=8)
    coding = evaluate(basis, train, train.double().mean(0)).codings["onehot"]
    assert coding.nmse == pytest.approx(basis.inertia / (300 * 6), rel=1e-5)
    assert coding.nmse < 0.8
