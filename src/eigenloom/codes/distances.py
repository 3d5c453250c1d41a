"""Codings of bases whose elements are centres: one-hot, and functions of the distances."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.codes.coding import Arrays, Coding, at_least_one, dense_instead
from eigenloom.codes.quantile import exact_quantile
from eigenloom.codes.selection import smallest
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import ConfigError


class Centres(Protocol):
    """What a basis of geometry ``distance`` offers besides the common contract."""

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest element ``[b]`` int32 (lowest on ties) and the squared distance ``[b]`` to it."""
        ...

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return all squared distances ``[b, k]`` float32."""
        ...


@dataclass(frozen=True)
class _NearestOnly(Coding):
    """Codings that need the nearest centre and its squared distance."""

    geometry = "distance"

    def nominal_l0(self, k: int) -> int:
        """One centre per row."""
        del k
        return 1

    def arrays(self, basis: Basis, x: Tensor) -> dict[str, Tensor]:
        """``labels [b]`` and squared ``distances [b]``."""
        labels, squared = cast(Centres, basis).assign(x)
        return {"labels": labels, "distances": squared}

    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """Both layouts of a distance basis hold labels."""
        del stored_k, k
        return layout in ("label", "dense")


@dataclass(frozen=True)
class OneHot(_NearestOnly):
    """1 at the nearest centre, else 0."""

    kind = "onehot"
    layout = "label"

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From the labels."""
        return CodeBatch.label(arrays["labels"], k)


@dataclass(frozen=True)
class InverseDistanceNearest(_NearestOnly):
    """``1 / (d + eps)`` at the nearest centre, else 0. ``eps = 1`` is the value that saev stores."""

    eps: float = 1e-6
    kind = "inverse-distance-nearest"
    layout = "sparse"

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From labels and distances."""
        values = 1.0 / (arrays["distances"].to(torch.float32).sqrt() + self.eps)
        return CodeBatch.sparse(values[:, None], arrays["labels"][:, None], k)


@dataclass(frozen=True)
class DistanceCoding(Coding):
    """Codings that are a function ``transform`` of each squared distance."""

    geometry = "distance"
    layout = "dense"

    @abstractmethod
    def transform(self, squared: Tensor) -> Tensor:
        """Turn squared distances of any shape into code values."""

    def nominal_l0(self, k: int) -> int | None:
        """Every centre has a value."""
        return k

    def arrays(self, basis: Basis, x: Tensor) -> dict[str, Tensor]:
        """``values [b, k]``: squared distances; ``labels`` and ``distances`` of the nearest centre.

        A GEMM gives the values by expansion, which cancels close to a centre; the nearest one is put right.
        """
        centres = cast(Centres, basis)
        squared = centres.squared_distances(x).clamp_min(0)
        labels, nearest = centres.assign(x)
        squared = squared.scatter(1, labels.to(torch.int64)[:, None], nearest[:, None])
        return {"values": squared, "labels": labels, "distances": nearest}

    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """Only the dense layout holds every distance."""
        del stored_k, k
        return layout == "dense"

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From squared distances."""
        del k
        return CodeBatch.dense(self.transform(arrays["values"].to(torch.float32)))


@dataclass(frozen=True)
class SquaredDistance(DistanceCoding):
    """``d^2`` itself, for transforms of the user's own."""

    kind = "squared-distance"

    def transform(self, squared: Tensor) -> Tensor:
        """The identity."""
        return squared


@dataclass(frozen=True)
class InverseDistance(DistanceCoding):
    """``1 / (d + eps)``."""

    eps: float = 1e-6
    kind = "inverse-distance"

    def transform(self, squared: Tensor) -> Tensor:
        """No scale, no temperature, the root not squared."""
        return 1.0 / (squared.sqrt() + self.eps)


@dataclass(frozen=True)
class Similarity(DistanceCoding):
    """``1 - d / d_max`` clipped to [0, 1]; ``d_max`` is the largest distance on ``probe_train``."""

    d_max: float | None = None
    kind = "similarity"

    def transform(self, squared: Tensor) -> Tensor:
        """Needs ``d_max``."""
        return (1.0 - squared.sqrt() / _resolved(self.d_max, "similarity", "d_max")).clamp(0.0, 1.0)

    def resolve(self, walk: Iterable[Arrays]) -> "Similarity":
        """Take ``d_max``, unless it was given."""
        if self.d_max is not None:
            return self
        largest = max(float(arrays["values"].to(torch.float32).max().sqrt()) for arrays in walk)
        return replace(self, d_max=_positive(largest, "d_max"))

    def n_clipped(self, arrays: Arrays) -> Tensor | int:
        """Entries farther than ``d_max``."""
        return (arrays["values"].to(torch.float32).sqrt() > _resolved(self.d_max, "similarity", "d_max")).sum()


