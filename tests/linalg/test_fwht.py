"""The Walsh-Hadamard transform against scipy's matrix, its own inverse, and its other paths."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from eigenloom.errors import ConfigError
from eigenloom.linalg.fwht import fwht, fwht_reference

EPS = torch.finfo(torch.float32).eps


def rows(b, n, seed=0, dtype=torch.float32):
    return torch.randn(b, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bits", range(11))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_scipys_matrix(bits, dtype):
    x = rows(3, 1 << bits, dtype=dtype)
    expected = x.double() @ torch.from_numpy(hadamard(1 << bits).astype(np.float64))
    # Twenty additions in a row err by at most twenty roundings of the largest partial sum.
    error = (fwht(x).double() - expected).abs().max()
    assert error <= 4 * max(bits, 1) * torch.finfo(dtype).eps * x.double().norm(dim=1).max()
    assert torch.equal(fwht_reference(x), expected)


@pytest.mark.parametrize("bits", [1, 5, 12, 13, 16, 18, 20])
def test_is_its_own_inverse_and_keeps_norms(bits):
    x = rows(2, 1 << bits)
    once = fwht(x)
    assert once.double().square().sum(1) == pytest.approx(x.double().square().sum(1) * (1 << bits), rel=1e-5)
    assert (fwht(once) / (1 << bits) - x).abs().max() < 20 * EPS * x.abs().max()


def test_is_linear_and_exact_on_unit_vectors():
    x = torch.zeros(3, 1 << 14)
    x[0, 0], x[1, 5], x[2, 1 << 13] = 1.0, 1.0, -2.0
    z = fwht(x)
    number = torch.arange(1 << 14)
    parity = sum((number & 5) >> bit & 1 for bit in range(3)) % 2
    assert torch.equal(z[0], torch.ones(1 << 14))
    assert torch.equal(z[1], 1.0 - 2.0 * parity)
    assert torch.equal(z[2], -2.0 * (1 - 2.0 * (number >> 13)))


def test_writes_where_it_is_told_even_over_its_input():
    x = rows(4, 1 << 13)
    expected, kept = fwht(x), x.clone()
    assert torch.equal(x, kept)
    out = torch.full_like(x, torch.nan)
    assert fwht(x, out=out) is out
    assert torch.equal(out, expected)
    assert fwht(x, out=x) is x
    assert torch.equal(x, expected)


def test_takes_any_leading_shape_and_stride():
    x = rows(6, 256)
    expected = fwht(x)
    assert torch.equal(fwht(x.view(2, 3, 256)), expected.view(2, 3, 256))
    assert torch.equal(fwht(x[0]), expected[0])
    assert torch.equal(fwht(x.T.contiguous().T), expected)
    assert torch.equal(fwht(x[::2]), expected[::2])
    assert fwht(torch.empty(0, 8)).shape == (0, 8)


def test_a_row_alone_is_the_row_in_company():
    x = rows(40, 1 << 12)
    together = fwht(x)
    for i in (0, 17, 39):
        assert (fwht(x[i]) - together[i]).abs().max() <= 24 * EPS * x[i].norm()


def test_lengths_and_outputs_that_do_not_fit_are_refused():
    for n in (3, 1000, 0):
        with pytest.raises(ConfigError, match=f"fwht: rows of length {n} have no Hadamard transform; pad them"):
            fwht(torch.zeros(2, n))
    x = torch.zeros(2, 8)
    for out in (torch.zeros(2, 4), torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8, 2).T):
        with pytest.raises(ConfigError, match=r"fwht: out must be contiguous, \(2, 8\) torch.float32 on cpu"):
            fwht(x, out=out)
    with pytest.raises(ConfigError, match="fwht: torch.int64 rows"):
        fwht(torch.zeros(2, 8, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", [8, 14, 18])
def test_is_the_same_on_a_card(bits):
    x = rows(8, 1 << bits)
    assert (fwht(x.cuda()).cpu() - fwht(x)).abs().max() < 1e-5 * x.norm(dim=1).max()
