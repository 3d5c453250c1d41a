"""Mean, scatter and range of rows; the standardization they define; rows seen through it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.errors import ConfigError

STANDARDIZATIONS = ("standard", "center", "none")


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact sums of ``n_rows`` rows of one layer, mergeable.

    Fields: ``mean [d]`` float64; ``scatter [d, d]`` float64, ``sum (x - mean)(x - mean)^T``; ``minimum [d]`` and
    ``maximum [d]`` float32; ``n_nonfinite`` counts entries that were NaN or infinite.
    """

    n_rows: int
    mean: Tensor
    scatter: Tensor
    minimum: Tensor
    maximum: Tensor
    n_nonfinite: int = 0

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return self.mean.shape[0]

    @property
    def variance(self) -> Tensor:
        """Population variance ``[d]``, float64."""
        return self.scatter.diagonal() / self.n_rows


@dataclass(frozen=True, eq=False)
class Standardization:
    """``(x - mean) / scale`` with moments of the fitting split; part of every basis and of every digest.

    Fields: ``kind`` (``standard``, ``center``, ``none``), ``layer`` (config name, empty where there is none),
    ``mean [d]`` and ``scale [d]`` float64.
    """

    kind: str
    layer: str
    mean: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, n_features: int, layer: str = "") -> "Standardization":
        """Return the one that changes nothing."""
        zero = torch.zeros(n_features, dtype=torch.float64)
        return cls("none", layer, zero, torch.ones_like(zero))

    @classmethod
    def from_moments(cls, moments: Moments, kind: str = "standard", layer: str = "") -> "Standardization":
        """Derive mean and population standard deviation; a constant feature gets scale 1.

        A feature is constant when its deviation is at most ``8 * 2^-23 * |mean|``.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in STANDARDIZATIONS:
            raise ConfigError(f"standardize: {kind!r} is unknown; use one of {', '.join(STANDARDIZATIONS)}")
        if kind == "none":
            return cls.identity(moments.n_features, layer)
        scale = torch.ones_like(moments.mean)
        if kind == "standard":
            std = moments.variance.clamp_min(0).sqrt()
            constant = std <= 8 * torch.finfo(torch.float32).eps * moments.mean.abs()
            scale = torch.where(constant, scale, std)
        return cls(kind, layer, moments.mean.clone(), scale)

    @property
    def digest(self) -> str:
        """sha256 hex of version tag, kind, layer, width and the little-endian float64 bytes of mean and scale."""
        head = f"eigenloom.standardization/1\x00{self.kind}\x00{self.layer}\x00{self.mean.shape[0]}\x00".encode()
        hasher = hashlib.sha256(head)
        for tensor in (self.mean, self.scale):
            hasher.update(tensor.to(torch.float64).contiguous().cpu().numpy().astype("<f8").tobytes())
        return hasher.hexdigest()

    def apply(self, x: Tensor) -> Tensor:
        """Standardize rows ``[b, d]`` of any float dtype; float32 on the same device."""
        x = x.to(torch.float32)
        if self.kind == "none":
            return x
        return (x - self.mean.to(x.device, torch.float32)) / self.scale.to(x.device, torch.float32)

    def invert(self, x: Tensor) -> Tensor:
        """Undo ``apply``: rows ``[b, d]`` back in the units they were recorded in, float32."""
        x = x.to(torch.float32)
        if self.kind == "none":
            return x
        return x * self.scale.to(x.device, torch.float32) + self.mean.to(x.device, torch.float32)


@dataclass(frozen=True, eq=False)
class StandardizedRows:
    """Rows seen through a standardization: a ``Batches`` over another one.

    ``moments`` are those of the *raw* rows, when known; fits use them instead of a pass of their own.
    """

    rows: Batches
    standardization: Standardization
    moments: Moments | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows.n_rows

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return self.rows.n_features

    def __iter__(self) -> Iterator[Tensor]:
        """Yield standardized batches in stored order."""
        return (self.standardization.apply(batch) for batch in self.rows)

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield standardized batches in the order of the rows' own shuffle."""
        return (self.standardization.apply(batch) for batch in self.rows.shuffled(generator, skip_rows))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct standardized rows."""
        return self.standardization.apply(self.rows.sample(n, generator))


def standardization_of(batches: Batches) -> Standardization:
    """Return the standardization that rows come through; the identity for plain ones."""
    if isinstance(batches, StandardizedRows):
        return batches.standardization
    return Standardization.identity(batches.n_features)


def moments_of(batches: Batches) -> Moments | None:
    """Return the raw moments that come with standardized rows, None where nobody has computed them."""
    return batches.moments if isinstance(batches, StandardizedRows) else None
