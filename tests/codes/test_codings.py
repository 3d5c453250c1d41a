"""Codings against loops in float64, at ties, at centres, and through calibration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_bases import PlantedCentres, planted_centres, planted_directions, planted_rows

from eigenloom.bases.kmeans import KMeans
from eigenloom.codes.codings import CODINGS, Dense, TopK, coding_from
from eigenloom.codes.distances import Nearest, Similarity
from eigenloom.codes.quantile import exact_quantile
from eigenloom.codes.selection import largest, smallest, sorted_ascending
from eigenloom.errors import ConfigError, DataError
from eigenloom.moments import Standardization, StandardizedRows
from eigenloom.sources.arrays import ArrayRows

D_MAX, TAU = 5.0, 2.5
DISTANCE_CONFIGS = {
    "onehot": {"kind": "onehot"},
    "inverse-distance": {"kind": "inverse-distance"},
    "inverse-distance-nearest": {"kind": "inverse-distance-nearest", "eps": 1.0},
    "similarity": {"kind": "similarity", "d_max": D_MAX},
    "squared-distance": {"kind": "squared-distance"},
    "threshold": {"kind": "threshold", "tau": TAU},
    "nearest-00003": {"kind": "nearest", "k": 3, "values": "similarity", "d_max": D_MAX},
}


def reference_distance_codes(name, x, centres):
    """One entry at a time, in float64."""
    n, k = len(x), len(centres)
    codes = np.zeros((n, k))
    for i in range(n):
        d = [math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x[i], c, strict=True))) for c in centres]
        order = sorted(range(k), key=lambda j, d=d: (d[j], j))
        for j in range(k):
            similarity = min(1.0, max(0.0, 1 - d[j] / D_MAX))
            codes[i, j] = {
                "onehot": float(j == order[0]),
                "inverse-distance": 1 / (d[j] + 1e-6),
                "inverse-distance-nearest": 1 / (d[j] + 1.0) if j == order[0] else 0.0,
                "similarity": similarity,
                "squared-distance": d[j] ** 2,
                "threshold": max(0.0, 1 - d[j] / TAU),
                "nearest-00003": similarity if j in order[:3] else 0.0,
            }[name]
    return codes


@pytest.mark.parametrize("name", DISTANCE_CONFIGS)
def test_distance_codings_equal_the_loop(name):
    basis, x = planted_centres(), planted_rows(40)
    coding = coding_from(DISTANCE_CONFIGS[name])
    batch = coding.encode(basis, x)
    assert coding.name == name
    assert batch.layout == coding.layout
    assert (batch.n_rows, len(batch), batch.n_features) == (40, 40, 10)
    expected = reference_distance_codes(name, x, basis.centres)
    np.testing.assert_allclose(batch.to_dense().numpy(), expected, rtol=2e-6, atol=2e-6)
    assert batch.values.dtype == torch.float32
    assert batch.indices.dtype == torch.int32


def reference_largest(z, n):
    """Sort each row by (-abs, index)."""
    order = [sorted(range(z.shape[1]), key=lambda j, row=row: (-abs(float(row[j])), j))[:n] for row in z]
    return [[float(z[i, j]) for j in row] for i, row in enumerate(order)], order


@given(st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_topk_equals_the_loop_and_prefixes_nest(n, seed, tied):
    z = torch.randn(7, 9, generator=torch.Generator().manual_seed(seed))
    z = (z * 2).round() if tied else z
    values, indices = largest(z, n)
    expected_values, expected_order = reference_largest(z, n)
    assert indices.tolist() == expected_order
    assert values.tolist() == expected_values
    for shorter in range(1, n):
        a, b = largest(z, shorter)
        assert torch.equal(a, values[:, :shorter])
        assert torch.equal(b, indices[:, :shorter])
    near, where = smallest(z.abs(), n)
    assert where.tolist() == [sorted(range(9), key=lambda j, row=row: (float(abs(row[j])), j))[:n] for row in z]
    assert torch.equal(near, z.abs().gather(1, where.long()))


def test_sorting_rows():
    z = planted_rows(20, 33).abs()
    assert torch.equal(sorted_ascending(z), z.sort(dim=1).values)


def test_ties_go_to_the_lowest_index():
    centres = torch.tensor([[2.0, 0], [1.0, 0], [-1.0, 0], [1.0, 0]])
    basis = PlantedCentres(Standardization.identity(2), centres)
    x = torch.zeros(1, 2)
    assert coding_from({"kind": "onehot"}).encode(basis, x).labels.tolist() == [1]
    assert coding_from({"kind": "nearest", "k": 3}).encode(basis, x).indices.tolist() == [[1, 2, 3]]


def test_a_row_at_a_centre_has_inverse_distance_1e6():
    basis = planted_centres()
    x = basis.centres[[3]]
    for kind in ("inverse-distance", "inverse-distance-nearest"):
        codes = coding_from({"kind": kind}).encode(basis, x).to_dense()
        assert codes[0, 3].item() == pytest.approx(1e6, rel=1e-6)


class ExpandingCentres(PlantedCentres):
    """Distances off by what an expansion does to a row at a centre."""

    def squared_distances(self, x):
        return super().squared_distances(x) + 1e-3

    def assign(self, x):
        labels, squared = super().assign(x)
        return labels, squared - 1e-3


def test_the_nearest_distance_is_exact_where_the_expansion_is_not():
    basis = ExpandingCentres(planted_centres().standardization, planted_centres().centres)
    codes = coding_from({"kind": "inverse-distance"}).encode(basis, basis.centres[[3]]).to_dense()
    assert codes[0, 3].item() == pytest.approx(1e6, rel=1e-6)


def test_similarity_takes_d_max_from_train_and_counts_what_it_clips():
    standardization = Standardization("standard", "layer-03", torch.ones(6).double(), 2 * torch.ones(6).double())
    basis = planted_centres(standardization=standardization)
    train, val = planted_rows(200), planted_rows(50, seed=2, offset=4.0)
    coding = coding_from({"kind": "similarity"})
    with pytest.raises(ConfigError, match="d_max is not known"):
        coding.encode(basis, train)
    coding = coding.calibrate(basis, ArrayRows(train, batch_size=33))
    fitted, there = standardization.apply(train), standardization.apply(val)
    distances = torch.cdist(fitted.double(), basis.centres.double())
    assert coding.d_max == pytest.approx(distances.max().item(), rel=1e-6)
    assert coding.encode(basis, fitted).to_dense().min() == 0.0
    assert int(coding.n_clipped(coding.arrays(basis, fitted))) == 0
    expected = (torch.cdist(there.double(), basis.centres.double()) > coding.d_max).sum().item()
    assert int(coding.n_clipped(coding.arrays(basis, there))) == expected > 0
    assert coding.encode(basis, there).to_dense().min() == 0.0
    assert coding.calibrate(basis, ArrayRows(val)) == coding, "a known value stays"
    assert coding_from(coding.parameters()) == coding


@pytest.mark.parametrize("quantile", [0.001, 0.25, 0.5, 1.0])
def test_threshold_takes_the_quantile_of_all_distances(quantile):
    basis, x = planted_centres(), planted_rows(101)
    coding = coding_from({"kind": "threshold", "quantile": quantile}).calibrate(basis, ArrayRows(x, batch_size=17))
    distances = np.sort(torch.cdist(x.double(), basis.centres.double()).numpy().ravel())
    assert coding.tau == pytest.approx(distances[math.ceil(quantile * distances.size) - 1], rel=1e-6)
    assert coding_from(coding.parameters()) == coding
    assert coding.nominal_l0(10) is None


def test_nearest_calibrates_its_inner_coding():
    basis, x = planted_centres(), planted_rows(60)
    coding = coding_from({"kind": "nearest", "k": 4, "values": "similarity"}).calibrate(basis, ArrayRows(x))
    assert coding == Nearest(4, Similarity(d_max=coding.inner.d_max))
    assert coding_from(coding.parameters()) == coding
    far = coding.arrays(basis, 100 * x)
    assert int(coding.n_clipped(far)) == 60 * 4


@given(st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(1, 7))
def test_exact_quantile(numbers, quantile, size):
    values = torch.tensor(numbers, dtype=torch.float32)
    expected = sorted(values.tolist())[max(math.ceil(quantile * len(numbers)) - 1, 0)]
    assert exact_quantile(values.split(size), quantile) == expected


def test_no_numbers_have_no_quantile():
    with pytest.raises(DataError, match="no numbers"):
        exact_quantile([], 0.5)


def test_topk_keeps_signs_and_zeroes_the_rest():
    basis, x = planted_directions(), planted_rows(30, 12)
    z = basis.encode(x)
    codes = TopK(4).encode(basis, x).to_dense()
    assert (codes != 0).sum(1).tolist() == [4] * 30
    assert torch.equal(codes[codes != 0], z[codes != 0])
    assert (codes < 0).any()
    assert torch.equal(Dense().encode(basis, x).to_dense(), z)


def test_k_beyond_the_width_is_dense_with_a_log_line(caplog):
    caplog.set_level("INFO", logger="eigenloom")
    assert TopK(12).effective(12) == Dense()
    assert "topk-00012" in caplog.text
    assert TopK(11).effective(12) == TopK(11)
    assert Nearest(10, Similarity(1.0)).effective(10) == Similarity(1.0)
    assert (TopK(64).nominal_l0(12), Nearest(3).nominal_l0(10), Dense().nominal_l0(12)) == (12, 3, 12)


@pytest.mark.parametrize("kind", CODINGS)
def test_codings_refuse_the_other_geometry(kind):
    fitting, other = planted_centres(), planted_directions()
    if CODINGS[kind].geometry == "projection":
        fitting, other = other, fitting
    extra = {"k": 2} if kind in ("topk", "nearest") else {"tau": 1.0} if kind == "threshold" else {}
    coding = coding_from({"kind": kind, **extra})
    assert coding.fits(fitting)
    coding.check(fitting)
    with pytest.raises(ConfigError, match=f"{kind}.*geometry"):
        coding.check(other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "softmax"}, "softmax"),
        ({}, "None"),
        ({"kind": "topk", "k": 0}, "k is 0"),
        ({"kind": "topk", "k": 2.0}, r"k is 2\.0"),
        ({"kind": "nearest"}, "k is 0"),
        ({"kind": "nearest", "k": 2, "values": "onehot"}, "onehot"),
        ({"kind": "onehot", "temperature": 1}, "temperature"),
        ({"kind": "topk"}, "k"),
        ({"kind": "threshold"}, "tau"),
        ({"kind": "threshold", "tau": -1.0}, "-1.0"),
        ({"kind": "threshold", "quantile": 1.5}, "1.5"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ConfigError, match=message):
        coding_from(config)


def test_distance_codes_of_a_fitted_basis_equal_the_loop():
    x = planted_rows(200, offset=3.0)
    standardization = Standardization("standard", "layer-03", x.double().mean(0), x.double().std(0))
    basis = KMeans.fit(StandardizedRows(ArrayRows(x), standardization), seed=0, n_clusters=10)
    fitted = standardization.apply(x[:40])
    for name, config in DISTANCE_CONFIGS.items():
        expected = reference_distance_codes(name, fitted, basis.cluster_centers)
        codes = coding_from(config).encode(basis, fitted).to_dense()
        np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-5, atol=1e-5)
