"""``AlternatingBankTrainer``: a bank for every family of experts."""

from pathlib import Path
from typing import Any

import torch

from eigenloom.batches import resolve_device
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.normalizer import Normalizer
from eigenloom.experts.settings import SeedingConfig, TrainingSettings, check_sizes
from eigenloom.experts.source import SILENT, ExpertSource, Tiles, families_of
from eigenloom.experts.warm_start import seed_bank
from eigenloom.progress import Progress


class AlternatingBankTrainer:
    """Fits ``W_i ~ A_i phi(sum_j alpha_ij B_j)`` to the experts of each family."""

    def __init__(
        self,
        rank: int,
        num_bases: int,
        *,
        seeding_config: SeedingConfig | None = None,
        activation: str = "auto",
        codes: str = "signed",
        support: int | None = None,
        n_sweeps: int = 20,
        polish_evals: int = 1500,
        n_starts: int = 4,
        normalize: bool = True,
        center: bool = False,
        ridge: float = 1e-10,
        seed: int = 0,
        device: torch.device | str | None = None,
        resume: str | Path | None = None,
        progress: Progress = SILENT,
    ):
        """Check the parameters."""
        self.settings = TrainingSettings(
            rank, num_bases, seeding_config or SeedingConfig(), activation, codes, support, n_sweeps, polish_evals,
            n_starts, normalize, center, ridge, seed,
        )  # fmt: skip
        self.device = resolve_device(str(device or "cpu"))
        self.resume = None if resume is None else Path(resume)
        self.progress = progress

    def train(self, expert_weights: Any) -> tuple[dict[str, ExpertBank], Normalizer]:
        """Fit a bank to each family.

        Args:
            expert_weights: mapping family -> ``[E, p, d]``, list of ``[p, d]`` or ``ExpertSource``; or one of these
                alone.

        Returns:
            family -> bank, in the units of the weights; and what was taken out of them while fitting.
        """
        families = families_of(expert_weights)
        s = self.settings
        for family, source in families.items():
            check_sizes(s.rank, s.num_bases, source.n_experts, source.shape, family)
        scales, means = {}, {}
        for family, source in families.items():
            scales[family], means[family] = self._moments(source)
        normalizer = Normalizer(scales, means, s.center)
        return {family: self._fit(family, source, normalizer) for family, source in families.items()}, normalizer

    def _moments(self, source: ExpertSource) -> tuple[float, float]:
        """Return scale and mean of a family."""
        total = sums = 0.0
        count = 0
        for _, w in Tiles(source):
            total, sums = total + float(w.double().square().sum()), sums + float(w.double().sum())
            count += w.numel()
        mean = sums / count if self.settings.center else 0.0
        return ((total / count - mean**2) ** 0.5 if self.settings.normalize else 1.0), mean

    def _fit(self, family: str, source: ExpertSource, normalizer: Normalizer) -> ExpertBank:
        """Fit one family."""
        s = self.settings
        transposed = source.shape[0] > source.shape[1]
        tiles = Tiles(
            source, scale=normalizer.scales[family], mean=normalizer.means[family], transposed=transposed,
            device=self.device, progress=self.progress,
        )  # fmt: skip
        start = seed_bank(tiles, s.rank, s.num_bases, s.seeding)
        adapters = normalizer.fold(start.adapters, tiles.shape[1], family)
        error = (1 - start.metrics["weight_explained_variance"]) ** 0.5
        metrics = {"relative_error": error, "seeding": dict(start.metrics)}
        return ExpertBank(start.bank, start.codes, adapters, "identity", transposed, family, source.names, metrics)
