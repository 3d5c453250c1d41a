"""Principal component pursuit: planted splits, optimality, invariances, and a status that never flatters."""

import math

import numpy as np
import pytest
import torch
from problems import low_rank_plus_sparse

from eigenloom import pcp
from eigenloom.errors import ConfigError, DataError
from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_reference import pcp_reference
from eigenloom.linalg.pcp_solver import Settings, decompose
from eigenloom.linalg.pcp_store import InMemory


def solve(X, **parameters):
    return pcp(X, **{"verbose": False, **parameters})


def relative(found, planted):
    return (torch.as_tensor(found).double() - planted).norm().item() / planted.norm().item()


def solution(X, *, dtype=torch.float64, mask=None, weights=None, noise_std=0, lambda_=None, **settings):
    """The solver's own objects, which ``pcp`` does not return."""
    problem = Problem(X, mask=mask, weights=weights, noise_std=noise_std, dtype=dtype, lambda_=lambda_)
    problem.measure()
    panel = InMemory(problem.shape, problem.dtype, problem.device)
    return decompose(problem, Settings(**settings), panel)


def multiplier(found):
    return torch.cat([block.clone() for _, block in found.recursion.multiplier()])


# Well inside the region of Candes et al. (2011, figure 1), where the split is unique: rank and share of hits.
INSIDE = [(200, 200, 10, 0.05), (200, 200, 5, 0.15), (400, 200, 10, 0.05), (300, 100, 3, 0.1), (150, 150, 2, 0.25)]


