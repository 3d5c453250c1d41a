"""Eigenvectors come back descending, with signs that rounding cannot flip."""

import pytest
import torch

from eigenloom.linalg.eigen import descending_eigh, leading_eigh, orient


def random_symmetric(d, seed=0):
    rows = torch.randn(3 * d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows


def test_agrees_with_lapack_through_torch():
    matrix = random_symmetric(12)
    values, vectors = descending_eigh(matrix)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    assert (values - expected).abs().max() < 1e-12 * expected[0]
    assert (vectors @ vectors.T - torch.eye(12)).abs().max() < 1e-13
    assert (vectors.T * values @ vectors - matrix).norm() < 1e-13 * matrix.norm()


def test_negative_rounding_is_clamped_and_low_rank_completed():
    thin = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values, vectors = descending_eigh(thin @ thin.T)
    assert (values >= 0).all()
    assert values[2:].max() < 1e-14 * values[0]
    assert (vectors @ vectors.T - torch.eye(9)).abs().max() < 1e-13


def test_features_without_variance_stay_apart():
    matrix = random_symmetric(6)
    matrix[[1, 4]] = 0
    matrix[:, [1, 4]] = 0
    values, vectors = descending_eigh(matrix)
    assert values[4:].tolist() == [0, 0]
    assert torch.equal(vectors[4:], torch.eye(6, dtype=torch.float64)[[1, 4]])
    assert not vectors[:4, [1, 4]].any()


def test_all_zero_is_the_identity():
    values, vectors = descending_eigh(torch.zeros(3, 3))
    assert torch.equal(vectors, torch.eye(3, dtype=torch.float64))
    assert not values.any()


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_the_mean_decides_the_sign(flip):
    vectors = flip * torch.eye(3, dtype=torch.float64)
    assert torch.equal(orient(vectors, torch.tensor([2.0, -1.0, 0.5]), 1.0), torch.diag(torch.tensor([1.0, -1, 1])))


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("noise", [0.0, 1e-6, -1e-6])
def test_where_the_mean_is_noise_the_largest_entry_decides(flip, noise):
    vectors = flip * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    expected = torch.tensor([[-0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
    # |u.m| below 1e-5 sqrt(total_variance) ...
    assert torch.equal(orient(vectors, torch.tensor([noise, 0.0]), 1.0), expected)
    # ... or below 1e-5 of the mean's own length: u is orthogonal to m but for rounding.
    along = 100 * vectors[:1] + torch.tensor([[0.0, noise]])
    assert torch.equal(orient(vectors[1:], along[0], 0.0), expected[1:])


def test_just_above_the_tie_the_mean_decides_again():
    vectors = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    assert torch.equal(orient(vectors, torch.tensor([2e-5 / 0.6, 0.0]), 1.0), vectors)
    assert torch.equal(orient(vectors, torch.tensor([0.5e-5 / 0.6, 0.0]), 1.0), -vectors)


def test_of_equal_entries_the_first_is_positive():
    half = 0.5**0.5
    for noise in (0.0, 1e-15, -1e-15):
        vectors = torch.tensor([[-half, half + noise], [half + noise, half]], dtype=torch.float64)
        assert (orient(vectors, torch.zeros(2), 1.0)[:, 0] > 0).all()


def test_leading_pairs_are_those_of_the_whole_decomposition():
    matrix = random_symmetric(30)
    values, vectors = descending_eigh(matrix)
    for k in (1, 7, 30):
        leading, columns = leading_eigh(matrix, k)
        assert ((leading - values[:k]) / values[:k]).abs().max() < 1e-10
        assert ((columns @ vectors[:k].T).abs() - torch.eye(k)).abs().max() < 1e-9
    singular = torch.outer(matrix[0], matrix[0])
    assert (leading_eigh(singular, 5)[0] >= 0).all()
