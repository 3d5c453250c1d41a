"""Proxies ``P_i [r, d]``: few rows that stand for the row space of an expert."""

from typing import Any

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.experts.settings import SeedingConfig, SeedingMethod
from eigenloom.experts.source import Tiles
from eigenloom.linalg.eigen import leading_eigh


def proxies_of(tiles: Tiles, rank: int, config: SeedingConfig) -> tuple[Tensor, dict[str, Any]]:
    """Return proxies ``[E, r, d]`` of the method's kind, and what there is to say about them.

    ``svd``: leading right singular vectors of each expert, times its singular values. ``left_gram_pca``: ``A0^T W_i``
    with the leading eigenvectors of ``sum_i W_i W_i^T``. Every other method: rows, the same of each expert.
    """
    if config.method is SeedingMethod.SVD:
        return torch.cat([leading_rows(w, rank) for _, w in tiles]), {}
    if config.method is SeedingMethod.LEFT_GRAM_PCA:
        p, _ = tiles.shape
        gram = torch.zeros(p, p, dtype=torch.float64, device=tiles.device)
        for _, w in tiles:
            gram += (w @ w.mT).sum(0, dtype=torch.float64)
        values, vectors = leading_eigh(gram, rank)
        left = vectors.to(tiles.device, tiles.dtype)
        total = float(gram.trace())
        share = float(values.sum()) / total if total else 1.0
        told = {"gram_eigenvalues": values.tolist(), "gram_energy_share": share}
        return torch.cat([left @ w for _, w in tiles]), told
    energies = torch.zeros(tiles.shape[0], dtype=torch.float64, device=tiles.device)
    for _, w in tiles:
        energies += w.square().sum((0, 2), dtype=torch.float64)
    rows = select_rows(energies.cpu(), rank, config)
    total = float(energies.sum())
    share = float(energies[rows.to(tiles.device)].sum()) / total if total else 1.0
    facts = {"rows": rows.tolist(), "row_energies": energies.cpu()[rows].tolist(), "row_energy_share": share}
    return torch.cat([w[:, rows.to(tiles.device)] for _, w in tiles]), facts


def select_rows(energies: Tensor, rank: int, config: SeedingConfig) -> Tensor:
    """Return the rows ``[r]`` int64 to take of every expert, ascending.

    Args:
        energies: ``sum_i ||W_i[k]||^2`` ``[p]`` float64.
        rank: how many.
        config: ``energy``, the largest; ``uniform``, ``floor((j + 1/2) p / r)``; ``random``, without replacement.
    """
    p = len(energies)
    if config.row_selection == "energy":
        rows = energies.argsort(descending=True, stable=True)[:rank]
    elif config.row_selection == "uniform":
        rows = (2 * torch.arange(rank) + 1) * p // (2 * rank)
    else:
        rows = torch.randperm(p, generator=generator(config.seed, "expert rows"))[:rank]
    return rows.sort().values


def leading_rows(w: Tensor, rank: int) -> Tensor:
    """Return ``Sigma V^T`` ``[b, r, d]`` of the leading singular triplets of ``[b, p, d]``.

    From ``W W^T`` in float64 on the CPU; rows come out orthogonal to the accuracy of that product.
    """
    gram = w.double() @ w.double().mT
    vectors = torch.linalg.eigh(gram.cpu()).eigenvectors[..., -rank:].flip(-1)
    return vectors.mT.to(w.device, w.dtype) @ w
