"""One gauge for all proxies: rows made orthonormal, then rotated towards their common mean.

Proxies are only known up to rotations, which the adapters absorb; a linear dictionary over proxies in different gauges
means nothing. Generalised Procrustes analysis: Gower (1975).
"""

import torch
from torch import Tensor

from eigenloom.linalg.orthogonalize import orthogonalize

REPRESENTATIVES = 16
"""Experts whose mean is iterated on; the others are rotated towards it once, at the end."""
_CONVERGED = 1e-3


def orthonormal_rows(proxies: Tensor) -> Tensor:
    """Return rows ``[b, r, d]`` that are orthonormal and span the same space.

    By Cholesky in float64, a second time where the first is not good enough, and by QR where that fails.
    """
    for _ in range(2):
        exact = proxies.double()
        gram = exact @ exact.mT
        factor, info = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal(dim1=1, dim2=2)
        if bool((info != 0).any()) or bool((pivots.amin(1) < 1e-5 * pivots.amax(1)).any()):
            q = torch.linalg.qr(proxies.cpu().double().mT).Q.mT
            return q.to(proxies.device, proxies.dtype)
        proxies = torch.linalg.solve_triangular(factor, exact, upper=False).to(proxies.dtype)
        if bool((pivots.amin(1) > 0.1 * pivots.amax(1)).all()):
            break
    return proxies


def align(proxies: Tensor, gauge: str, sweeps: int) -> tuple[Tensor, dict[str, list[float] | float]]:
    """Bring proxies ``[E, r, d]`` into one gauge.

    ``procrustes``: orthonormal rows, then ``P_i <- polar(N P_i^T) P_i`` with N the mean, for at most ``sweeps`` rounds
    or until ``sum ||P_i - N||^2`` falls by less than 1e-3 of itself; ``weighted``: without the first step; ``none``:
    nothing.
    The first N is the proxy of largest energy. Rounds run over ``REPRESENTATIVES`` experts at equal distances.

    Returns:
        Aligned proxies, and the objective after every round (of the representatives) and at the end (of all).
    """
    if gauge == "none":
        return proxies, {}
    energy = proxies.square().sum((1, 2), dtype=torch.float64)
    if gauge == "procrustes":
        proxies = orthonormal_rows(proxies)
    n = len(proxies)
    chosen = torch.arange(min(n, REPRESENTATIVES), device=proxies.device) * n // min(n, REPRESENTATIVES)
    few = proxies[chosen]
    mean = few[energy[chosen].argmax()]
    rounds: list[float] = []
    for _ in range(sweeps):
        few = rotated(few, mean)
        mean = few.mean(0)
        rounds.append(spread(few))
        if len(rounds) > 1 and rounds[-2] - rounds[-1] <= _CONVERGED * rounds[-2]:
            break
    if sweeps:
        others = torch.ones(n, dtype=torch.bool, device=proxies.device)
        others[chosen] = False
        proxies = proxies.clone()
        proxies[chosen] = few
        proxies[others] = rotated(proxies[others], mean)
    return proxies, {"procrustes_objective": rounds, "procrustes_spread": spread(proxies)}


def rotated(proxies: Tensor, target: Tensor) -> Tensor:
    """Return ``R_i P_i`` with the rotations that bring each nearest to ``target`` ``[r, d]``."""
    if not len(proxies):
        return proxies
    products = target @ proxies.mT
    if products.device.type == "cpu":
        return orthogonalize(products, "svd") @ proxies
    return orthogonalize(products, "polar_express", steps=16) @ proxies


def spread(proxies: Tensor) -> float:
    """Return ``sum_i ||P_i - mean||^2`` in float64."""
    total = proxies.square().sum(dtype=torch.float64)
    return float(total - len(proxies) * proxies.mean(0, dtype=torch.float64).square().sum())
