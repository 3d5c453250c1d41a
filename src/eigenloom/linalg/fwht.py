"""The fast Walsh-Hadamard transform of the last dimension, unnormalised: ``H x`` with ``H H = n I``.

On the CPU every path makes the additions of the plain butterfly in its order, steps 1, 2, 4, ... apart, so that their
results agree to the last bit; they differ in how long a piece stays in cache. On a card rows are multiplied by the
Kronecker factors of ``H``.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.linalg.fwht_compiled import compiled

_WORTH_COMPILING = 1 << 23
_FACTOR_BITS = 5
_NEAR_BITS = 6
_PIECE = 1 << 16
_STRIP = 64
_PACKAGE = "fast_hadamard_transform"
_PACKAGE_LENGTH = 1 << 15


def fwht(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``x H``, the transform of every row.

    Args:
        x: ``[..., n]`` float32 or float64, ``n`` a power of two.
        out: where to write, contiguous and shaped like ``x``; may be ``x`` itself. None for a new tensor.

    Raises:
        ConfigError: the length is not a power of two, the dtype is another, or ``out`` does not fit.

    Complexity: ``n log n`` additions a row.
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
    if x.device.type != "cpu":
        return out.copy_(fwht_by_factors(x.reshape(-1, n)).view(x.shape))
    if out is not x:
        out.copy_(x)
    if not x.numel():
        return out
    rows = out.view(-1, n)
    if x.dtype == torch.float32 and (kernel := compiled(build=x.numel() >= _WORTH_COMPILING)) is not None:
        kernel(rows)
    else:
        fwht_in_cache(rows)
    return out


def fwht_reference(x: Tensor) -> Tensor:
    """Return ``x H`` the obvious way, by the whole matrix in float64: ``n^2`` operations a row."""
    return x.double() @ _hadamard(x.shape[-1].bit_length() - 1, torch.float64, x.device)


def fwht_in_cache(x: Tensor) -> None:
    """Transform contiguous rows ``[b, n]`` in place in plain torch, a piece that fits a cache at a time."""
    n = x.shape[1]
    near = min(n, 1 << 2 * _NEAR_BITS)
    for piece in x.view(-1, near).split(max(1, _PIECE // near)):
        low = min(near, 1 << _NEAR_BITS)
        turned = piece.view(len(piece), near // low, low).transpose(1, 2).contiguous()
        turned = _steps(turned, len(piece), low)
        back = turned.view(len(piece), low, near // low).transpose(1, 2).contiguous()
        piece.copy_(_steps(back, len(piece), near // low).view(piece.shape))
    if near < n:
        for row in x.view(-1, n // near, near):
            for strip in row.split(max(_STRIP, _PIECE * near // n), dim=1):
                strip.copy_(_steps(strip.contiguous(), 1, n // near).view(strip.shape))


def fwht_by_factors(x: Tensor) -> Tensor:
    """Transform rows ``[b, n]`` by products with the Kronecker factors of ``H``, the last ones first."""
    n = x.shape[1]
    bits, inner = n.bit_length() - 1, 1
    if x.device.type == "cuda" and find_spec(_PACKAGE):
        inner = min(n, _PACKAGE_LENGTH)
        x = import_module(_PACKAGE).hadamard_transform(x.reshape(-1, inner), 1.0)
        bits -= inner.bit_length() - 1
    while inner < n:
        step = min(_FACTOR_BITS, bits)
        matrix = _hadamard(step, x.dtype, x.device)
        x = x.reshape(-1, 1 << step) @ matrix if inner == 1 else matrix @ x.reshape(-1, 1 << step, inner)
        bits, inner = bits - step, inner << step
    return x.reshape(-1, n)


def _steps(x: Tensor, n_outer: int, n_axis: int) -> Tensor:
    """Make the steps 1, 2, 4, ... along the middle axis of ``[outer, axis, inner]``; ``x`` is overwritten too."""
    other, inner, apart = torch.empty_like(x), x.numel() // (n_outer * n_axis), 1
    while apart < n_axis:
        shape = (n_outer * n_axis // (2 * apart), 2, apart * inner)
        pairs, found = x.view(shape), other.view(shape)
        torch.add(pairs[:, 0], pairs[:, 1], out=found[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=found[:, 1])
        x, other, apart = other, x, 2 * apart
    return x


@cache
def _hadamard(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the Hadamard matrix of order ``2^bits`` in Sylvester's order."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
