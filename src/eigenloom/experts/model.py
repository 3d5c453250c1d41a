"""The model ``W_i ~ A_i phi(sum_j alpha_ij B_j)``: activations, bases, and the error in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


def slopes(activation: str, x: Tensor) -> Tensor:
    """Return ``phi'(x)``, elementwise."""
    if activation == "silu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    if activation == "tanh":
        return 1 - torch.tanh(x).square()
    return torch.ones_like(x)


def mix(codes: Tensor, bank: Tensor) -> Tensor:
    """Return ``sum_j alpha_ij B_j`` ``[b, r, d]`` of codes ``[b, m]`` and bank ``[m, r, d]``."""
    return (codes @ bank.flatten(1)).unflatten(1, bank.shape[1:])


def bases(codes: Tensor, bank: Tensor, activation: str = "identity") -> Tensor:
    """Return ``M_i = phi(sum_j alpha_ij B_j)`` ``[b, r, d]``."""
    return ACTIVATION[activation](mix(codes, bank))


def squared_error(w: Tensor, adapters: Tensor, m: Tensor) -> Tensor:
    """Return ``||W_i - A_i M_i||^2`` ``[b]``, all of it in float64, of ``[b, p, d]``, ``[b, p, r]``, ``[b, r, d]``."""
    return (w.double() - adapters.double() @ m.double()).square().sum((1, 2))


def squared_norm(x: Tensor) -> float:
    """Return ``||x||^2`` of ``[b, ...]``: norms of the parts in their dtype, the sum of their squares in float64."""
    return float(torch.linalg.vector_norm(x.flatten(1), dim=1).double().square().sum())
