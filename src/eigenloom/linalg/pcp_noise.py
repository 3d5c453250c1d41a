"""How noisy a matrix is, measured from itself: what a low rank leaves of it, seen through a median."""

import logging
import math

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_recursion import Blocks
from eigenloom.linalg.svt import products

logger = logging.getLogger("eigenloom")
_ENTRIES = 1 << 20
_CLIP = 4.0
_NORMAL = 1.4826
"""A normal standard deviation in units of the median absolute deviation."""
_WALKS, _EXTRA = 2, 10
_ROUNDS, _SETTLED = 20, 0.005


def noise_level(problem: Problem, rank: int, seed: int) -> float:
    """Return the noise's standard deviation: ``1.4826 MAD`` of what a low rank leaves of the matrix.

    The matrix, or as many seeded rows as 1M entries take, is clipped at four such deviations, first around its median
    and then around the low rank found in the clipped matrix, so that spikes cannot bend it. The low rank, at most a
    quarter of the smaller side, takes noise with it: the result is divided by the share of degrees of freedom left.
    0 where more than half of the matrix repeats.
    """
    rows, observed = _sample(problem, seed)
    n, m = rows.shape
    rank = min(rank, min(n, m) // 4)
    left = math.sqrt((1 - rank / n) * (1 - rank / m))
    fitted = torch.full_like(rows, float(rows[observed].median()))
    deviation, before = _deviation(rows, fitted, observed), math.inf
    basis = torch.randn(m, min(rank + _EXTRA, m), generator=generator(seed, "sketch")).to(rows)
    for _ in range(_ROUNDS if rank else 0):
        if abs(deviation - before) <= _SETTLED * deviation:
            break
        rest = torch.where(observed, rows - fitted, 0.0)
        fitted, basis = _leading(fitted + rest.clamp_(-_CLIP * deviation, _CLIP * deviation), rank, basis)
        before, deviation = deviation, _deviation(rows, fitted, observed) / left
    logger.info("pcp: noise_std %.4g, measured beside rank %d", deviation, rank)
    return deviation


def _sample(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Return seeded rows ``[b, m]`` of the tall matrix and where they are observed."""
    n, m = problem.shape
    wanted = min(n, max(1, _ENTRIES // m))
    chosen = torch.randperm(n, generator=generator(seed, "reservoir"))[:wanted].sort().values.to(problem.device)
    kept, seen = [], []
    for rows, x, v in problem.blocks():
        inside = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start
        kept.append(x[inside])
        finite = torch.isfinite(torch.as_tensor(v, device=x.device)).expand(x.shape)
        seen.append(finite[inside])
    return torch.cat(kept), torch.cat(seen)


def _deviation(rows: Tensor, fitted: Tensor, observed: Tensor) -> float:
    """Return ``1.4826`` times the median distance of observed entries from what was fitted."""
    return _NORMAL * float((rows - fitted)[observed].abs_().median())


def _leading(matrix: Tensor, rank: int, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return about the projection of ``[n, m]`` on its leading right directions, and their subspace turned on."""
    n, m = matrix.shape
    whole = Blocks((n, m), matrix.dtype, matrix.device, lambda: iter([(slice(0, n), matrix)]))
    for _ in range(_WALKS):
        basis = torch.linalg.qr(products(whole, basis)[1]).Q.to(matrix)
    left = matrix @ basis
    _, rotation = torch.linalg.eigh(left.double().T @ left.double())
    leading = basis @ rotation.flip(1)[:, :rank].to(matrix)
    return matrix @ leading @ leading.T, basis
