"""Moves are those of the plain greedy search, worth their price, and blind to a row's own closeness to itself."""

import torch

from eigenloom.bases.kmeans_relocation import choose_moves


def greedy_reference(rows, own, inertia, utility, most):
    """Evaluate every row anew before every move, in float64."""
    squared = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    relative = (squared / own.double()).fill_diagonal_(torch.inf)
    left, order, moves = torch.ones(len(rows), dtype=torch.float64), utility.argsort(), []
    while len(moves) < most:
        gains = (left - torch.minimum(left, relative)).sum(1) * inertia / (len(rows) - 1)
        gains[moves] = -1
        best = int(gains.argmax())
        if not gains[best] > utility[order[len(moves)]]:
            break
        moves.append(best)
        left = torch.minimum(left, relative[best])
        left[best] = 0
    return order[: len(moves)].tolist(), moves


def problem(m=60, k=25, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, 3, generator=random) + 6 * torch.randn(6, 3, generator=random)[torch.arange(m) % 6]
    own = rows.square().sum(1) * (0.5 + torch.rand(m, generator=random))
    return rows, own, 900.0, 400 * torch.rand(k, generator=random, dtype=torch.float64) ** 2


def test_lazy_is_plain_greedy():
    for seed in range(20):
        rows, own, inertia, utility = problem(seed=seed)
        for most in (0, 3, 25):
            moved, places = choose_moves(rows, own, inertia, utility, most)
            assert (moved.tolist(), places.tolist()) == greedy_reference(rows, own, inertia, utility, most)
        assert 1 < len(moved) < 25


def test_lonely_rows_move_nothing():
    rows = 100 * torch.eye(8)
    moved, _ = choose_moves(rows, torch.ones(8), 8.0, torch.full((5,), 1e-9, dtype=torch.float64), 5)
    assert len(moved) == 0
    assert len(choose_moves(rows[:1], torch.ones(1), 8.0, torch.zeros(5, dtype=torch.float64), 5)[0]) == 0
