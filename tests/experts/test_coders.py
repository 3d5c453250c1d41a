"""Codes: each rule meets the conditions of its own optimum."""

import itertools

import pytest
import torch
from planted_banks import random_model

from eigenloom.errors import ConfigError
from eigenloom.experts.coders import (
    least_squares,
    nonnegative,
    objective,
    orthogonal_matching_pursuit,
    soft_threshold_codes,
    solve_codes,
)


def systems(n=40, m=6, seed=0, rank=20):
    x, _, _, _ = random_model(n=n, p=rank, d=m + 1, seed=seed)
    return x[:, :, :m].mT @ x[:, :, :m], (x[:, :, :m].mT @ x[:, :, m:])[..., 0]


def gradient(H, h, a):
    return (H @ a[..., None])[..., 0] - h


def test_free_codes_solve_the_normal_equations():
    H, h = systems()
    assert gradient(H, h, least_squares(H, h)).abs().max() < 1e-11


def test_free_codes_of_dependent_atoms_are_of_least_norm():
    H, h = systems(m=4)
    twice, both = torch.cat([torch.cat([H, H], 1), torch.cat([H, H], 1)], 2), torch.cat([h, h], 1)
    a = least_squares(twice, both)
    assert torch.allclose(a[:, :4], least_squares(H, h) / 2, atol=1e-9)
    assert torch.allclose(a[:, :4], a[:, 4:], atol=1e-9)


@pytest.mark.parametrize("rank", [20, 4])
def test_nonnegative_codes_meet_kkt(rank):
    """a >= 0, gradient >= 0, and one of the two zero everywhere; also where H is singular."""
    H, h = systems(rank=rank)
    a = nonnegative(H, h)
    g, scale = gradient(H, h, a), h.abs().max()
    assert (a >= 0).all()
    assert g.min() > -1e-9 * scale
    assert (a * g).abs().max() < 1e-9 * scale * max(1, a.max())
    assert 0 < (a == 0).double().mean() < 1


def test_simplex_codes_meet_kkt():
    H, h = systems()
    a = nonnegative(H, h, simplex=True)
    g = gradient(H, h, a)
    level = (a * g).sum(1, keepdim=True)
    assert (a >= 0).all()
    assert (a.sum(1) - 1).abs().max() < 1e-12
    assert (g - level).min() > -1e-9
    assert (a * (g - level)).abs().max() < 1e-9


def test_simplex_codes_beat_every_point_of_a_grid():
    H, h = systems(m=3)
    grid = torch.tensor([(i / 20, j / 20, 1 - (i + j) / 20) for i in range(21) for j in range(21 - i)]).double()
    best = objective(H, h, nonnegative(H, h, simplex=True))
    for point in grid:
        assert (best <= objective(H, h, point.expand(len(H), -1)) + 1e-12).all()


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_rules_do_not_depend_on_scale(scale):
    H, h = systems()
    for rule in ("ls", "nnls", "omp"):
        assert torch.allclose(solve_codes(rule, scale * H, scale * h), solve_codes(rule, H, h), rtol=1e-7, atol=1e-9)


def test_pursuit_of_one_atom_is_the_best_of_all():
    H, h = systems()
    found = objective(H, h, orthogonal_matching_pursuit(H, h, 1))
    best = (-h.square() / H.diagonal(dim1=1, dim2=2) / 2).amin(1)
    assert torch.allclose(found, best, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_pursuit_leaves_nothing_on_its_support_and_takes_no_more_than_k(k):
    H, h = systems()
    a = orthogonal_matching_pursuit(H, h, k)
    assert ((a != 0).sum(1) <= k).all()
    assert gradient(H, h, a)[a != 0].abs().max() < 1e-10


def test_pursuit_of_all_atoms_is_least_squares():
    H, h = systems()
    assert torch.allclose(orthogonal_matching_pursuit(H, h, 6), least_squares(H, h), atol=1e-10)


def test_pursuit_is_near_brute_force():
    H, h = systems(n=10, m=5)
    found = objective(H, h, orthogonal_matching_pursuit(H, h, 2))
    best = torch.full_like(found, torch.inf)
    for pair in itertools.combinations(range(5), 2):
        at = list(pair)
        a = torch.zeros(10, 5, dtype=torch.float64)
        a[:, at] = least_squares(H[:, at][:, :, at], h[:, at])
        best = torch.minimum(best, objective(H, h, a))
    assert (found >= best - 1e-12).all()
    assert (found <= 1e-9 + best + 0.5 * best.abs()).all()


def test_penalised_codes_meet_their_own_conditions():
    H, h = systems()
    penalty = 0.2
    a = soft_threshold_codes(H, h, penalty, torch.zeros_like(h), rounds=500)
    root = H.diagonal(dim1=1, dim2=2).sqrt()
    limit = penalty * (h.abs() / root).amax(1, keepdim=True) * root
    g = gradient(H, h, a)
    assert (g.abs() <= limit * (1 + 1e-7)).all()
    moved = a != 0
    assert torch.allclose(g[moved], (-limit * a.sign())[moved], rtol=1e-6)
    assert 0 < moved.double().mean() < 1
    assert not soft_threshold_codes(H, h, 1.0, torch.zeros_like(h)).any()
    assert torch.allclose(soft_threshold_codes(H, h, 0.0, torch.zeros_like(h), 2000), least_squares(H, h), atol=1e-7)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="code rule: 'l0' is unknown; use ls, nnls, simplex, omp"):
        solve_codes("l0", *systems())
