"""Kernel values against their definition: any batch, any offset, either dtype; the scale that is chosen for them."""

import pytest
import torch
from problems import decaying_rows

from eigenloom.errors import ConfigError, DataError
from eigenloom.linalg.kernels import KERNELS, KernelRows, kernel_of, kernel_reference, median_gamma


def values(kernel, x, landmarks, dtype=torch.float32):
    landmarks = landmarks.to(dtype)
    shift = landmarks.mean(0) if kernel.shift_invariant else torch.zeros_like(landmarks[0])
    return KernelRows(kernel, landmarks - shift, shift)(x)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_values_are_those_of_the_definition(name, dtype, tolerance):
    rows = decaying_rows(3000, 12, mean=0.5)
    kernel = kernel_of(name, 0.3, 3, 1.0)
    expected = kernel_reference(kernel, rows, rows[:40])
    found = values(kernel, rows, rows[:40], dtype)
    assert found.dtype == dtype
    # The terms of an entry (squared norms, inner products) are a few times the entry itself; each is rounded once.
    assert (found.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("name", KERNELS)
def test_pieces_and_company_change_nothing(name):
    rows = decaying_rows(2500, 9)
    kernel_rows = KernelRows(kernel_of(name, 0.2, 2, 1.0), rows[:30], torch.zeros(9))
    together = kernel_rows(rows)
    assert torch.equal(torch.cat([piece.clone() for piece in kernel_rows.pieces(rows)]), together)
    alone = torch.cat([kernel_rows(row[None]) for row in rows[::100]])
    assert (alone - together[::100]).abs().max() < 1e-6 * together.abs().max()


def test_distances_survive_a_large_offset():
    rows = (decaying_rows(400, 6) * 0.05).mul(2.0**13).round().mul(2.0**-13)  # exact even at the offset
    far = rows + 1000
    kernel = kernel_of("rbf", 50.0)
    expected = kernel_reference(kernel, rows, rows[:20])
    assert (values(kernel, far, far[:20]).double() - expected).abs().max() < 1e-5
    unshifted = KernelRows(kernel, far[:20], torch.zeros(6))(far)
    assert (unshifted.double() - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", KERNELS)
def test_the_diagonal_is_that_of_the_matrix(name):
    rows = decaying_rows(50, 7, mean=1.0).double()
    kernel = kernel_of(name, 0.4, 3, 0.5)
    expected = kernel_reference(kernel, rows, rows).diagonal()
    assert (kernel.diagonal(rows.square().sum(1)) - expected).abs().max() < 1e-12 * expected.max()


def test_gamma_is_one_over_the_median_squared_distance():
    rows = decaying_rows(101, 5, mean=1000.0)
    distances = torch.pdist(rows.double()).square()
    assert median_gamma(rows) == pytest.approx(1 / distances.quantile(0.5).item(), rel=1e-9)


def test_gamma_of_rows_that_mostly_coincide_is_taken_from_the_others():
    rows = torch.full((40, 3), 7.1)
    rows[0] = 9.1
    assert median_gamma(rows) == pytest.approx(1 / 12, rel=1e-6)
    for same in (torch.full((40, 3), 7.1), torch.ones(1, 3)):
        with pytest.raises(DataError, match="no scale can be taken from .* all equal; .* give gamma as a number"):
            median_gamma(same)


def test_an_unknown_kernel_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match="kernel: 'cosine' is unknown; use one of rbf, poly, linear"):
        kernel_of("cosine")
