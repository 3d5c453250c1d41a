"""``AlternatingBankTrainer``: a bank for every family of experts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eigenloom.batches import resolve_device
from eigenloom.errors import DataError
from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.fit import FamilyFit
from eigenloom.experts.model import bases, squared_error
from eigenloom.experts.normalizer import Normalizer
from eigenloom.experts.settings import SeedingConfig, TrainingSettings, check_sizes
from eigenloom.experts.source import SILENT, TILE_BYTES, ExpertSource, Tiles, families_of
from eigenloom.experts.support import support_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

logger = logging.getLogger("eigenloom")
KEPT = ("accepted", "values")
"""Of a finished family in a snapshot: what its result is made from."""


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
        if self.device.type == "mps":
            logger.warning("MPS has no float64, which the solves need; expert banks are fitted on the CPU")
            self.device = torch.device("cpu")
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
            scales[family], means[family] = self._moments(source, family)
        normalizer = Normalizer(scales, means, s.center)
        identity = {"parameters": s.as_parameters(), "families": self._described(families, normalizer)}
        results: dict[str, ExpertBank] = {}
        with Snapshots(self.resume, identity) as snapshots:
            saved = snapshots.load()
            done: dict[str, Any] = {} if saved is None else saved[1]["done"]
            kept = {} if saved is None else {n: t for n, t in saved[0].items() if n.startswith("done.")}
            for family, source in families.items():
                fit = self._started(source, normalizer, family)
                at = kept if family in done else {} if saved is None else saved[0]
                where = done.get(family) or (saved[1] if saved is not None and saved[1]["family"] == family else None)
                if where is not None:
                    prefix = f"done.{family}." if family in done else "now."
                    own = {n.removeprefix(prefix): t for n, t in at.items() if n.startswith(prefix)}
                    fit.restore(own, where["fit"])
                while not fit.done:
                    fit.advance()
                    if snapshots.due():
                        tensors, position = fit.state()
                        now = {f"now.{name}": tensor for name, tensor in tensors.items()}
                        snapshots.tick(kept | now, {"family": family, "fit": position, "done": done})
                tensors, position = fit.state()
                kept |= {f"done.{family}.{name}": t for name, t in tensors.items() if name.split(".")[0] in KEPT}
                done[family] = {"fit": position | {"points": 0, "runs": []}}
                results[family] = finish(family, fit, source, normalizer)
                self.progress.log("experts", len(results), relative_error=results[family].metrics["relative_error"])
        return results, normalizer

    def _described(self, families: Mapping[str, ExpertSource], normalizer: Normalizer) -> dict[str, Any]:
        """Say what the families are, so that another's snapshot is not resumed from."""
        return {
            family: [list(source.shape), list(source.names), normalizer.scales[family], normalizer.means[family]]
            for family, source in families.items()
        }

    def _moments(self, source: ExpertSource, family: str) -> tuple[float, float]:
        """Return scale and mean of a family, in one pass.

        Raises:
            DataError: all weights are equal, or NaN or Inf.
        """
        total = sums = 0.0
        count = 0
        for _, w in Tiles(source, progress=self.progress):
            total += float(w.square().sum(dtype=torch.float64))
            sums += float(w.sum(dtype=torch.float64))
            count += w.numel()
        mean = sums / count if self.settings.center else 0.0
        variance = total / count - mean**2
        if not variance > 0:
            raise DataError(f"family {family!r}: all weights are {mean:g}; there is nothing to compress")
        return (variance**0.5 if self.settings.normalize else 1.0), mean

    def _started(self, source: ExpertSource, normalizer: Normalizer, family: str) -> FamilyFit:
        """Return the fit of a family at its beginning."""
        tiles = Tiles(
            source, scale=normalizer.scales[family], mean=normalizer.means[family],
            transposed=source.shape[0] > source.shape[1], device=self.device, progress=self.progress,
        )  # fmt: skip
        return FamilyFit(tiles, self.settings)


def finish(family: str, fit: FamilyFit, source: ExpertSource, normalizer: Normalizer) -> ExpertBank:
    """Refit the adapters of the accepted point in float64, fold the scale in, and measure what is returned.

    The error is that of the float32 factors against the weights as given, all sums in float64.
    """
    _, (codes, bank), activation = fit.accepted
    exact = Tiles(source, transposed=fit.tiles.transposed, device=fit.tiles.device, tile_bytes=TILE_BYTES // 4)
    extra = bank.new_full((1, 1, bank.shape[2]), bank.shape[2] ** -0.5)
    folded, errors, sizes = [], [], []
    for part, w in exact:
        m = bases(codes[part].double(), bank.double(), activation)
        a = fit_adapters(normalizer.transform(w.double(), family), m, ridge=1e-14)
        a = normalizer.fold(a, bank.shape[2], family).to(torch.float32)
        if normalizer.centered:
            m = torch.cat([m, extra.double().expand(len(m), -1, -1)], dim=1)
        errors.append(squared_error(w, a, m))
        sizes.append(w.double().square().sum((1, 2)))
        folded.append(a)
    error, size = torch.cat(errors), torch.cat(sizes)
    metrics = {
        "relative_error": float((error.sum() / size.sum()).sqrt()),
        "relative_error_per_expert": (error / size.clamp_min(1e-300)).sqrt().tolist(),
        "mean_support": float(support_of(codes).double().mean()),
        "scale": normalizer.scales[family],
        "mean": normalizer.means[family],
        "settings": fit.settings.as_parameters(),
        "seeding": fit.seeding,
        "history": fit.history,
    }
    adapters = torch.cat(folded).cpu()
    return ExpertBank(
        bank.cpu(), codes.cpu(), adapters, activation, fit.tiles.transposed, family, tuple(source.names), metrics
    )
