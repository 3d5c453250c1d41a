"""Every block lowers the error from anywhere, solves its own equations, and its solvers agree."""

import itertools

import pytest
import torch
from planted_banks import generic_experts, random_model, rel

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.blocks import (
    BankSystem,
    bank_by_cg,
    bank_by_cholesky,
    bank_by_gauss_seidel,
    code_systems,
)
from eigenloom.experts.coders import least_squares, nonnegative
from eigenloom.experts.model import bases, mix, squared_error
from eigenloom.experts.source import ArrayExperts, Tiles
from eigenloom.experts.sweeps import CodeRule, rescaled, sweep


def error(w, a, codes, bank):
    return float(squared_error(w, a, mix(codes, bank)).sum())


def system_of(w, a, codes, bank):
    right = torch.einsum("ij,ird->jrd", codes, a.mT @ w)
    return BankSystem(a.mT @ a, codes, right)


@pytest.mark.parametrize("seed", range(3))
def test_adapters_solve_their_normal_equations_and_lower_the_error(seed):
    w, a, codes, bank = random_model(seed=seed)
    m = mix(codes, bank)
    found = fit_adapters(w, m, ridge=0.0)
    assert ((w - found @ m) @ m.mT).abs().max() < 1e-9
    assert error(w, found, codes, bank) <= error(w, a, codes, bank)
    assert torch.allclose(found, w @ torch.linalg.pinv(m), atol=1e-9)


def test_adapters_of_dependent_and_of_zero_bases():
    w, _, codes, bank = random_model()
    m = mix(codes, bank)
    m[0, 1] = m[0, 0]
    m[1] = 0
    m[2, 3] = m[2, 2] * (1 + 1e-9)
    found = fit_adapters(w, m)
    assert torch.isfinite(found).all()
    assert not found[1].any()
    assert torch.allclose(found[0] @ m[0], w[0] @ torch.linalg.pinv(m[0]) @ m[0], atol=1e-8)
    assert torch.allclose(found[3], w[3] @ torch.linalg.pinv(m[3]), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_ridge_is_relative(scale):
    w, _, codes, bank = random_model()
    m = mix(codes, bank)
    assert torch.allclose(fit_adapters(w * scale, m * scale), fit_adapters(w, m), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_codes_lower_the_error_by_what_their_objective_says(seed):
    w, a, codes, bank = random_model(seed=seed)
    H, h = code_systems(a.mT @ a, a.mT @ w, bank)
    found = least_squares(H, h)
    before, after = error(w, a, codes, bank), error(w, a, found, bank)
    assert after <= before * (1 + 1e-9)
    energy = 2 * ((H @ found[..., None])[..., 0] * found / 2 - h * found).sum()
    assert after == pytest.approx(float(w.square().sum() + energy), rel=1e-9)
    positive = nonnegative(H, h)
    assert after <= error(w, a, positive, bank) <= error(w, a, codes.clamp_min(0), bank) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_three_solvers_of_the_bank_agree_and_lower_the_error(seed):
    w, a, codes, bank = random_model(n=10, seed=seed)
    system = system_of(w, a, codes, bank)
    found = bank_by_cholesky(system)
    assert (system.apply(found) - system.right).norm() < 1e-9 * system.right.norm()
    assert error(w, a, codes, found) <= error(w, a, codes, bank) * (1 + 1e-9)
    assert rel(bank_by_cg(system, bank), found) < 1e-7
    assert rel(bank_by_gauss_seidel(system, bank, tolerance=1e-13, rounds=3000), found) < 1e-7


def test_a_bank_that_is_not_finished_is_still_better():
    w, a, codes, bank = random_model(n=10)
    system = system_of(w, a, codes, bank)
    last = error(w, a, codes, bank)
    for steps in (1, 2, 5):
        for found in (bank_by_cg(system, bank, steps=steps), bank_by_gauss_seidel(system, bank, rounds=steps)):
            assert error(w, a, codes, found) < last


def test_the_matrix_of_the_bank_is_the_sum_of_kronecker_products():
    w, a, codes, bank = random_model()
    system = system_of(w, a, codes, bank)
    expected = sum(torch.kron(torch.outer(c, c), g) for c, g in zip(codes, system.grams, strict=True))
    assert torch.allclose(system.matrix(), expected, atol=1e-10)
    assert torch.allclose((expected @ bank.flatten(0, 1)).view_as(bank), system.apply(bank), atol=1e-9)
    assert 2 * system.value(bank) + float(w.square().sum()) == pytest.approx(error(w, a, codes, bank), rel=1e-10)


def test_an_atom_that_nobody_uses_harms_no_solver():
    w, a, codes, bank = random_model(n=10)
    codes[:, 1] = 0
    system = system_of(w, a, codes, bank)
    for found in (bank_by_cholesky(system), bank_by_cg(system, bank), bank_by_gauss_seidel(system, bank)):
        assert torch.isfinite(found).all()
        assert error(w, a, codes, found) < error(w, a, codes, bank)


def test_unit_atoms_leave_the_error_alone():
    w, a, codes, bank = random_model()
    scaled_codes, scaled = rescaled(codes, bank, torch.float64)
    assert torch.allclose(scaled.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert error(w, a, scaled_codes, scaled) == pytest.approx(error(w, a, codes, bank), rel=1e-12)


@pytest.mark.parametrize(
    "rule", [CodeRule("signed"), CodeRule("nonneg"), CodeRule("simplex"), CodeRule("sparse", 2)], ids=lambda r: r.kind
)
@pytest.mark.parametrize("seed", range(2))
def test_sweeps_never_raise_the_error(rule, seed):
    """The error that a sweep returns is that of its start with the best adapters; the next one's is no higher."""
    w = generic_experts(seed=seed, dtype=torch.float64)
    tiles = Tiles(ArrayExperts(w), scale=float(w.std()), dtype=torch.float64, tile_bytes=5 * 16 * 24 * 8)
    _, _, codes, bank = random_model(n=12, d=24, r=5, m=4, seed=seed)
    _, codes, bank = sweep(tiles, codes, bank, rule, 0.0)
    values = []
    for _ in range(12):
        value, codes, bank = sweep(tiles, codes, bank, rule, 0.0)
        values.append(value)
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(values)), values
    assert values[-1] < 0.97 * values[0]
    assert rule.kind not in ("nonneg", "simplex") or codes.min() >= 0
    assert rule.kind != "simplex" or (codes.sum(1) - 1).abs().max() < 1e-9
    assert rule.kind != "sparse" or ((codes != 0).sum(1) <= 2).all()


def test_tiles_do_not_change_a_sweep():
    w = generic_experts(dtype=torch.float64)
    _, _, codes, bank = random_model(n=12, d=24, r=5, m=4)
    one, many = (
        sweep(Tiles(ArrayExperts(w), dtype=torch.float64, tile_bytes=size), codes, bank, CodeRule("signed"), 0.0)
        for size in (1 << 20, 1)
    )
    assert one[0] == pytest.approx(many[0], rel=1e-12)
    assert rel(one[2], many[2]) < 1e-9
    assert bases(one[1], one[2]).shape == (12, 5, 24)
