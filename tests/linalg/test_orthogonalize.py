"""Orthogonal factors: near by polynomials, exact by SVD, free of scale."""

import pytest
import torch
from planted_spectra import planted, relative

from eigenloom import orthogonalize
from eigenloom.errors import ConfigError


def matrix(dtype=torch.float64):
    return planted(torch.logspace(0, -1.5, 12), 12, 20, dtype=dtype)


def test_svd_is_the_polar_factor():
    z, u, _, v = matrix()
    assert relative(orthogonalize(z, "svd"), u @ v.T) < 1e-13


@pytest.mark.parametrize(("method", "low", "high"), [("newton_schulz", 0.5, 1.5), ("polar_express", 0.85, 1.15)])
def test_polynomials_bring_singular_values_near_one_and_keep_vectors(method, low, high):
    z, u, _, v = matrix()
    out = orthogonalize(z, method)
    values = torch.linalg.svdvals(out)
    assert low < values.min()
    assert values.max() < high
    rotated = u.T @ out @ v
    # An odd polynomial of a matrix moves singular values only: what is off the diagonal is rounding.
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-12


def test_newton_schulz_is_not_the_polar_factor():
    z, u, _, v = matrix()
    assert relative(orthogonalize(z, "newton_schulz"), u @ v.T) > 0.05


def test_polar_express_converges_to_the_polar_factor():
    """Twenty steps, the last ones Newton-Schulz of degree 5, whose fixed point is 1."""
    z, u, _, v = matrix()
    assert relative(orthogonalize(z, "polar_express", 20), u @ v.T) < 1e-12


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express", "svd"])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e30])
def test_scale_does_not_matter(method, scale):
    z = matrix(torch.float32)[0]
    # Entries of 1e-30 carry 24 bits as those of 1 do; the two differ by the rounding of scaled entries.
    assert relative(orthogonalize(z * scale, method), orthogonalize(z, method)) < 2e-5


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express", "svd"])
def test_batches_transposes_zeros_and_damaged_matrices(method):
    z = torch.stack([matrix()[0], torch.zeros(12, 20, dtype=torch.float64), matrix()[0]])
    z[2, 3, 4] = torch.nan
    out = orthogonalize(z, method)
    assert relative(out[0], orthogonalize(z[0], method)) < 1e-12
    assert not out[1].any()
    assert out[2].isnan().all()
    assert relative(orthogonalize(z[0].T, method), out[0].T) < 1e-12


def test_null_directions_stay_null():
    z, u, _, v = planted([3.0, 2.0], 6, 8)
    assert relative(orthogonalize(z, "svd"), u @ v.T) < 1e-13


def test_half_precision_stays_half_precision():
    z = matrix(torch.float32)[0].bfloat16()
    for method in ("newton_schulz", "svd"):
        out = orthogonalize(z, method)
        assert out.dtype == torch.bfloat16
        assert torch.linalg.svdvals(out.float()).min() > 0.4


def test_refusals():
    with pytest.raises(ConfigError, match="'qr' is no method; use newton_schulz"):
        orthogonalize(torch.ones(2, 2), "qr")
    with pytest.raises(ConfigError, match="at least 1 step"):
        orthogonalize(torch.ones(2, 2), steps=0)