@pytest.mark.parametrize(("n", "m", "rank", "share"), INSIDE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_planted_splits_are_recovered_and_certified(n, m, rank, share, dtype):
    X, low_rank, sparse = low_rank_plus_sparse(n, m, rank, share)
    L, S, hist = solve(X, dtype=dtype)
    assert hist["status"] == "converged", hist["gap_history"]
    assert hist["gap"] <= 1e-3
    assert relative(L, low_rank) < (5e-6 if dtype == "float32" else 1e-6)
    assert relative(S, sparse) < 1e-5
    assert hist["rank"][-1] == rank
    assert str(L.dtype) == str(S.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize(("rank", "share"), [(30, 0.3), (60, 0.1), (10, 0.45)])
def test_outside_the_region_a_certificate_still_means_optimal(rank, share):
    """Where another split is better the planted one is not found; whatever is certified is no worse than it."""
    X, low_rank, sparse = low_rank_plus_sparse(100, 100, rank, share)
    L, _S, hist = solve(X, dtype="float64", max_iter=150)
    lam = hist["lambda_"]

    def objective(low, rest):
        return torch.linalg.matrix_norm(low, "nuc").item() + lam * rest.abs().sum().item()

    assert relative(L, low_rank) > 1e-3
    assert hist["status"] in ("converged", "uncertified", "max_iter")
    if hist["status"] == "converged":
        assert objective(L, X - L) <= objective(low_rank, sparse) * (1 + 1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_multiplier_proves_the_split(noise):
    """The optimality conditions, from full decompositions of what the solver returned."""
    X, _, _ = low_rank_plus_sparse(180, 120, 6, 0.08, noise=noise)
    found = solution(X, noise_std=noise, gap_tol=1e-5)
    assert found.course.status == "converged"
    Y, lam = multiplier(found), found.recursion.problem.lambda_
    parts = [(low.clone(), sparse.clone()) for _, low, sparse in found.recursion.parts(found.low_rank)]
    L, S = (torch.cat(column) for column in zip(*parts, strict=True))
    nuclear = torch.linalg.matrix_norm(L, "nuc")
    assert torch.linalg.matrix_norm(Y, 2) <= 1 + 1e-3
    assert Y.abs().max() <= lam * (1 + 1e-12)
    assert (Y * L).sum() == pytest.approx(nuclear.item(), rel=1e-4)
    assert (Y * S).sum() == pytest.approx(lam * S.abs().sum().item(), rel=1e-9)
    v = found.recursion.problem.noise * (math.sqrt(180) + math.sqrt(120))
    rest = X - L
    if v:
        near = rest.abs().clamp_max(lam * v)
        left_over = (near.square() / (2 * v) + lam * (rest.abs() - near)).sum()
    else:
        left_over = lam * rest.abs().sum()
    feasible = Y / max(1.0, torch.linalg.matrix_norm(Y, 2).item())
    primal, dual = nuclear + left_over, (X * feasible).sum() - v / 2 * feasible.square().sum()
    assert found.course.gaps[-1][1] == pytest.approx(((primal - dual) / primal).item(), abs=1e-9)


def test_always_growing_penalties_freeze_a_wrong_split_that_ours_does_not():
    """The published schedule, feasible to 1e-7 and wrong; its gap would say so."""
    X, low_rank, _ = low_rank_plus_sparse(100, 100, 15, 0.1)
    frozen, _, _ = pcp_reference(X, settled=math.inf)
    L, _, hist = solve(X, dtype="float64")
    assert hist["status"] == "converged"
    assert relative(L, low_rank) < 1e-5
    assert relative(frozen, low_rank) > 10 * relative(L, low_rank)


@pytest.mark.parametrize("case", ["plain", "noise", "masked", "weights", "tall", "wide"])
def test_one_array_walks_the_textbooks_path(case):
    shape = {"tall": (150, 40), "wide": (40, 150)}.get(case, (90, 60))
    X, _, _ = low_rank_plus_sparse(*shape, 4, 0.08, noise=0.1 if case in ("noise", "weights") else 0.0)
    positions = math.sqrt(shape[0]) + math.sqrt(shape[1])
    v, given = torch.zeros_like(X), {}
    if case == "noise":
        v, given = v + 0.1 * positions, {"noise_std": 0.1}
    if case == "masked":
        mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(7)) > 0.2
        v, given = torch.where(mask, 0.0, torch.inf), {"mask": mask}
    if case == "weights":
        sigma = 0.05 + 0.1 * torch.rand(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        v, given = sigma**2 / sigma.square().mean().sqrt() * positions, {"weights": sigma**-2}
    lines = []
    observed = torch.where(torch.isinf(v), 0.0, X)
    L, S, _N = pcp_reference(observed, v=v, watch=lines.append)
    found, sparse, hist = solve(X, dtype="float64", svd="full", gap_tol=1.0, **given)
    assert hist["iters"] == len(lines)
    assert hist["rank"] == [line["rank"] for line in lines]
    assert hist["nnz"] == pytest.approx([line["nnz"] for line in lines], abs=2)
    for name in ("primal_resid", "dual_resid"):
        assert hist[name] == pytest.approx([line[name] for line in lines], rel=1e-3, abs=1e-9)
    # sigma_1 is known to 1e-3 only, which moves the path a little and its end by the tolerance.
    assert relative(found, L) < 1e-6
    assert (sparse - S).abs().max() < 1e-5


@pytest.mark.parametrize("svd", ["gram", "randomized"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_way_of_thresholding_ends_the_same(svd, noise):
    X, _, _ = low_rank_plus_sparse(240, 160, 8, 0.06, noise=noise)
    full, _, expected = solve(X, dtype="float64", svd="full", noise_std=noise)
    L, _, hist = solve(X, dtype="float64", svd=svd, noise_std=noise)
    assert hist["status"] == expected["status"] == "converged"
    assert relative(L, full) < 1e-6


@pytest.mark.parametrize("rank_guess", [1, 3, 40])
def test_a_guess_of_the_rank_caps_nothing(rank_guess):
    X, low_rank, _ = low_rank_plus_sparse(200, 150, 10, 0.05)
    L, _, hist = solve(X, rank_guess=rank_guess, oversampling=0, power_iter=0)
    assert (hist["status"], hist["rank"][-1]) == ("converged", 10)
    assert relative(L, low_rank) < 1e-5


def test_a_cap_that_binds_is_said_and_one_that_does_not_is_not():
    X, low_rank, _ = low_rank_plus_sparse(200, 150, 10, 0.05)
    _, _, capped = solve(X, max_rank=6, max_iter=100)
    assert (capped["status"], max(capped["rank"])) == ("rank_capped", 6)
    L, _, free = solve(X, max_rank=10)
    assert free["status"] == "converged"
    assert relative(L, low_rank) < 1e-5


def test_too_few_iterations_are_not_called_converged():
    X, _, _ = low_rank_plus_sparse(100, 80, 5, 0.05)
    _, _, hist = solve(X, max_iter=7)
    assert (hist["status"], hist["iters"]) == ("max_iter", 7)
    assert hist["gap"] > 1e-3
    assert {len(hist[name]) for name in ("primal_resid", "dual_resid", "rank", "nnz", "mu")} == {7}


def test_a_start_too_far_ahead_is_caught_by_the_gap():
    """Too large a first penalty, as published code has it: the first feasible split is wrong, and taken up again."""
    X, low_rank, _ = low_rank_plus_sparse(100, 100, 15, 0.1)
    sigma1 = torch.linalg.matrix_norm(X, 2).item()
    L, _, hist = solve(X, dtype="float64", mu=50 / math.sqrt(sigma1))
    gaps = [gap for _, gap in hist["gap_history"]]
    assert gaps[0] > 1e-3
    assert hist["status"] == "converged"
    assert relative(L, low_rank) < 1e-5


def test_no_sparse_part_and_no_low_rank_part():
    X, low_rank, _ = low_rank_plus_sparse(120, 90, 5, 0.0)
    L, S, hist = solve(X)
    assert hist["status"] == "converged"
    assert relative(L, low_rank) < 1e-5
    assert S.abs().max() < 1e-4
    X, _, sparse = low_rank_plus_sparse(120, 90, 0, 0.03)
    L, S, hist = solve(X)
    assert hist["status"] == "converged"
    assert relative(S, sparse) < 1e-5
    assert L.abs().max() < 1e-4


@pytest.mark.parametrize("svd", ["randomized", "full", "gram"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 3)])
def test_the_smallest_matrices(shape, svd):
    X = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    L, S, hist = solve(X, svd=svd)
    assert L.shape == S.shape == X.shape
    assert hist["status"] == "converged"
    assert (L + S - X).norm() <= 1e-5 * X.norm()


@pytest.mark.parametrize("svd", ["randomized", "full", "gram"])
def test_a_zero_matrix_is_split_into_nothing(svd):
    L, S, hist = solve(np.zeros((20, 30)), svd=svd)
    assert not L.any()
    assert not S.any()
    assert (hist["status"], hist["iters"], hist["gap"]) == ("converged", 0, 0.0)


def test_in_float32_every_decomposition_ends_as_soon():
    source = torch.Generator().manual_seed(0)
    low_rank = torch.randn(600, 10, generator=source) @ torch.randn(10, 200, generator=source)
    hit = torch.rand(600, 200, generator=source) < 0.05
    X = low_rank + torch.where(hit, 10 * torch.rand(600, 200, generator=source) - 5, 0.0)
    for svd in ("randomized", "full", "gram"):
        L, _, hist = solve(X, dtype="float32", svd=svd)
        assert hist["status"] == "converged"
        assert hist["iters"] <= 45, svd  # decomposed in float32, `full` needs half as many again here, and ever more
        assert relative(L, low_rank) < 1e-5


@pytest.mark.parametrize("factor", [2.0**-20, 1e-3, 1e4])
def test_the_unit_does_not_matter(factor):
    X, _, _ = low_rank_plus_sparse(130, 90, 5, 0.08, noise=0.1)
    L, S, hist = solve(X, dtype="float64", noise_std=0.1)
    scaled, hit, other = solve(X * factor, dtype="float64", noise_std=0.1 * factor)
    assert hist["rank"] == other["rank"]
    assert relative(scaled / factor, L) < 1e-6
    assert (hit / factor - S).abs().max() < 1e-5
    assert other["gap"] == pytest.approx(hist["gap"], rel=1e-2)


@pytest.mark.parametrize("svd", ["randomized", "full", "gram"])
def test_transposing_and_permuting_carry_over(svd):
    X, _, _ = low_rank_plus_sparse(130, 90, 5, 0.08)
    L, S, _ = solve(X, dtype="float64", svd=svd)
    turned, hit, _ = solve(X.T, dtype="float64", svd=svd)
    assert torch.equal(turned.T, L)
    assert torch.equal(hit.T, S)
    source = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(130, generator=source), torch.randperm(90, generator=source)
    moved, _, _ = solve(X[rows][:, columns], dtype="float64", svd=svd)
    assert relative(moved, L[rows][:, columns]) < 1e-6


@pytest.mark.parametrize("as_nan", [False, True])
def test_a_fifth_unobserved_is_filled_in(as_nan):
    X, low_rank, sparse = low_rank_plus_sparse(250, 200, 5, 0.05)
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(5)) > 0.2
    spoilt = torch.where(mask, X, torch.nan if as_nan else 1e6)
    L, S, hist = solve(spoilt, dtype="float64", mask=mask)
    assert hist["status"] == "converged"
    assert relative(L, low_rank) < 1e-5
    assert not S[~mask].any()
    assert (S - sparse)[mask].abs().max() < 1e-3


def test_what_is_not_observed_changes_nothing():
    X, _, _ = low_rank_plus_sparse(120, 80, 4, 0.05, noise=0.1)
    weights = torch.where(torch.rand(X.shape, generator=torch.Generator().manual_seed(5)) > 0.1, 100.0, 0.0)
    one, _, hist = solve(X, weights=weights)
    other, _, _ = solve(torch.where(weights > 0, X, -77.0), weights=weights)
    nan, _, _ = solve(torch.where(weights > 0, X, torch.nan), weights=weights)
    assert hist["status"] == "converged"
    assert torch.equal(one, other)
    assert torch.equal(one, nan)


def test_equal_weights_are_a_noise_level():
    X, _, _ = low_rank_plus_sparse(120, 80, 4, 0.05, noise=0.2)
    by_weights, _, _ = solve(X, dtype="float64", weights=torch.full_like(X, 25.0))
    by_array, _, _ = solve(X, dtype="float64", noise_std=torch.full_like(X, 0.2))
    by_level, _, _ = solve(X, dtype="float64", noise_std=0.2)
    assert relative(by_weights, by_level) < 1e-9
    assert relative(by_array, by_level) < 1e-9


def test_noise_is_kept_out_of_both_parts():
    X, low_rank, _sparse = low_rank_plus_sparse(300, 200, 5, 0.03, noise=0.3)
    L, _S, hist = solve(X, noise_std=0.3)
    plain, _spread, without = solve(X, max_iter=100)
    assert hist["rank"][-1] <= 8
    assert without["rank"][-1] > 3 * hist["rank"][-1]
    assert hist["nnz"][-1] < 0.2 * X.numel() < 0.5 * without["nnz"][-1]
    assert relative(L, low_rank) < 0.8 * relative(plain, low_rank)


@pytest.mark.parametrize(("noise", "rank_guess"), [(0.05, 5), (0.3, 5), (0.3, 30), (0.05, 30)])
def test_noise_is_measured(noise, rank_guess):
    X, _, _ = low_rank_plus_sparse(300, 200, 5, 0.03, noise=noise)
    _, _, hist = solve(X, noise_std="auto", rank_guess=rank_guess, max_iter=3)
    assert hist["noise_std"] == pytest.approx(noise, rel=0.15)


def test_the_same_call_gives_the_same_bytes_and_a_seed_nearly_the_same():
    X, _, _ = low_rank_plus_sparse(200, 150, 6, 0.05)
    first, second, other = (solve(X, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert relative(other, first.double()) < 1e-5


@pytest.mark.parametrize("kind", ["float64", ">f4", "float16", "int32", "readonly", "tensor", "list slices", "flipped"])
def test_any_kind_of_matrix_is_read(kind):
    X = np.round(100 * low_rank_plus_sparse(90, 60, 3, 0.05)[0].numpy())
    X = np.clip(X, -2000, 2000)
    expected, _, _ = solve(X.astype(np.float32))
    if kind == "readonly":
        given = X.astype(np.float32)
        given.flags.writeable = False
    elif kind == "tensor":
        given = torch.from_numpy(X)
    elif kind == "flipped":
        given = X.astype(np.float32)[::-1].copy()[::-1]
    elif kind == "list slices":

        class Slices:
            shape, dtype = X.shape, np.dtype("float64")

            def __getitem__(self, key):
                return X[key].tolist()

        given = Slices()
    else:
        given = X.astype(kind)
    before = None if kind in ("tensor", "list slices") else given.copy()
    L, S, _ = solve(given)
    assert np.array_equal(np.asarray(L), expected)
    assert type(L) is type(S) is (torch.Tensor if kind == "tensor" else np.ndarray)
    assert before is None or np.array_equal(before, given)


X = low_rank_plus_sparse(20, 15, 2, 0.1)[0].numpy()
HOLED = np.where(np.arange(300).reshape(20, 15) == 47, np.nan, X)
WRONG = [
    ((np.zeros((2, 3, 4)),), {}, DataError, r"X must be a matrix .* not of shape \(2, 3, 4\)"),
    ((np.zeros((0, 3)),), {}, DataError, r"not of shape \(0, 3\)"),
    ((np.array([["a", "b"]]),), {}, DataError, "are not real numbers"),
    ((X + 1j,), {}, DataError, "complex128, which are not real"),
    ((HOLED,), {}, DataError, r"X: row 3, column 2 is NaN; pass mask=numpy.isfinite\(X\), or repair it"),
    ((HOLED.T,), {}, DataError, "X: row 2, column 3 is NaN"),
    ((np.where(np.isnan(HOLED), np.inf, X),), {}, DataError, "row 3, column 2 is Inf"),
    ((HOLED,), {"mask": np.ones(X.shape, bool)}, DataError, "row 3, column 2 is NaN; the mask calls it observed"),
    ((X,), {"mask": np.ones((15, 20), bool)}, DataError, r"mask has shape \(15, 20\), X has \(20, 15\)"),
    ((X,), {"mask": np.zeros(X.shape, bool)}, DataError, "X has no observed entry"),
    ((X,), {"weights": -np.ones(X.shape)}, DataError, "weights: the entry at row 0, column 0 is negative"),
    ((X,), {"noise_std": np.full(X.shape, np.nan)}, DataError, "noise_std: the entry at row 0, column 0"),
    ((X * 1e30,), {}, DataError, "leave the range of torch.float32 when squared; multiply X by a number"),
    ((X * 1e-30,), {}, DataError, "leave the range of torch.float32 when squared; multiply X by a number"),
    ((X,), {"noise_std": -1.0}, ConfigError, "noise_std: -1.0 is not a number of at least 0"),
    ((X,), {"noise_std": "automatic"}, ConfigError, "noise_std: 'automatic' is unknown"),
    ((X,), {"noise_std": 1.0, "weights": np.ones(X.shape)}, ConfigError, "weights are inverse variances"),
    ((X,), {"lambda_": 0.0}, ConfigError, "lambda_: 0.0 is not a positive number"),
    ((X,), {"svd": "svds"}, ConfigError, "svd: 'svds' is unknown; use randomized, full, gram"),
    ((X,), {"dtype": "float16"}, ConfigError, "dtype: 'float16' is unknown; use float32 or float64"),
    ((X,), {"tol": 0.0}, ConfigError, "tol: 0.0 is not a positive number"),
    ((X,), {"max_rank": 0}, ConfigError, "max_rank: 0 is not a whole number of at least 1"),
    ((X,), {"rank_guess": 2.5}, ConfigError, "rank_guess: 2.5 is not a whole number"),
]


@pytest.mark.parametrize(("arguments", "parameters", "error", "words"), WRONG)
def test_bad_input_is_one_sentence(arguments, parameters, error, words):
    with pytest.raises(error, match=words) as caught:
        solve(*arguments, **parameters)
    assert "\n" not in str(caught.value)
