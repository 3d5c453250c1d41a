"""The codings by name, and those of bases whose codes are coordinates: dense and Top-K."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.codes.coding import Arrays, Coding, at_least_one, dense_instead
from eigenloom.codes.distances import (
    DistanceCoding,
    InverseDistance,
    InverseDistanceNearest,
    Nearest,
    OneHot,
    Similarity,
    SquaredDistance,
    Threshold,
)
from eigenloom.codes.selection import largest
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import ConfigError


@dataclass(frozen=True)
class Dense(Coding):
    """``encode(x)``, all of it."""

    kind = "dense"
    geometry = "projection"
    layout = "dense"

    def nominal_l0(self, k: int) -> int:
        """Every entry."""
        return k

    def arrays(self, basis: Basis, x: Tensor) -> dict[str, Tensor]:
        """``values [b, k]``."""
        return {"values": basis.encode(x)}

    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """The dense layout holds every entry, and Top-K codes do that kept as many as there are."""
        return layout == "dense" or (layout == "topk" and stored_k == k)

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From all entries, in their order or by falling size."""
        if "indices" in arrays:
            return CodeBatch.dense(CodeBatch.sparse(arrays["values"], arrays["indices"], k).to_dense())
        return CodeBatch.dense(arrays["values"])


@dataclass(frozen=True)
class TopK(Dense):
    """The ``k`` entries of ``encode(x)`` largest in absolute value, with their signs; the largest first."""

    k: int
    kind = "topk"
    layout = "sparse"

    def __post_init__(self) -> None:
        """Check ``k``."""
        at_least_one(self.k, "topk")

    @property
    def name(self) -> str:
        """``topk-00064``."""
        return f"topk-{self.k:05d}"

    def nominal_l0(self, k: int) -> int:
        """``k`` of the coding, at most all entries."""
        return min(self.k, k)

    def effective(self, k: int) -> Coding:
        """Dense when nothing would be left out."""
        return self if self.k < k else dense_instead(self, Dense(), k)

    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """A prefix of stored Top-K codes, or chosen from dense ones."""
        return layout == "dense" or (layout == "topk" and stored_k >= self.k)

    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """From all entries, or from the first columns of stored Top-K codes."""
        if "indices" in arrays:
            return CodeBatch.sparse(arrays["values"][:, : self.k], arrays["indices"][:, : self.k], k)
        return CodeBatch.sparse(*largest(arrays["values"].to(torch.float32), self.k), k)


CODINGS: dict[str, type[Coding]] = {
    coding.kind: coding
    for coding in (
        OneHot, InverseDistance, InverseDistanceNearest, Similarity, SquaredDistance, Threshold, Nearest, Dense, TopK,
    )
}  # fmt: skip


def coding_from(config: Mapping[str, Any]) -> Coding:
    """Build a coding from its configuration entry ``{"kind": ..., parameters}``.

    ``nearest`` takes ``k``, ``values`` (a distance coding's kind, default ``inverse-distance``) and that coding's
    own parameters.

    Raises:
        ConfigError: unknown kind or parameter, or a value out of range.
    """
    entry = dict(config)
    kind = entry.pop("kind", None)
    if kind not in CODINGS:
        raise ConfigError(f"coding {kind!r} is unknown; known: {', '.join(sorted(CODINGS))}")
    if kind == "nearest":
        k = entry.pop("k", 0)
        inner = coding_from({"kind": entry.pop("values", "inverse-distance"), **entry})
        if not isinstance(inner, DistanceCoding):
            raise ConfigError(f"coding nearest: {inner.kind!r} is not a function of distances")
        return Nearest(k, inner)
    try:
        return CODINGS[kind](**entry)
    except TypeError as error:
        raise ConfigError(f"coding {kind!r}: {error}") from None
