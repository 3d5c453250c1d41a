"""Shaping: exact on planted spectra, never amplifying, equivariant, free of scale, unharmed by degenerate input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_spectra import planted, random_orthogonal, relative, spiked

from eigenloom import spectra_shape
from eigenloom.errors import ConfigError
from eigenloom.optim.shape import spectra_shape_reference


def start(a, q, seed=3):
    return random_orthogonal(a, seed)[:, :q]


def test_exact_subspace_gives_the_full_svd_answer():
    z, u, s, _ = spiked(24, 40)
    out = spectra_shape(z, rank=4, basis=u[:, :4])
    wanted = spectra_shape_reference(z, 4)
    assert relative(out.matrix, wanted.matrix) < 1e-12
    assert relative(out.spike, s[:4]) < 1e-12
    assert relative(out.sigma_tail, s[4:].square().mean().sqrt()) < 1e-12
    values = torch.linalg.svdvals(out.matrix)
    level = torch.linspace(2, 1, 20, dtype=torch.float64).square().mean().sqrt()
    # The four spike values sit at the level of the tail, the others where they were.
    wanted_values = torch.cat([level.expand(4), s[4:]]).sort(descending=True).values
    assert relative(values, wanted_values) < 1e-12


def test_a_cold_start_converges_within_four_iterations():
    z = spiked(24, 40)[0]
    wanted = spectra_shape_reference(z, 4).matrix
    errors = [float((spectra_shape(z, rank=4, n_iter=n).matrix - wanted).norm() / wanted.norm()) for n in (1, 2, 3, 4)]
    assert errors[0] > 1e-3
    assert errors == sorted(errors, reverse=True)
    assert errors[3] <= 1e-4


@given(seed=st.integers(0, 1000), k=st.integers(0, 8), extra=st.integers(0, 3), wide=st.booleans())
def test_no_singular_value_ever_rises(seed, k, extra, wide):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(12, 17, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, 17, dtype=torch.float64)
    z = z if wide else z.T
    r = 12
    basis = torch.randn(z.shape[0], min(k + extra, r), generator=draw, dtype=torch.float64)
    if basis.shape[1] == 0:
        basis = None
    out = spectra_shape(z, rank=k, basis=basis).matrix
    assert (torch.linalg.svdvals(out) <= torch.linalg.svdvals(z) * (1 + 1e-12)).all()


def test_a_rotated_basis_costs_nothing_where_column_norms_err():
    """Unit columns of ``Y^T U`` are not orthogonal when ``U`` is a rotated exact basis; Ritz pairs are."""
    z, u, _, _ = spiked(24, 40)
    rotated = u[:, :4] @ random_orthogonal(4, 9)
    wanted = spectra_shape_reference(z, 4).matrix
    exact = spectra_shape(z, rank=4, basis=rotated).matrix
    w = z.T @ rotated
    norms = w.norm(dim=0)
    level = spectra_shape_reference(z, 4).sigma_tail
    published = z + rotated @ torch.diag(torch.minimum(norms, level) - norms) @ (w / norms).T
    assert relative(exact, wanted) < 1e-12
    assert float((published - wanted).norm() / wanted.norm()) > 0.09


def test_the_basis_stays_orthonormal_over_a_thousand_drifting_steps():
    draw = torch.Generator().manual_seed(0)
    z, basis = torch.randn(20, 30, generator=draw), None
    for _ in range(1000):
        z = 0.95 * z + 0.3 * torch.randn(20, 30, generator=draw)
        basis = spectra_shape(z, rank=3, basis=basis).basis
    assert basis.dtype == torch.float32
    assert (basis.T @ basis - torch.eye(11)).abs().max() < 1e-5


def test_orthogonal_equivariance():
    z = spiked(14, 22)[0]
    p, q, u = random_orthogonal(14, 1), random_orthogonal(22, 2), start(14, 6)
    out, moved = spectra_shape(z, rank=4, basis=u), spectra_shape(p @ z @ q.T, rank=4, basis=p @ u)
    assert relative(moved.matrix, p @ out.matrix @ q.T) < 1e-11
    assert relative(moved.spike, out.spike) < 1e-11


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
@pytest.mark.parametrize("ritz", [True, False])
def test_scale_does_not_matter(scale, ritz):
    z = spiked(14, 22, dtype=torch.float32)[0]
    out, scaled = (spectra_shape(m, rank=4, n_iter=4, ritz=ritz) for m in (z, z * scale))
    # Scaling by a number that is no power of two rounds every entry once more.
    assert relative(scaled.matrix / scale, out.matrix) < 1e-5
    # tail^2 is a difference, total - spike^2: it inflates the spike's rounding, some eps, by total / tail^2, here 42.
    inflated = z.square().sum() / (out.sigma_tail.square() * 10)
    assert relative(scaled.sigma_tail / scale, out.sigma_tail) < 4 * torch.finfo(torch.float32).eps * inflated


@pytest.mark.parametrize("exponent", [-100, 90])
@pytest.mark.parametrize("ritz", [True, False])
def test_powers_of_two_change_no_bit(exponent, ritz):
    z = spiked(14, 22, dtype=torch.float32)[0]
    out, scaled = (spectra_shape(m, rank=4, n_iter=4, ritz=ritz) for m in (z, z * 2.0**exponent))
    assert torch.equal(scaled.matrix, out.matrix * 2.0**exponent)
    assert torch.equal(scaled.sigma_tail, out.sigma_tail * 2.0**exponent)
    assert torch.equal(scaled.basis, out.basis)


def test_the_limit_of_the_largest_rank_is_the_polar_factor():
    """All kept values equal the last one, so the result is a multiple of ``U V^T``."""
    z, u, s, v = planted(torch.logspace(0, -1, 10), 10, 16)
    out = spectra_shape(z, rank=9, basis=u).matrix
    cosine = (out * (u @ v.T)).sum() / out.norm() / (u @ v.T).norm()
    assert cosine > 1 - 1e-12
    assert relative(torch.linalg.svdvals(out), s[-1].expand(10)) < 1e-10


def test_rank_zero_changes_nothing():
    z = spiked(8, 9)[0]
    out = spectra_shape(z, rank=0)
    assert relative(out.matrix, z) < 1e-15
    assert out.spike.shape == (0,)
    assert relative(out.sigma_tail, z.norm() / 8**0.5) < 1e-12


def test_rank_at_most_k_is_not_divided_by_round_off():
    z = planted([5.0, 3.0, 2.0], 12, 20, dtype=torch.float32)[0]
    out = spectra_shape(z, rank=4, n_iter=4)
    values = torch.linalg.svdvals(out.matrix)
    assert relative(values[:3], torch.full((3,), 2.0)) < 1e-5
    assert values[3] < 1e-5
    assert relative(out.matrix, spectra_shape_reference(z, 4).matrix) < 1e-4


def test_zero_and_damaged_matrices_harm_nobody():
    z = spiked(10, 14, dtype=torch.float32)[0]
    batch = torch.stack([z, torch.zeros_like(z), z, z])
    batch[2, 1, 1], batch[3, 0, 0] = torch.nan, torch.inf
    basis = start(10, 6).float().expand(4, -1, -1)
    out = spectra_shape(batch, rank=4, basis=basis)
    alone = spectra_shape(z, rank=4, basis=basis[0])
    assert relative(out.matrix[0], alone.matrix) < 1e-6
    assert not out.matrix[1].any()
    assert out.matrix[2].isnan().any()
    assert not out.matrix[3].isfinite().all()
    for i in (1, 2, 3):
        assert torch.equal(out.basis[i], basis[i])


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_vectors_have_no_spike(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spectra_shape(z).matrix, z / z.abs().max() * z.abs().max())


def test_half_precision_is_computed_in_float32():
    z = spiked(10, 14, dtype=torch.float32)[0].bfloat16()
    out = spectra_shape(z, rank=4, n_iter=4)
    assert (out.matrix.dtype, out.basis.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out.matrix, spectra_shape(z.float(), rank=4, n_iter=4).matrix.bfloat16())


def test_the_default_rank_is_a_share_of_the_shorter_side():
    z = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    assert spectra_shape(z).spike.shape == (3,)
    assert spectra_shape(z, rank_ratio=0.1, oversample=2).basis.shape == (200, 22)
    assert spectra_shape(z.expand(2, 3, -1, -1)).basis.shape == (2, 3, 200, 11)


@pytest.mark.parametrize("ritz", [True, False])
def test_compiles_without_a_graph_break(ritz):
    z = spiked(14, 22, dtype=torch.float32)[0]
    basis = start(14 if ritz else 22, 6).float()
    shape = lambda z, basis: spectra_shape(z, rank=4, basis=basis, ritz=ritz)  # noqa: E731 (compiled below)
    compiled = torch.compile(shape, fullgraph=True, backend="aot_eager")
    for eager, graph in zip(shape(z, basis), compiled(z, basis), strict=True):
        assert torch.equal(eager, graph)


def test_refusals():
    z = torch.ones(4, 6)
    with pytest.raises(ConfigError, match="rank 4, n_iter 1, oversample 8 do not fit a 4 x 6 matrix"):
        spectra_shape(z, rank=4)
    with pytest.raises(ConfigError, match=r"a basis \(5, 2\) does not fit \(4, 6\) at rank 1"):
        spectra_shape(z, rank=1, basis=torch.ones(5, 2))
