"""Thresholding of singular values: every way of doing it against a full decomposition."""

import pytest
import torch

from eigenloom.batches import generator
from eigenloom.linalg.svt import GRAM_SHARE, WarmSVT, full_svt, gram_svt, spectral_norm, svt_reference

BLOCK = 37


class Rows:
    """A matrix in memory as blocks of rows; counts its walks."""

    def __init__(self, matrix):
        self.matrix, self.walks = matrix, 0
        self.shape, self.dtype, self.device = tuple(matrix.shape), matrix.dtype, matrix.device

    def __iter__(self):
        self.walks += 1
        for start in range(0, len(self.matrix), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self.matrix)))
            yield rows, self.matrix[rows]


def with_spectrum(n, values, seed=0, m=None):
    """A matrix ``[n, m]`` float64 with these singular values, the rest 0."""
    source = torch.Generator().manual_seed(seed)
    m = m or len(values)
    left, _ = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=source))
    right, _ = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64, generator=source))
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


def draw(m, seed=0):
    return lambda have, count: torch.randn(m, count, dtype=torch.float64, generator=generator(seed, "sketch", have))


def whole(factors):
    return factors.left.double() @ factors.right.double().T


def error(factors, matrix, threshold):
    expected, values = svt_reference(matrix.double(), threshold)
    assert len(factors.values) == len(values)
    assert (factors.values - values).abs().max() < 1e-5 * matrix.norm()
    return ((whole(factors) - expected).norm() / max(expected.norm(), 1e-300)).item()


DECAYING = [10 * 0.8**i for i in range(60)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("svt", [full_svt, gram_svt])
def test_exact_ways_equal_the_reference(svt, dtype, tolerance):
    matrix = with_spectrum(150, DECAYING).to(dtype)
    factors = svt(Rows(matrix), 0.5)
    assert error(factors, matrix, 0.5) < tolerance
    assert (factors.left.double().norm(dim=0) - factors.values).abs().max() < 1e-5 * factors.values[0]


def test_gram_keeps_what_float32_products_would_lose():
    matrix = with_spectrum(200, [1.0, 1e-3, 3e-5, 2e-5]).float()
    factors = gram_svt(Rows(matrix), 1e-5)
    assert factors.values.tolist() == pytest.approx([1 - 1e-5, 1e-3 - 1e-5, 2e-5, 1e-5], rel=2e-2)


@pytest.mark.parametrize("n_columns", [3, 10, 20])
def test_a_subspace_of_any_size_finds_all_that_exceeds_the_threshold(n_columns):
    matrix = with_spectrum(150, DECAYING)
    warm = WarmSVT(draw(60), n_columns, n_walks=30, drift=1e-7)
    assert error(warm(Rows(matrix), 1.0), matrix, 1.0) < 1e-6
    assert warm.basis.shape[1] == 11 + 5


def test_a_warm_subspace_needs_one_walk():
    matrix = with_spectrum(150, DECAYING).float()
    warm = WarmSVT(draw(60), 16, n_walks=10, drift=1e-3)
    warm(Rows(matrix), 1.0)
    rows = Rows(matrix)
    assert error(warm(rows, 1.0), matrix, 1.0) < 1e-4
    assert rows.walks == 1


def test_a_wide_subspace_gives_way_to_the_gram_matrix_and_returns():
    matrix = with_spectrum(150, DECAYING)
    warm = WarmSVT(draw(60), 50, n_walks=1, drift=1.0)
    assert error(warm(Rows(matrix), 1.0), matrix, 1.0) < 1e-12
    assert warm.basis.shape[1] <= GRAM_SHARE * 60
    low = 10 * 0.8**54.5
    assert error(warm(Rows(matrix), low), matrix, low) < 1e-9
    assert warm.basis.shape[1] == 60


def test_equal_values_and_exact_low_rank():
    matrix = with_spectrum(90, [4.0] * 6, m=70).float()
    factors = WarmSVT(draw(70), 9, n_walks=5, drift=1e-3)(Rows(matrix), 1.0)
    assert error(factors, matrix, 1.0) < 1e-5


def test_nothing_above_the_threshold_is_nothing():
    matrix = with_spectrum(90, DECAYING).float()
    for svt in (full_svt, gram_svt, WarmSVT(draw(60), 4, n_walks=3, drift=0.1)):
        factors = svt(Rows(matrix), 11.0)
        assert (factors.left.shape, factors.right.shape, len(factors.values)) == ((90, 0), (60, 0), 0)
        assert not svt(Rows(torch.zeros(90, 60)), 1.0).values.numel()


def test_a_cap_stops_the_growth():
    rows = Rows(with_spectrum(150, DECAYING))
    warm = WarmSVT(draw(60), 8, n_walks=8, drift=1e-6)
    factors = warm(rows, 1.0, max_rank=6)
    assert len(factors.values) > 6
    assert rows.walks <= 8
    expected = 10 * 0.8 ** torch.arange(4, dtype=torch.float64) - 1.0
    assert (factors.head(6).values[:4] - expected).abs().max() < 1e-2


@pytest.mark.parametrize("values", [DECAYING, [3.0] * 20, [1.0] * 30 + [0.999] * 30, [7.0], [0.0]])
def test_spectral_norm_is_met_and_errs_upward(values):
    matrix = with_spectrum(130, values, m=60)
    start = torch.randn(60, dtype=torch.float64, generator=generator(0, "norm"))
    found = spectral_norm(Rows(matrix), start, 1e-7)
    assert found == pytest.approx(max(values), rel=1e-5, abs=1e-12)
    assert found >= max(values) * (1 - 1e-6)
