"""Random directions: orthonormal, uniform, nested, and blind to features that do not vary."""

import torch
from problems import decaying_rows

from eigenloom.bases.random_directions import RandomDirections
from eigenloom.batches import generator
from eigenloom.sources.arrays import ArrayRows


def fit(rows, seed=0, **parameters):
    return RandomDirections.fit(ArrayRows(rows), seed=seed, **parameters)


def test_orthonormal_through_the_mean_and_reproducible():
    rows = decaying_rows(500, 12, mean=10.0)
    basis = fit(rows)
    assert (basis.components @ basis.components.T - torch.eye(12)).abs().max() < 1e-6
    assert (basis.mean - rows.double().mean(0)).abs().max() < 1e-5
    assert torch.equal(basis.components, fit(rows).components)
    assert not torch.allclose(basis.components, fit(rows, seed=1).components, atol=0.1)


def test_the_frame_orthonormalises_its_draws_in_order_without_turning_them():
    components = fit(decaying_rows(500, 12), seed=5).components.double()
    draws = [torch.randn(12, dtype=torch.float64, generator=generator(5, "directions", j)) for j in range(12)]
    for j, draw in enumerate(draws):
        rest = draw - components[:j].T @ (components[:j] @ draw)
        assert (components[j] - rest / rest.norm()).abs().max() < 1e-5


def test_a_smaller_frame_is_the_front_of_a_larger_one():
    rows = decaying_rows(500, 12)
    assert (fit(rows, n_components=5).components - fit(rows).components[:5]).abs().max() < 1e-6


def test_captures_the_share_of_variance_that_chance_gives():
    rows = decaying_rows(300, 40, power=0.0)
    shares = []
    for seed in range(40):
        basis = fit(rows, seed, n_components=10)
        shares.append(basis.code_energies(basis.encode(rows)).sum() / (rows - basis.mean).square().sum())
    assert abs(torch.stack(shares).mean() - 0.25) < 0.01


def test_constant_features_come_last_each_by_itself():
    rows = decaying_rows(200, 6)
    rows[:, [1, 4]] = 2.5
    basis = fit(rows)
    assert not basis.components[:4, [1, 4]].any()
    assert torch.equal(basis.components[4:], torch.eye(6)[[1, 4]])
    assert not fit(rows, n_components=3).components[:, [1, 4]].any()
