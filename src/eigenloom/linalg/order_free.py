"""Sums that do not depend on the order of their terms: not on batches, threads or processes.

Rounded to multiples of one power of two ``q``, small enough in number for every partial sum to fit 53 bits,
float64 terms add without rounding error; exact addition is associative and commutative.
"""

import math

import torch
from torch import Tensor

MANTISSA = 52
PART_ELEMENTS = 1 << 17


def quantum(bound: Tensor, n_terms: int) -> Tensor:
    """Return ``q = 2^(ceil(log2 bound) + ceil(log2 n_terms) - 52)``, of which terms must be multiples.

    Args:
        bound: any shape, float64: no term is larger in magnitude than the entry of its column.
        n_terms: no sum has more terms; counts as at least 2.

    Sums of ``n_terms`` multiples of ``q`` that respect the bound are exact in float64. The rounding stays 30 bits
    below the bound up to 4 million terms, so a column of one repeated float32 number keeps every bit.
    """
    mantissa, exponent = torch.frexp(bound.to(torch.float64))
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    shift = math.ceil(math.log2(max(n_terms, 2))) - MANTISSA
    return torch.ldexp(torch.ones_like(mantissa), exponent + shift)


def quantize(x: Tensor, q: Tensor) -> Tensor:
    """Return ``x`` (any float dtype, ``|x| <= 2^51 q``) as float64, rounded half-even to multiples of ``q``.

    ``q`` broadcasts against ``x``. Adding and subtracting ``1.5 * 2^52 q`` leaves no bits below ``q``: two passes, no
    division.
    """
    magic = q * (1.5 * 2.0**MANTISSA)
    return x.to(torch.float64, copy=True).add_(magic).sub_(magic)


def add_by_label(sums: Tensor, x: Tensor, labels: Tensor, q: Tensor) -> None:
    """Add each row of ``x`` ``[b, ...]``, rounded to multiples of ``q``, to ``sums[label]`` (float64, in place).

    On CUDA rows are sorted by label and segments summed; elsewhere they are added one by one. Both are exact, so
    they agree to the last bit.
    """
    if x.is_cuda:
        add_segments(sums, quantize(x, q), labels)
        return
    n_rows = max(1, PART_ELEMENTS * len(x) // max(x.numel(), 1))
    for part, names in zip(x.split(n_rows), labels.split(n_rows), strict=True):  # float64 terms that stay in cache
        sums.index_add_(0, names, quantize(part, q))


def add_segments(sums: Tensor, terms: Tensor, labels: Tensor) -> None:
    """Add float64 ``terms`` ``[b, ...]`` to ``sums[label]`` in place: sort by label, sum segments. No atomics."""
    ordered, order = labels.sort()
    offsets = torch.searchsorted(ordered, torch.arange(len(sums) + 1, device=labels.device))
    sums += torch.segment_reduce(terms[order], "sum", offsets=offsets, axis=0, initial=0.0, unsafe=True)


def add_by_label_reference(sums: Tensor, x: Tensor, labels: Tensor, q: Tensor) -> None:
    """Do the same by definition: divide by ``q``, round, add one row at a time."""
    for row, label in zip(x.to(torch.float64), labels.tolist(), strict=True):
        sums[label] += torch.round(row / q) * q
