"""The error as a function of codes and bank alone, the adapters being the best ones: value and gradient.

Variable projection (Golub and Pereyra 1973): since the adapters are optimal, the gradient is that with them held.
"""

import torch
from torch import Tensor

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.model import ACTIVATION, mix, slopes, squared_norm
from eigenloom.experts.source import Tiles


def value_and_gradient(
    tiles: Tiles, codes: Tensor, bank: Tensor, activation: str, ridge: float
) -> tuple[float, Tensor, Tensor]:
    """Return ``F``, its gradient ``[E, m]`` in the codes and ``[m, r, d]`` in the bank; one pass over the experts."""
    value = 0.0
    code_gradient, bank_gradient = torch.empty_like(codes), torch.zeros_like(bank)
    for part, w in tiles:
        alpha = codes[part]
        mixed = mix(alpha, bank)
        m = ACTIVATION[activation](mixed)
        a = fit_adapters(w, m, ridge)
        residual = torch.baddbmm(w, a, m, alpha=-1)
        value += squared_norm(residual)
        slope = a.mT @ residual
        if activation != "identity":
            slope *= slopes(activation, mixed)
        flat = slope.flatten(1).mul_(-2)
        code_gradient[part] = flat @ bank.flatten(1).T
        bank_gradient += (alpha.T @ flat).view_as(bank)
    return value, code_gradient, bank_gradient
