"""Labels are those of float64 distances wherever rounding does not decide, by either implementation."""

import pytest
import torch

from eigenloom.linalg import assignment
from eigenloom.linalg.assignment import Assigner, assign_reference
from eigenloom.linalg.screen import Screen

SHAPES = [(8, 5), (256, 300), (1024, 40)]


def problem(d, k, n=700, mean=0.0):
    random = torch.Generator().manual_seed(d * 1000 + k)
    scales = torch.arange(1, d + 1).pow(-0.5)
    centers = torch.randn(k, d, generator=random) * scales + mean
    x = centers[torch.randint(k, (n,), generator=random)] + torch.randn(n, d, generator=random) * scales
    return x, centers


def screened(monkeypatch):
    monkeypatch.setattr(assignment, "screen_wins", lambda *_: True)


def assert_nearest(nearest, x, centers, tolerance=3e-6):
    """Labels may differ from float64 only where the distances tie within rounding of the shifted norms."""
    exact = assign_reference(x, centers)
    distances = torch.cdist(x.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    chosen = distances.gather(1, nearest.labels[:, None])[:, 0]
    scale = (x - centers.mean(0)).square().sum(1) + (centers - centers.mean(0)).square().sum(1).max()
    assert ((chosen - exact.sq_distances.double()) <= tolerance * scale).all()
    assert (nearest.labels == exact.labels).double().mean() > 0.99
    torch.testing.assert_close(nearest.sq_distances.double(), chosen, rtol=1e-5, atol=0)
    if len(nearest.gaps):
        assert ((nearest.gaps - exact.gaps).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_fused_is_the_reference(monkeypatch, d, k, screen, mean):
    if screen:
        screened(monkeypatch)
    x, centers = problem(d, k, mean=mean)
    assign = Assigner(centers)
    assert (assign._screen is not None) == screen
    assert_nearest(assign(x, gaps=True), x, centers)
    assert assign(x).gaps.numel() == 0


def test_large_means_cost_no_accuracy():
    x, centers = problem(64, 50, mean=1e4)
    mistakes = (Assigner(centers)(x).labels != assign_reference(x, centers).labels).sum()
    naive = (centers.square().sum(1) - 2 * x @ centers.T).argmin(1)
    assert mistakes == 0
    assert (naive != assign_reference(x, centers).labels).sum() > 50


@pytest.mark.parametrize("screen", [False, True])
def test_exact_ties_go_to_the_lowest_index(monkeypatch, screen):
    if screen:
        screened(monkeypatch)
    centers = torch.tensor([[4.0, 0], [0, 4], [0, 4], [-4, 0], [0, -4], [0, -4]])
    x = torch.tensor([[0.0, 3], [2, 2], [-2, -2], [0, 0]])
    nearest = Assigner(centers)(x, gaps=True)
    assert nearest.labels.tolist() == [1, 0, 3, 0]
    assert nearest.gaps.tolist() == [0, 0, 0, 0]


def test_one_center_has_no_second():
    x, centers = problem(8, 1)
    nearest = Assigner(centers)(x, gaps=True)
    assert nearest.labels.eq(0).all()
    assert nearest.gaps.isinf().all()


def test_blocks_do_not_matter(monkeypatch):
    x, centers = problem(16, 20)
    whole = Assigner(centers)(x, gaps=True)
    monkeypatch.setattr(assignment, "SCORES_PER_BLOCK", 20)
    parts = Assigner(centers)(x, gaps=True)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.sq_distances, parts.sq_distances, rtol=1e-6, atol=0)


def test_all_squared_distances():
    x, centers = problem(24, 30, mean=5.0)
    x[:30] = centers
    table = Assigner(centers).squared_distances(x)
    exact = torch.cdist(x.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(table.double(), exact, rtol=1e-5, atol=1e-5)
    assert table[:30].diagonal().eq(0).all()
    assert torch.equal(table.amin(1), Assigner(centers)(x).sq_distances)


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_the_screen_bounds_its_error(d, k):
    """Every centre within rounding of the nearest is a candidate, and few others are."""
    x, centers = problem(d, k)
    shifted = centers - centers.mean(0)
    rows = x - centers.mean(0)
    half_norms = 0.5 * shifted.double().square().sum(1)
    screen = Screen(shifted, half_norms)
    scores = half_norms - rows.double() @ shifted.double().T
    for gaps in (False, True):
        found = torch.zeros(len(x), k, dtype=torch.bool)
        found[screen.candidates(rows, gaps, torch.empty(len(x), k))] = True
        rank = scores.argsort(1)
        assert found.gather(1, rank[:, : 1 + gaps]).all()
        assert found.sum(1).double().mean() < 0.5 * k + 2


def test_near_ties_fall_to_the_redo(monkeypatch):
    """Hundreds of centres that bfloat16 cannot tell apart: no proof, so float32 decides, and gets it right."""
    screened(monkeypatch)
    random = torch.Generator().manual_seed(0)
    direction = torch.randn(1, 64, generator=random)
    centers = torch.cat([direction + 1e-3 * torch.randn(300, 64, generator=random), -direction])
    x = direction + 1e-2 * torch.randn(50, 64, generator=random)
    assign = Assigner(centers)
    assert assign._screen.nearest(x - assign._shift, False, torch.empty(50, 301))[3].all()
    assert_nearest(assign(x, gaps=True), x, centers)


def test_unproven_screening_errs_a_little_and_reports_true_distances():
    x, centers = problem(64, 400, n=3000)
    nearest = Assigner(centers, "screen")(x, gaps=True)
    exact = assign_reference(x, centers)
    share = (nearest.labels != exact.labels).double().mean()
    assert 0 < share < 0.05
    torch.testing.assert_close(nearest.sq_distances, (x - centers[nearest.labels]).square().sum(1))
    assert nearest.sq_distances.sum() / exact.sq_distances.sum() < 1 + 1e-3
    assert (nearest.gaps >= 0).all()
