"""Where a bank begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.model import bases, squared_error
from eigenloom.experts.settings import SeedingConfig, check_sizes
from eigenloom.experts.source import Tiles, families_of


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Fields: ``bank [m, r, d]``, ``codes [E, m]``, ``adapters [E, p, r]`` float32, ``metrics``, JSON values."""

    bank: Tensor
    codes: Tensor
    adapters: Tensor
    metrics: Mapping[str, Any]


def create_warm_start(
    weights: Any, rank: int, num_bases: int, seeding_config: SeedingConfig | None = None
) -> WarmStart:
    """Seed a bank for one family.

    Args:
        weights: ``[E, p, d]``, a list of ``[p, d]`` or an ``ExpertSource``.
        rank: rows of an atom, at most ``min(p, d)``.
        num_bases: number of atoms, at most ``E``.
        seeding_config: how; the default is ``ts_pca``.

    Raises:
        ConfigError: a size that cannot be.
        DataError: unequal shapes, NaN or Inf.
    """
    ((_, source),) = families_of(weights).items()
    check_sizes(rank, num_bases, source.n_experts, source.shape)
    return seed_bank(Tiles(source), rank, num_bases, seeding_config or SeedingConfig())


def seed_bank(tiles: Tiles, rank: int, num_bases: int, config: SeedingConfig) -> WarmStart:
    """Seed from tiles."""
    proxies = torch.cat([w[:, :rank] for _, w in tiles])
    x = proxies.flatten(1).double()
    _, _, vt = torch.linalg.svd(x, full_matrices=False)
    codes = (x @ vt[:num_bases].T).float()
    bank = vt[:num_bases].float().unflatten(1, proxies.shape[1:])
    adapters, error, total = [], 0.0, 0.0
    for part, w in tiles:
        m = bases(codes[part], bank)
        adapters.append(fit_adapters(w, m))
        error += float(squared_error(w, adapters[-1], m).sum())
        total += float(w.double().square().sum())
    metrics = {"weight_explained_variance": 1 - error / total, "method": config.method.value}
    return WarmStart(bank, codes, torch.cat(adapters), metrics)
