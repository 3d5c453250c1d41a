"""Landmarks: distinct rows, drawn as the definition draws them, spread where the kernel is not yet explained."""

import pytest
import torch
from problems import decaying_rows

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.linalg.kernels import Linear, kernel_of, kernel_reference
from eigenloom.linalg.landmarks import CHOICES, choose_landmarks, rp_cholesky, rp_cholesky_reference


def residual(matrix, chosen):
    """The trace that a Nystrom approximation by these landmarks leaves."""
    columns = matrix[:, chosen]
    return (matrix.trace() - torch.trace(columns @ torch.linalg.pinv(columns[chosen]) @ columns.T)).item()


@pytest.mark.parametrize("choice", CHOICES)
def test_distinct_rows_and_the_same_for_a_seed(choice):
    rows = decaying_rows(700, 8)
    kernel = kernel_of("rbf", 0.2)
    first, again = (choose_landmarks(choice, rows, 300, kernel, generator(3, "seeding")) for _ in range(2))
    assert torch.equal(first, again)
    assert (first.shape, first.dtype) == ((300,), torch.int64)
    assert len(first.unique()) == 300


def test_pivots_are_drawn_with_the_probabilities_of_the_definition():
    """Second pivots given the first: rejection in blocks and one by one draw from one distribution."""
    rows = decaying_rows(6, 3, power=0.0)
    kernel = kernel_of("rbf", 0.5)
    matrix = kernel_reference(kernel, rows, rows)
    n = 3000
    counts = torch.zeros(2, 6, 6)
    for i in range(n):
        one = rp_cholesky(kernel, rows, 2, generator(i, "ours"))
        other = rp_cholesky_reference(matrix, 2, generator(i, "reference"))
        counts[0, one[0], one[1]] += 1
        counts[1, other[0], other[1]] += 1
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(6):
        left = (matrix - torch.outer(matrix[:, i], matrix[i]) / matrix[i, i]).diagonal().clamp_min(0)
        expected[i] = left / left.sum() / 6
    # Five standard deviations of a count.
    for found in counts:
        assert ((found - n * expected).abs() < 5 * (n * expected + 1).sqrt()).all()


def test_leaves_less_than_uniform_rows_do():
    rows = torch.cat([decaying_rows(1900, 4) * 0.1, decaying_rows(100, 4, seed=1) * 3])
    kernel = kernel_of("rbf", 0.5)
    matrix = kernel_reference(kernel, rows, rows)
    left = {choice: [] for choice in CHOICES}
    for choice in CHOICES:
        for seed in range(4):
            order = torch.randperm(2000, generator=generator(seed, "pool"))
            chosen = order[choose_landmarks(choice, rows[order], 40, kernel, generator(seed, "seeding"))]
            left[choice].append(residual(matrix, chosen))
    mean = {choice: sum(values) / 4 for choice, values in left.items()}
    assert mean["rpcholesky"] < 0.7 * mean["uniform"], mean


def test_a_rank_that_is_used_up_is_completed_by_other_rows():
    rows = decaying_rows(50, 3)
    chosen = rp_cholesky(Linear(), rows, 20, generator(0, "seeding"))
    assert len(chosen.unique()) == 20
    assert torch.linalg.matrix_rank(rows[chosen[:3]]) == 3
    duplicated = rows[:4].repeat(5, 1)
    chosen = rp_cholesky(kernel_of("rbf", 1.0), duplicated, 10, generator(0, "seeding"))
    assert len(chosen.unique()) == 10
    assert len((chosen[:4] % 4).unique()) == 4
    assert len(rp_cholesky(Linear(), torch.zeros(5, 2), 3, generator(0, "seeding")).unique()) == 3


def test_an_unknown_choice_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="landmark_choice: 'first' is unknown; use one of rpcholesky, uniform, k-means"
    ):
        choose_landmarks("first", torch.eye(3), 2, Linear(), generator(0, "seeding"))
