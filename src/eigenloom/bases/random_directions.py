"""Random orthonormal directions through the data's mean: what any projection has to beat."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT
from eigenloom.bases.projection import Projection, component_count, known_moments, refuse_constant
from eigenloom.batches import Batches, generator
from eigenloom.linalg.accumulate import BLOCK_ROWS
from eigenloom.moments import moments_of_rows, standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots


@final
@dataclass(frozen=True, eq=False)
class RandomDirections(Projection):
    """``k`` directions of a uniformly random orthonormal frame; those of a smaller k are the first ones.

    The frame spans the features that vary. Constant ones come last, each a direction of its own, so that they are
    reconstructed exactly whatever k.
    """

    kind: ClassVar[str] = "random_directions"

    seed: int

    @classmethod
    def fit(  # type: ignore[override]  # a kind names its own parameters
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        n_components: int | None = None,
    ) -> Self:
        """Take the mean of the rows, from known moments or one pass, and draw the directions.

        Args:
            batches: rows in the fitted space.
            seed: of the directions.
            device: where sums are formed.
            resume: file for snapshots of the pass.
            progress: bar.
            n_components: how many directions; None for one per feature.

        Raises:
            ConfigError: ``n_components`` above the features.
            DataError: NaN or Inf, fewer rows than directions, one row, all features constant.
            Interrupted: a SIGTERM arrived and the state was saved.
        """
        n_directions = component_count(batches, n_components)
        standardization = standardization_of(batches)
        if (moments := known_moments(batches)) is None:
            identity = {"kind": cls.kind, "standardization": standardization.digest, "block": BLOCK_ROWS}
            identity |= {"n_rows": batches.n_rows, "n_features": batches.n_features}
            with Snapshots(resume, identity) as snapshots:
                moments = moments_of_rows(batches, device=device, snapshots=snapshots, progress=progress)
        refuse_constant(moments)
        varying = (moments.minimum < moments.maximum).nonzero().squeeze(1)
        frame = random_frame(min(n_directions, len(varying)), len(varying), seed)
        components = torch.zeros(n_directions, batches.n_features)
        components[: len(frame), varying] = frame.float()
        constant = (moments.minimum == moments.maximum).nonzero().squeeze(1)[: n_directions - len(frame)]
        components[range(len(frame), n_directions), constant] = 1.0
        return cls(
            standardization=standardization,
            mean=moments.mean.float(),
            components=components,
            seed=seed,
        )


def random_frame(k: int, d: int, seed: int) -> Tensor:
    """Return ``k`` orthonormal rows ``[k, d]`` float64, uniform; row j depends on no later one."""
    gaussian = [torch.randn(d, dtype=torch.float64, generator=generator(seed, "directions", j)) for j in range(k)]
    columns, upper = torch.linalg.qr(torch.stack(gaussian, dim=1))
    # QR is unique, and its frame uniform, only with a positive diagonal of R.
    return (columns * torch.where(upper.diagonal() < 0, -1.0, 1.0)).T
