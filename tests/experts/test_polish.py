"""Variable projection: its gradient, its constraints, its start from the linear model, and the descent."""

import itertools

import pytest
import torch
from planted_banks import generic_experts, random_model, rel

from eigenloom.experts.lbfgs import Descent
from eigenloom.experts.model import ACTIVATION, slopes
from eigenloom.experts.parameters import CodeParameters
from eigenloom.experts.polish import Problem, Run
from eigenloom.experts.source import ArrayExperts, Tiles

KINDS = ("signed", "nonneg", "simplex", "sparse")


def problem_of(kind="signed", activation="identity", seed=0, ridge=0.0, dtype=torch.float64):
    w, _, codes, bank = random_model(n=5, p=6, d=9, r=3, m=3, seed=seed, dtype=torch.float32)
    mask = torch.tensor([[True, True, False]] * 5) if kind == "sparse" else None
    codes = codes.abs() / codes.abs().sum(1, keepdim=True) if kind in ("nonneg", "simplex") else codes
    codes = codes * mask if mask is not None else codes
    tiles = Tiles(ArrayExperts(w), dtype=dtype, tile_bytes=2 * 6 * 9 * 8)
    problem = Problem(tiles, activation, CodeParameters(kind, mask), (3, 3, 9), ridge)
    return problem, codes.to(dtype), bank.to(dtype)


@pytest.mark.parametrize("activation", ACTIVATION)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_finite_differences(kind, activation):
    problem, codes, bank = problem_of(kind, activation)
    x = problem.pack(codes, bank)
    _, gradient = problem(x)
    step = 1e-6
    numeric = torch.empty_like(x)
    for i in range(len(x)):
        moved = [x.clone(), x.clone()]
        moved[0][i] += step
        moved[1][i] -= step
        numeric[i] = (problem(moved[0])[0] - problem(moved[1])[0]) / (2 * step)
    assert (gradient - numeric).abs().max() < 2e-6 * numeric.abs().max()


@pytest.mark.parametrize("activation", ACTIVATION)
def test_slopes_are_derivatives(activation):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    numeric = (ACTIVATION[activation](x + 1e-6) - ACTIVATION[activation](x - 1e-6)) / 2e-6
    assert (slopes(activation, x) - numeric).abs().max() < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_and_pull_back_agree(kind):
    problem, codes, _ = problem_of(kind)
    free = problem.parameters.free(codes)
    jacobian = (
        torch.func.vmap(torch.func.jacrev(lambda row: problem.parameters.codes(row[None])[0]))(free)
        if (kind != "sparse")
        else torch.diag_embed(problem.parameters.mask.double())
    )
    assert torch.allclose(problem.parameters.jacobian(free), jacobian, atol=1e-12)
    gradient = torch.randn_like(free)
    assert torch.allclose(problem.parameters.pull_back(free, gradient), (jacobian.mT @ gradient[..., None])[..., 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_descent_keeps_its_constraints_and_never_rises(kind):
    problem, codes, bank = problem_of(kind, dtype=torch.float32, ridge=1e-10)
    run = Run.begin("a", problem, codes, bank)
    values = [run.descent.value]
    for _ in range(40):
        run.iterate()
        values.append(run.descent.value)
    assert all(b <= a for a, b in itertools.pairwise(values))
    assert values[-1] < 0.9 * values[0]
    found, _ = run.point
    assert kind in ("signed", "sparse") or found.min() >= 0
    assert kind != "simplex" or (found.sum(1) - 1).abs().max() < 1e-6
    assert kind != "sparse" or not found[:, 2].any()


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_a_small_scale_is_the_linear_model(activation):
    """phi(c x) is c phi'(0) x to first order; the adapters absorb the rest."""
    linear, codes, bank = problem_of()
    nonlinear, _, _ = problem_of(activation=activation)
    value, _ = linear(linear.pack(codes, bank))
    found, _ = nonlinear(nonlinear.pack(codes, 1e-3 * bank))
    assert found == pytest.approx(value, rel=5e-3)
    assert nonlinear(nonlinear.pack(codes, 1e-5 * bank))[0] == pytest.approx(value, rel=5e-5)


def test_the_preconditioner_is_the_inverse_of_the_two_blocks():
    problem, codes, bank = problem_of()
    x = problem.pack(codes, bank)
    precondition = problem.preconditioner(x)
    n = codes.numel()
    matrix = torch.stack([precondition(e) for e in torch.eye(len(x), dtype=x.dtype)])
    assert torch.allclose(matrix, matrix.T, atol=1e-12)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    assert not matrix[:n, n:].any()


def test_descents_find_the_minimum_of_a_quadratic_and_of_rosenbrock():
    matrix = torch.diag(torch.logspace(0, 4, 12, dtype=torch.float64))

    def quadratic(x):
        return float(x @ matrix @ x) / 2, matrix @ x

    def rosenbrock(x):
        bend, away = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        gradient = torch.zeros_like(x)
        gradient[1:] += 200 * bend
        gradient[:-1] -= 400 * bend * x[:-1] + 2 * away
        return float((100 * bend**2 + away**2).sum()), gradient

    for function, start, goal in (
        (quadratic, torch.ones(12).double(), 0.0),
        (rosenbrock, -torch.ones(6).double(), 1.0),
    ):
        descent = Descent.start(function, start)
        while not descent.stalled and descent.evaluations < 400:
            descent.iterate(function, lambda g: g * 1e-3)
        assert (descent.x - goal).abs().max() < 1e-5
        assert descent.evaluations < 400 or descent.value < 1e-12


def test_preconditioned_descents_need_fewer_evaluations():
    w = generic_experts(n=12, p=16, d=24)
    tiles = Tiles(ArrayExperts(w), scale=float(w.std()))
    problem = Problem(tiles, "identity", CodeParameters("signed"), (4, 6, 24), 1e-10)
    _, _, codes, bank = random_model(n=12, d=24, r=6, m=4, dtype=torch.float32)
    run = Run.begin("a", problem, codes, bank)
    plain = Descent.start(problem, problem.pack(codes, bank))
    while run.descent.evaluations < 60:
        run.iterate()
    while plain.evaluations < 60:
        plain.iterate(problem, lambda g: g * 1e-4)
    assert run.descent.value < plain.value


def test_a_restored_run_goes_on_bit_by_bit():
    problem, codes, bank = problem_of(dtype=torch.float32, ridge=1e-10)
    run = Run.begin("a", problem, codes, bank)
    for _ in range(13):
        run.iterate()
    tensors, facts = run.state()
    again = Run.restored(problem, {name: tensor.clone() for name, tensor in tensors.items()}, facts)
    for _ in range(20):
        run.iterate()
        again.iterate()
    assert torch.equal(run.descent.x, again.descent.x)
    assert rel(*(r.point[1] for r in (run, again))) == 0
