"""Where a bank begins: proxies of the experts, in one gauge, a dictionary over them, codes, adapters."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.alignment import align
from eigenloom.experts.dictionary import atoms_by_greed, atoms_by_mixture, atoms_by_pca, codes_of
from eigenloom.experts.model import bases, squared_error
from eigenloom.experts.proxies import proxies_of
from eigenloom.experts.settings import SeedingConfig, SeedingMethod, check_sizes
from eigenloom.experts.source import Tiles, families_of


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Fields: ``bank [m, r, d]``, ``codes [E, m]``, ``adapters [E, p, r]`` float32, ``metrics``, JSON values.

    Metrics: ``proxy_explained_variance`` of the aligned proxies at exactly m atoms; ``weight_explained_variance``,
    ``1 - rel^2`` of the factors returned; rows and their energies, or eigenvalues of the Gram matrix; the Procrustes
    objective; what the dictionary has to say; ``seconds`` per stage.
    """

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
    ((family, source),) = families_of(weights).items()
    check_sizes(rank, num_bases, source.n_experts, source.shape, family)
    tiles = Tiles(source)
    start = time.perf_counter()
    found = seed_bank(tiles, rank, num_bases, seeding_config or SeedingConfig())
    between = time.perf_counter()
    adapters, error, total = [], 0.0, 0.0
    for part, w in tiles:
        m = bases(found.codes[part], found.bank)
        adapters.append(fit_adapters(w, m))
        error += float(squared_error(w, adapters[-1], m).sum())
        total += float(w.square().sum(dtype=torch.float64))
    seconds = {**found.metrics["seconds"], "adapters": time.perf_counter() - between}
    seconds["total"] = time.perf_counter() - start
    explained = 1 - error / total if total else 1.0
    metrics = {**found.metrics, "weight_explained_variance": explained, "seconds": seconds}
    return WarmStart(found.bank, found.codes, torch.cat(adapters), metrics)


@dataclass(frozen=True, eq=False)
class Seed:
    """A warm start before its adapters are fitted; on the device of the tiles."""

    bank: Tensor
    codes: Tensor
    metrics: Mapping[str, Any]


def seed_bank(tiles: Tiles, rank: int, num_bases: int, config: SeedingConfig) -> Seed:
    """Seed from tiles; adapters are the caller's to fit."""
    times = [time.perf_counter()]
    proxies, facts = proxies_of(tiles, rank, config)
    if config.method is SeedingMethod.SVD and config.gauge == "none":
        proxies = torch.nn.functional.normalize(proxies, dim=2)
    times.append(time.perf_counter())
    aligned, gauge = align(proxies, config.gauge, config.gauge_sweeps)
    times.append(time.perf_counter())
    x = aligned.flatten(1)
    C = (x @ x.T).double().cpu()
    C = (C + C.T) / 2
    T, told = _atoms(C, num_bases, config)
    rule = "nnls" if config.method is SeedingMethod.RESIDUAL_GREEDY and config.code_rule == "ls" else config.code_rule
    codes, left = codes_of(C, T, rule)
    bank = (T.to(x.device, x.dtype) @ x).unflatten(1, aligned.shape[1:])
    codes, bank = _scaled(codes.to(x.device, x.dtype), bank, config.normalize_atoms)
    times.append(time.perf_counter())
    total = float(C.trace())
    stages = ("proxies", "alignment", "dictionary")
    metrics = {
        "method": config.method.value,
        "proxy_explained_variance": 1 - float(left.sum()) / total if total else 1.0,
        **facts, **gauge, **told,
        "seconds": {name: b - a for name, a, b in zip(stages, times, times[1:], strict=False)},
    }  # fmt: skip
    return Seed(bank, codes, metrics)


def _atoms(C: Tensor, m: int, config: SeedingConfig) -> tuple[Tensor, dict[str, Any]]:
    """Return the method's combinations ``[m, E]``."""
    kmeans = (config.kmeans_iters, config.kmeans_init, config.seed)
    if config.method is SeedingMethod.SPHERICAL_KMEANS:
        return atoms_by_mixture(C, m, 0.0, *kmeans)
    if config.method is SeedingMethod.HYBRID:
        return atoms_by_mixture(C, m, config.hybrid_pca_ratio, *kmeans)
    if config.method is SeedingMethod.RESIDUAL_GREEDY:
        return atoms_by_greed(C, m, "omp" if config.code_rule == "omp" else "nnls")
    return atoms_by_pca(C, m)


def _scaled(codes: Tensor, bank: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    """Give atoms unit Frobenius norm, or each column of the codes the root mean square 1."""
    size = bank.flatten(1).norm(dim=1) if unit else 1 / codes.square().mean(0).sqrt()
    size = torch.where((size > 0) & torch.isfinite(size), size, 1)
    return codes * size, bank / size[:, None, None]
