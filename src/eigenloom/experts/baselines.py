"""What a bank must beat at equal parameters, and the bound that it cannot: low rank without a shared bank.

Errors are exact tails of singular values, from products in float64, one pass per baseline over the experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.experts.settings import check_sizes
from eigenloom.experts.source import ExpertSource, Tiles, families_of


@dataclass(frozen=True)
class Baseline:
    """One row: its ``name``, ``rank``, ``n_parameters``, and its relative Frobenius error."""

    name: str
    rank: int
    n_parameters: int
    relative_error: float


def bank_parameters(n_experts: int, shape: tuple[int, int], rank: int, num_bases: int) -> int:
    """Return how many numbers a bank has: ``E p r + m r d + E m``, p the smaller side."""
    p, d = sorted(shape)
    return n_experts * p * rank + num_bases * rank * d + n_experts * num_bases


def equal_rank(n_parameters: int, n_experts: int, shape: tuple[int, int]) -> int:
    """Return the largest rank at which a factorization of every expert has at most ``n_parameters`` numbers."""
    return min(n_parameters // (n_experts * sum(shape)), *shape)


def truncated(w: Tensor, rank: int) -> Tensor:
    """Return the best approximation of ``rank`` of each expert ``[b, p, d]``, in their dtype; computed in float64."""
    u, s, vt = torch.linalg.svd(w.double(), full_matrices=False)
    return ((u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]).to(w.dtype)


def baselines(weights: object, rank: int, num_bases: int) -> list[Baseline]:
    """Return the rows that stand beside a bank of ``num_bases`` atoms of ``rank``.

    The SVD of every expert at ``rank`` (the lower bound, with more parameters); and with at most the bank's parameters
    the SVD of every expert, the SVD of one stack and of ``num_bases`` contiguous stacks (MoLAE, arXiv 2503.23100), a
    mean with low-rank differences (D2-MoE, arXiv 2502.17298, without calibration data). Those whose rank would be 0 are
    left out.

    Args:
        weights: ``[E, p, d]``, a list of ``[p, d]`` or an ``ExpertSource``.
        rank: of the bank.
        num_bases: of the bank.

    Raises:
        ConfigError: sizes that cannot be.
    """
    ((family, source),) = families_of(weights).items()
    n, (p, d) = source.n_experts, source.shape
    check_sizes(rank, num_bases, n, (p, d), family)
    budget = bank_parameters(n, (p, d), rank, num_bases)
    tiles = Tiles(source, transposed=p > d)
    p, d = tiles.shape
    values = _squared_singular_values(tiles)
    total = float(values.sum())
    rows = [Baseline("svd of each, same rank (bound)", rank, n * rank * (p + d), _left(values, rank, total))]
    each = equal_rank(budget, n, (p, d))
    rows.append(Baseline("svd of each", each, n * each * (p + d), _left(values, each, total)))
    for groups in (1, num_bases) if num_bases > 1 else (1,):
        k = min(budget // (n * p + groups * d), d)
        name = "svd of one stack" if groups == 1 else f"svd of {groups} stacks"
        rows.append(Baseline(name, k, k * (n * p + groups * d), _left(_stacked_values(tiles, groups), k, total)))
    k = min(max(budget - p * d, 0) // (n * (p + d)), p)
    mean = sum(w.double().sum(0) for _, w in tiles) / n
    assert isinstance(mean, Tensor)
    error = _left(_squared_singular_values(tiles, mean), k, total)
    rows.append(Baseline("mean and svd of differences", k, p * d + n * k * (p + d), error))
    return [row for row in rows if row.rank > 0]


def svd_bound(source: ExpertSource, rank: int) -> float:
    """Return the relative error below which no bank of this rank comes.

    Raises:
        ConfigError: a rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"rank: {rank} is below 1")
    values = _squared_singular_values(Tiles(source, transposed=source.shape[0] > source.shape[1]))
    return _left(values, rank, float(values.sum()))


def _squared_singular_values(tiles: Tiles, mean: Tensor | None = None) -> Tensor:
    """Return ``[E, p]`` descending, float64, of the experts or of their differences from a mean."""
    found = []
    for _, w in tiles:
        exact = w.double() if mean is None else w.double() - mean
        found.append(torch.linalg.eigvalsh(exact @ exact.mT).flip(-1).clamp_min(0))
    return torch.cat(found)


def _stacked_values(tiles: Tiles, groups: int) -> Tensor:
    """Return squared singular values ``[groups, d]`` of the stacks of contiguous groups of experts."""
    _, d = tiles.shape
    grams = torch.zeros(groups, d, d, dtype=torch.float64, device=tiles.device)
    parts = torch.arange(tiles.n_experts).tensor_split(groups)
    owner = torch.cat([torch.full((len(part),), j) for j, part in enumerate(parts)])
    for part, w in tiles:
        exact = w.double()
        grams.index_add_(0, owner[part].to(tiles.device), exact.mT @ exact)
    return torch.linalg.eigvalsh(grams).flip(-1).clamp_min(0)


def _left(values: Tensor, rank: int, total: float) -> float:
    """Return the relative error that the values beyond a rank leave."""
    return (float(values[:, rank:].sum()) / total) ** 0.5 if total else 0.0
