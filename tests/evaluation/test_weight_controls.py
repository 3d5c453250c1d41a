"""Controls of weight decompositions: walks look low-dimensional, random directions carry nothing, sums add up."""

import math

import pytest
import torch
from checkpoint_files import state, vector, write

from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.evaluation.weights import (
    FITTED,
    HELD_OUT,
    Places,
    group_errors,
    group_of,
    random_components,
    random_walk,
    sketch_beside_exact,
    spread_out,
    variance_shares,
    walk_control,
)
from eigenloom.sources.arrays import ArrayRows
from eigenloom.sources.checkpoints import Checkpoints


def line(n=9, d=50, seed=0, noise=0.05):
    """Points along a line, with a little noise."""
    source = torch.Generator().manual_seed(seed)
    direction, start = torch.randn(d, generator=source), torch.randn(d, generator=source)
    return start + torch.arange(float(n))[:, None] * direction + noise * torch.randn(n, d, generator=source)


def held(n, every=4):
    return torch.tensor([i % every == every - 2 for i in range(n)])


def test_nmse_is_the_share_of_squares_left():
    rows, held_out = line(noise=1.0), held(9)
    basis = SRHTPCA.fit(ArrayRows(rows[~held_out]), seed=0, n_components=4)
    places = Places.of(rows, basis.mean, basis.components, held_out)
    for k in range(5):
        part = basis.components[:, :k].double()
        centred = (rows - basis.mean).double()
        left = (centred - centred @ part @ part.T).square().sum(1)
        found = places.nmse(k)
        assert list(found) == [FITTED, HELD_OUT]
        assert found[FITTED] == pytest.approx(
            float(left[~held_out].sum() / centred[~held_out].square().sum()), rel=1e-4
        )
        assert found[HELD_OUT] == pytest.approx(
            float(left[held_out].sum() / centred[held_out].square().sum()), rel=1e-4
        )
    assert places.nmse(0) == {FITTED: 1.0, HELD_OUT: 1.0}


def test_full_rank_leaves_nothing_of_the_fitted_and_something_of_the_others():
    rows, held_out = line(noise=1.0), held(9)
    basis = SRHTPCA.fit(ArrayRows(rows[~held_out]), seed=0, n_components=6)
    found = Places.of(rows, basis.mean, basis.components, held_out).nmse(6)
    assert found[FITTED] < 1e-6
    assert found[HELD_OUT] > 1e-3


def test_random_directions_carry_their_number_over_the_dimension():
    rows, k = torch.randn(30, 4000, generator=torch.Generator().manual_seed(0)), 8
    components = random_components(4000, k, seed=3)
    assert (components.T @ components - torch.eye(k)).abs().max() < 1e-5
    left = Places.of(rows, rows.mean(0), components, held(30)).nmse(k)
    assert left[HELD_OUT] == pytest.approx(1 - k / 4000, abs=2e-3)


def test_a_random_walk_keeps_start_and_step_norms():
    rows = line(n=12, d=20_000, noise=0.5)
    walk = random_walk(rows, seed=1)
    assert torch.equal(walk[0], rows[0])
    steps = [(r[1:] - r[:-1]).norm(dim=1) for r in (rows, walk)]
    assert torch.allclose(steps[0], steps[1], rtol=0.03)  # chi of 20,000: a standard deviation of .005
    assert not torch.equal(walk, random_walk(rows, seed=2))


def test_first_components_of_a_long_random_walk_have_the_shares_of_theory():
    """6 / (pi j)^2: 61 % and 15 %, although nothing is low-dimensional (Antognini & Sohl-Dickstein 2018)."""
    rows = torch.zeros(400, 3000)
    rows[:, 0] = torch.arange(400.0)
    shares = []
    for seed in range(3):
        walk = random_walk(rows, seed)
        centred = (walk - walk.mean(0)).double()
        variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0)
        shares.append(torch.tensor(variance_shares(variances[:3], float(variances.sum()))))
    mean = torch.stack(shares).mean(0)
    for j in range(3):
        assert mean[j] == pytest.approx(6 / (math.pi * (j + 1)) ** 2, rel=0.08)


def test_a_straight_training_beats_its_walk_and_a_walk_does_not():
    straight, held_out = line(n=16, d=5000, noise=0.02), held(16)
    basis = SRHTPCA.fit(ArrayRows(straight[~held_out]), seed=0, n_components=3)
    own = Places.of(straight, basis.mean, basis.components, held_out).nmse(3)
    walk, shares = walk_control(straight, [16], held_out, 3, seed=5)
    assert own[HELD_OUT] < 0.01 < walk.nmse(3)[HELD_OUT]
    assert len(shares) == 3
    assert shares[0] < 0.95 * float(basis.explained_variance[0]) / basis.total_variance
    again, _ = walk_control(random_walk(straight, 9), [16], held_out, 3, seed=5)
    assert again.nmse(3)[HELD_OUT] == pytest.approx(walk.nmse(3)[HELD_OUT], rel=0.1)


def test_each_training_walks_from_its_own_start():
    rows = torch.cat([line(n=8, d=300), 100 + line(n=8, d=300, seed=1)])
    walk, shares = walk_control(rows, [8, 8], held(16), 2, seed=0)
    assert shares[0] > 0.9  # the two starts are far apart
    assert walk.scores.shape == (16, 2)


def test_groups_cover_every_number_and_add_up(tmp_path):
    shapes = {
        "blocks.0.fc.weight": (3, 2),
        "blocks.0.fc.bias": (2,),
        "blocks.10.w": (4,),
        "head.weight": (2, 2),
        "cls": (3,),
    }
    paths = [write(tmp_path / f"{i}.safetensors", state(i, shapes=shapes)) for i in range(4)]
    layout = Checkpoints(paths).layout
    rows = torch.stack([vector(state(i, shapes=shapes)) for i in range(4)])
    centred = rows - rows.mean(0)
    left = centred.clone()
    left[:, layout.entry("cls").offset :][:, :3] = 0
    found = {g["group"]: g for g in group_errors(left, centred, layout)}
    assert {name: g["n_numbers"] for name, g in found.items()} == {"blocks.0": 8, "blocks.10": 4, "cls": 3, "head": 4}
    assert found["cls"]["nmse"] == 0
    assert found["head"]["nmse"] == pytest.approx(1)
    assert group_errors(left * 0, centred * 0, layout)[0]["nmse"] is None


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks.3.attention.qkv.weight", "blocks.3"),
        ("encoder.layers.12.norm1.weight", "encoder.layers.12"),
        ("head.weight", "head"),
        ("positions", "positions"),
        ("norm1.weight", "norm1"),
    ],
)
def test_group_names(name, group):
    assert group_of(name) == group


def test_a_sketch_is_never_better_than_the_exact_fit():
    rows = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 41)[:, None] ** -0.5
    exact = SRHTPCA.fit(ArrayRows(rows), seed=0, n_components=4, method="dual")
    found = sketch_beside_exact(rows, exact, seed=0)
    assert 1 <= found["residual_ratio"] < 1.05
    assert 0 <= found["largest_angle"] < 90


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [9]), (2, [4, 9]), (3, [2, 6, 9]), (99, list(range(10))), (10, list(range(10)))]
)
def test_spread_out_ends_with_the_last(n, expected):
    assert spread_out(range(10), n) == expected
