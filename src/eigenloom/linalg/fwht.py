"""The fast Walsh-Hadamard transform of the last dimension, unnormalised: ``H x`` with ``H H = n I``."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.linalg.fwht_compiled import compiled

_WORTH_COMPILING = 1 << 20
_FACTOR_BITS = 4
_PIECE = 1 << 20
_PACKAGE, _PACKAGE_LENGTH = "fast_hadamard_transform", 1 << 15


def fwht(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``x H``, the transform of every row.

    Three ways that agree but for rounding: compiled, for 2^20 float32 numbers and more on a CPU with a C compiler;
    products with small Hadamard matrices, on any CPU or card; the package ``fast-hadamard-transform`` on a card where
    it is installed.

    Args:
        x: ``[..., n]`` float32 or float64, ``n`` a power of two.
        out: where to write, contiguous and shaped like ``x``; may be ``x`` itself. None for a new tensor.

    Raises:
        ConfigError: the length is not a power of two, the dtype is another, or ``out`` does not fit.

    Complexity: ``n log n`` additions a row, or four times as many operations as products.
    """
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ConfigError(f"fwht: rows of length {n} have no Hadamard transform; pad them to a power of two")
    if x.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"fwht: {x.dtype} rows cannot be transformed; make them float32 or float64")
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise ConfigError(f"fwht: out must be contiguous, {tuple(x.shape)} {x.dtype} on {x.device}")
    rows, found = x.reshape(-1, n), out.view(-1, n)
    small = x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < _WORTH_COMPILING
    if not small and (kernel := compiled()) is not None:
        kernel(rows.contiguous(), found)
    elif x.device.type == "cuda" and x.dtype == torch.float32 and find_spec(_PACKAGE):
        found.copy_(_by_package(rows))
    else:
        fwht_by_products(rows, found)
    return out


def fwht_reference(x: Tensor) -> Tensor:
    """Return ``x H`` the obvious way, by the whole matrix in float64: ``n^2`` operations a row."""
    return x.double() @ _hadamard(x.shape[-1].bit_length() - 1, torch.float64, x.device)


def fwht_by_products(x: Tensor, out: Tensor) -> Tensor:
    """Transform rows ``[b, n]`` into ``out`` by products with the Kronecker factors of ``H``.

    Each product takes the last few bits of the position of a number, transforms along them, and leaves them in front.
    When every bit of a row has had its turn, positions read (within the row, row): in order for one row, turned for
    several.
    """
    n = x.shape[1]
    bits = n.bit_length() - 1
    held = max(1, len(x) if x.device.type != "cpu" else _PIECE // n)  # on a CPU, what stays in cache
    buffers = x.new_empty(2, min(held, len(x)) * n)
    for first in range(0, len(x), held):
        part = x[first : first + held].reshape(-1)
        here, there = buffers[:, : len(part)]
        for done in range(0, bits, _FACTOR_BITS):
            step = min(_FACTOR_BITS, bits - done)
            matrix = _hadamard(step, x.dtype, x.device)
            torch.mm(matrix, part.view(-1, 1 << step).T, out=here.view(1 << step, -1))
            part, here, there = here, there, here
        out[first : first + held] = part.view(n, -1).T
    return out


def _by_package(x: Tensor) -> Tensor:
    """Transform rows ``[b, n]`` on a card by a fused kernel, and what exceeds its length by one more product."""
    inner = min(x.shape[1], _PACKAGE_LENGTH)
    outer = x.shape[1] // inner
    near = import_module(_PACKAGE).hadamard_transform(x.reshape(-1, inner).contiguous(), 1.0)
    return (_hadamard(outer.bit_length() - 1, x.dtype, x.device) @ near.view(-1, outer, inner)).view(x.shape)


@cache
def _hadamard(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the Hadamard matrix of order ``2^bits`` in Sylvester's order."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
