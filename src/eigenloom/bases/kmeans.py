"""Mini-batch and Lloyd k-means as a basis: one-hot codes, centres as elements."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT, Basis
from eigenloom.bases.kmeans_passes import State, Trainer
from eigenloom.bases.kmeans_settings import Settings
from eigenloom.bases.kmeans_start import initial_centers, largest_magnitudes
from eigenloom.bases.kmeans_tally import shared_centers, utilisation_of, world_size
from eigenloom.batches import Batches
from eigenloom.errors import DataError
from eigenloom.linalg.assignment import Assigner
from eigenloom.moments import standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots


@final
@dataclass(frozen=True, eq=False)
class KMeans(Basis):
    """``K`` centres; a row is encoded by the nearest.

    Fields: ``cluster_centers [K, d]`` float32; ``counts [K]`` int64, rows per centre; ``utility [K]`` float64, what
    removing a centre costs at most (sum over its rows of the squared distance to the second-nearest centre minus
    that to the nearest; 0 where K = 1). Per pass, epochs included: ``inertia_history`` float64, the summed squared
    distance to the centres the pass began with (during an epoch: to those of the moment); ``lr_history [passes,
    3]`` float64, minimum, median and maximum rate of the centres moved; ``relocated_history`` int64;
    ``utilisation_history`` float64. ``counts``, ``utility`` and ``inertia`` were measured with the stored centres.
    """

    kind: ClassVar[str] = "kmeans"
    geometry: ClassVar[str] = "distance"

    cluster_centers: Tensor
    counts: Tensor
    utility: Tensor
    inertia_history: Tensor
    lr_history: Tensor
    relocated_history: Tensor
    utilisation_history: Tensor
    inertia: float
    parameters: dict[str, Any]

    @classmethod
    def fit(
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        **parameters: Any,
    ) -> Self:
        """Fit to the rows of ``batches``; see ``Basis.fit`` and, for ``parameters``, ``kmeans_settings.Settings``.

        Under ``torch.distributed`` the processes share the rows and end with the same centres as one alone would;
        snapshots are then not taken.
        """
        settings = Settings.parse(parameters)
        device, standardization = torch.device(device), standardization_of(batches)
        identity = {
            "kind": cls.kind,
            "seed": seed,
            "parameters": settings.as_parameters(),
            "rows": [batches.n_rows, batches.n_features],
            "standardization": standardization.digest,
        }
        with Snapshots(resume if world_size() == 1 else None, identity) as snapshots:
            largest = largest_magnitudes(batches)
            if batches.n_rows < settings.n_clusters:
                raise DataError(
                    f"{settings.n_clusters} clusters cannot be fitted to {batches.n_rows} rows; "
                    "lower n_clusters or give the source more examples"
                )
            saved = snapshots.load()
            started = saved is not None and saved[1]["phase"] != "seeding"
            if saved is not None and started:
                state = State.restored(saved[0], device)
            else:
                centers = initial_centers(
                    batches, settings, seed=seed, device=device, snapshots=snapshots, saved=saved, progress=progress
                )
                state = State.first(shared_centers(centers), settings.learning_rate)
            if isinstance(settings.init, Tensor):
                largest = torch.maximum(largest, settings.init.abs().amax(0).double().cpu())
            trainer = Trainer(
                batches, settings, state, seed=seed, largest=largest, snapshots=snapshots, progress=progress
            )
            if saved is not None and started:
                trainer.restore(*saved)
            trainer.run()
        return cls(
            standardization=standardization,
            cluster_centers=state.best_centers.cpu(),
            counts=state.best_counts.cpu(),
            utility=state.best_utility.cpu(),
            inertia_history=state.inertia_history,
            lr_history=state.lr_history,
            relocated_history=state.relocated_history,
            utilisation_history=state.utilisation_history,
            inertia=float(state.best_inertia),
            parameters={"seed": seed, **settings.as_parameters()},
        )

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest centre ``[b]`` int32 of rows ``[b, d]`` and the squared distance ``[b]`` float32 to it."""
        nearest = self._assigner(x)(self._checked(x))
        return nearest.labels.to(torch.int32), nearest.sq_distances

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return the squared distances ``[b, K]`` float32 of rows ``[b, d]`` to all centres."""
        return self._assigner(x).squared_distances(self._checked(x))

    def encode(self, x: Tensor) -> Tensor:
        """Return one-hot codes ``[b, K]`` float32 of rows ``[b, d]``."""
        labels = self._assigner(x)(self._checked(x)).labels
        return torch.zeros(len(x), self.n_elements, device=x.device).scatter_(1, labels[:, None], 1.0)

    def decode(self, z: Tensor) -> Tensor:
        """Return ``z @ cluster_centers``: the nearest centre itself for a one-hot row.

        Raises:
            DataError: codes of another width.
        """
        if z.ndim != 2 or z.shape[1] != self.n_elements:
            raise DataError(f"codes of shape {tuple(z.shape)} cannot be decoded: this basis has [b, {self.n_elements}]")
        return z.to(torch.float32) @ self.cluster_centers.to(z.device)

    @property
    def n_elements(self) -> int:
        """The number of clusters."""
        return len(self.cluster_centers)

    def diagnostics(self) -> dict[str, float]:
        """Return how evenly and how usefully the centres serve the fitted rows.

        ``utilisation_entropy`` is ``H(counts / n) / ln K``; ``largest_share`` the share of rows in the largest 1 % of
        clusters (at least one); ``low_utility_share`` the share of centres worth less than a tenth of the mean
        inertia of a cluster; ``dead`` the number of empty clusters. Few dead centres do not mean a good fit.
        """
        top = max(1, self.n_elements // 100)
        fair = self.inertia / self.n_elements
        return {
            "utilisation_entropy": utilisation_of(self.counts),
            "largest_share": float(self.counts.topk(top).values.sum() / self.counts.sum()),
            "low_utility_share": float((self.utility < 0.1 * fair).double().mean()),
            "dead": float((self.counts == 0).sum()),
        }

    def _checked(self, x: Tensor) -> Tensor:
        """Return rows as float32, having checked their width."""
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"rows of shape {tuple(x.shape)} cannot be encoded: this basis takes [b, {self.n_features}]"
            )
        return x.to(torch.float32)

    @cached_property
    def _assigners(self) -> dict[torch.device, Assigner]:
        """The prepared centres of each device that has asked for them."""
        return {}

    def _assigner(self, x: Tensor) -> Assigner:
        """Return the prepared centres on the device of ``x``."""
        if x.device not in self._assigners:
            self._assigners[x.device] = Assigner(self.cluster_centers.to(x.device))
        return self._assigners[x.device]
