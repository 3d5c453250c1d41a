"""Where k-means starts: greedy k-means++ on a sample of the rows.

Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007), whose section 5 proposes the greedy
variant: of several candidates drawn by squared distance, keep the one that lowers the potential most.
"""

import math

import torch
from torch import Tensor

NOISE = 2.0**-21
"""Squared distances below this share of the squared norms are rounding, and count as zero."""


def greedy_kmeans_plusplus(
    x: Tensor, n_clusters: int, generator: torch.Generator, n_trials: int | None = None
) -> Tensor:
    """Return the indices ``[n_clusters]`` int64 (CPU) of rows of ``x`` ``[n, d]`` float32 that make good seeds.

    Each step draws ``n_trials`` (default ``2 + floor(ln n_clusters)``) candidates by squared distance to the seeds so
    far and keeps the one with the lowest potential, summed in float64. Once every row coincides with a seed, the
    rest are drawn uniformly and are duplicates. One pass over ``x`` per seed: ``2 n_trials n d`` operations.
    """
    trials = n_trials or 2 + int(math.log(n_clusters))
    rows = x - x.mean(0, dtype=torch.float64).to(x.dtype)
    norms = rows.square().sum(1)
    draws = torch.rand(n_clusters, trials, generator=generator, dtype=torch.float64).to(x.device)
    best = (draws[0, :1] * len(x)).long().clamp_max(len(x) - 1)
    closest = torch.full_like(norms, torch.inf)
    chosen = []
    for step in range(n_clusters):
        candidates = draw_by_weight(closest, draws[step]) if step else best
        # The squared norm of a candidate is added after the GEMM has added those of the rows.
        distances = torch.addmm(norms, rows[candidates], rows.T, alpha=-2).add_(norms[candidates, None])
        distances = torch.minimum(distances, closest).clamp_min_(0)
        place = distances.sum(1, dtype=torch.float64).argmin(0, keepdim=True)
        best = candidates[place]
        closest = distances.index_select(0, place)[0]
        closest *= closest > NOISE * (norms + norms[best])
        chosen.append(best)
    return torch.cat(chosen).cpu()


def draw_by_weight(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the indices that ``uniforms`` in ``[0, 1)`` select with probability proportional to ``weights`` ``[n]``.

    Uniform over all indices where every weight is zero. Cumulated in float64; no host sync.
    """
    cumulated = weights.cumsum(0, dtype=torch.float64)
    total = cumulated[-1]
    even = torch.arange(1, len(weights) + 1, device=weights.device, dtype=torch.float64) / len(weights)
    cumulated = torch.where(total > 0, cumulated, even)
    return torch.searchsorted(cumulated, uniforms * cumulated[-1], right=True).clamp_max(len(weights) - 1)
