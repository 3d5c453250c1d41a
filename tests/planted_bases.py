"""Bases whose every number is known: directions and centres chosen by the test, nothing fitted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT, Basis
from eigenloom.batches import Batches
from eigenloom.moments import Standardization
from eigenloom.progress import Progress


@dataclass(frozen=True, eq=False)
class PlantedDirections(Basis):
    """Orthonormal ``components [k, d]``; ``scales [k]`` divide the codes (0: a null component, code 0)."""

    mean: Tensor
    components: Tensor
    scales: Tensor

    kind = "planted-directions"
    geometry = "projection"

    @classmethod
    def fit(cls, batches: Batches, *, seed: int, device: torch.device | str = "cpu", resume: Path | None = None,
            progress: Progress = SILENT, **parameters: Any) -> "PlantedDirections":  # fmt: skip
        raise NotImplementedError

    @property
    def n_elements(self) -> int:
        return self.components.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        z = (x - self.mean) @ self.components.T / self.scales
        return torch.where(self.scales > 0, z, 0.0)

    def decode(self, z: Tensor) -> Tensor:
        return (z * self.scales) @ self.components + self.mean

    def code_energies(self, z: Tensor) -> Tensor | None:
        return (z * self.scales).square()


@dataclass(frozen=True, eq=False)
class PlantedFrame(PlantedDirections):
    """The same without a claim of orthonormality: everything must go through ``decode``."""

    kind = "planted-frame"

    def code_energies(self, z: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class PlantedCentres(Basis):
    """Centres ``[k, d]``; distances by the naive difference."""

    centres: Tensor

    kind = "planted-centres"
    geometry = "distance"

    @classmethod
    def fit(cls, batches: Batches, *, seed: int, device: torch.device | str = "cpu", resume: Path | None = None,
            progress: Progress = SILENT, **parameters: Any) -> "PlantedCentres":  # fmt: skip
        raise NotImplementedError

    @property
    def n_elements(self) -> int:
        return self.centres.shape[0]

    def squared_distances(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.centres[None]).square().sum(-1)

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.squared_distances(x)
        labels = torch.from_numpy(squared.numpy().argmin(1))
        return labels.to(torch.int32), squared.gather(1, labels[:, None])[:, 0]

    def encode(self, x: Tensor) -> Tensor:
        labels = self.assign(x)[0].to(torch.int64)
        return torch.nn.functional.one_hot(labels, self.n_elements).to(torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.centres


def planted_directions(d: int = 12, k: int = 12, *, seed: int = 0, whiten: bool = False, cls: Any = PlantedDirections,
                       standardization: Standardization | None = None) -> Any:  # fmt: skip
    """Random orthonormal directions around a random mean."""
    g = torch.Generator().manual_seed(seed)
    components = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q[:k].to(torch.float32)
    scales = torch.linspace(3.0, 0.2, k) if whiten else torch.ones(k)
    return cls(standardization or Standardization.identity(d), torch.randn(d, generator=g), components, scales)


def planted_centres(d: int = 6, k: int = 10, *, seed: int = 0, standardization: Standardization | None = None) -> Any:
    """Random centres."""
    g = torch.Generator().manual_seed(seed)
    return PlantedCentres(standardization or Standardization.identity(d), torch.randn(k, d, generator=g))


def planted_rows(n: int = 300, d: int = 6, *, seed: int = 1, offset: float = 0.0) -> Tensor:
    """Gaussian rows ``[n, d]`` of unequal spread per column, ``offset`` standard deviations off the origin."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 2.0, d)
    return (torch.randn(n, d, generator=g) + offset) * spread