@dataclass(frozen=True)
class Threshold(DistanceCoding):
    """``max(0, 1 - d / tau)``; ``tau`` is given, or the ``quantile`` of all distances on ``probe_train``."""

    tau: float | None = None
    quantile: float | None = None
    kind = "threshold"

    def __post_init__(self) -> None:
        """Check that exactly one way to ``tau`` is open."""
        if self.tau is None and self.quantile is None:
            raise ConfigError("coding threshold: give tau, or quantile (between 0 and 1)")
        if self.tau is not None:
            _positive(self.tau, "tau")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ConfigError(f"coding threshold: quantile {self.quantile} must lie in (0, 1]")

    def transform(self, squared: Tensor) -> Tensor:
        """Needs ``tau``."""
        return (1.0 - squared.sqrt() / _resolved(self.tau, "threshold", "tau")).clamp_min(0.0)

    def nominal_l0(self, k: int) -> None:
        """The data decide."""
        del k

    def resolve(self, walk: Iterable[Arrays]) -> "Threshold":
        """Take the quantile, unless ``tau`` was given."""
        if self.tau is not None or self.quantile is None:
            return self
        squared = exact_quantile(_Values(walk), self.quantile)
        return replace(self, tau=_positive(math.sqrt(squared), "tau"))


@dataclass(frozen=True)
class Nearest(Coding):
    """Another distance coding ``of_kind`` at the ``k`` nearest centres of a row, else 0; nearest first."""

    k: int
    inner: DistanceCoding = InverseDistance()
    kind = "nearest"
    geometry = "distance"
    layout = "sparse"

    def __post_init__(self) -> None:
        """Check ``k``."""
        at_least_one(self.k, "nearest")

    @property
    def name(self) -> str:
        """``nearest-00016``."""
        return f"nearest-{self.k:05d}"

    def nominal_l0(self, k: int) -> int:
        """``k`` of the coding, at most all centres."""
        return min(self.k, k)

    def resolve(self, walk: Iterable[Arrays]) -> "Nearest":
        """Resolve the inner coding."""
        return replace(self, inner=self.inner.resolve(walk))

    def effective(self, k: int) -> Coding:
        """All centres are near when there are no more than asked for."""
        return self if self.k < k else dense_instead(self, self.inner, k)

    def n_clipped(self, arrays: Arrays) -> Tensor | int:
        """Clipped entries among the chosen."""
        return self.inner.n_clipped({"values": smallest(arrays["values"].to(torch.float32), self.k)[0]})

    def arrays(self, basis: Basis, x: Tensor) -> dict[str, Tensor]:
        """``values [b, k]``: squared distances."""
        return self.inner.arrays(basis, x)

    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """Only the dense layout holds every distance."""
        return self.inner.can_view(layout, stored_k, k)

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From squared distances."""
        squared, indices = smallest(arrays["values"].to(torch.float32), self.k)
        return CodeBatch.sparse(self.inner.transform(squared), indices, k)

    def parameters(self) -> dict[str, Any]:
        """The inner coding's entry under ``values``."""
        inner = self.inner.parameters()
        return {"kind": self.kind, "k": self.k, "values": inner.pop("kind"), **inner}


@dataclass(frozen=True)
class _Values:
    """The ``values`` of a walk over arrays."""

    walk: Iterable[Arrays]

    def __iter__(self) -> Iterator[Tensor]:
        """One tensor per batch."""
        return (arrays["values"] for arrays in self.walk)


def _positive(value: float, name: str) -> float:
    """Refuse a length that is not positive and finite."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value}, but must be a positive number")
    return value


def _resolved(value: float | None, kind: str, name: str) -> float:
    """Refuse to encode before calibration."""
    if value is None:
        raise ConfigError(f"coding {kind}: {name} is not known; give it, or calibrate the coding on probe_train first")
    return value
