"""Experts as a stream that can be walked again, and the tiles of them that every computation here sums over.

A *family* is a set of weight matrices of one shape, such as the gate projections of all experts of all layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError
from eigenloom.progress import Progress

SILENT = Progress()
ONLY_FAMILY = "experts"
"""Name of the family of a bare tensor or list."""
TILE_BYTES = 1 << 26
RESIDENT_BYTES = 1 << 28
"""Families up to this size are kept, normalised, on the device."""


@runtime_checkable
class ExpertSource(Protocol):
    """``n_experts`` matrices of one ``shape``, delivered one after another; walking twice gives the same."""

    @property
    def n_experts(self) -> int:
        """Number of experts ``E``."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """``(p, d)``."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each expert, for messages and for the artifact."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """Yield float32 ``[p, d]`` on the CPU."""
        ...


class ArrayExperts:
    """Experts that are in memory: ``[E, p, d]``, or a list of ``[p, d]``."""

    def __init__(self, weights: Tensor | Sequence[Tensor], names: Sequence[str] | None = None, family: str = ""):
        """Check shapes; nothing is copied.

        Raises:
            DataError: no experts, unequal shapes, or not matrices.
        """
        place = f"family {family!r}: " if family else ""
        if not len(weights):
            raise DataError(f"{place}there are no experts; give [E, p, d] or a list of [p, d]")
        self._weights = weights
        first = weights[0]
        for i, w in enumerate(weights):
            if not isinstance(w, Tensor) or w.ndim != 2 or not w.is_floating_point():
                found = f"{w.dtype} of shape {tuple(w.shape)}" if isinstance(w, Tensor) else type(w).__name__
                raise DataError(f"{place}expert {i} is {found}, must be a floating-point matrix [p, d]")
            if w.shape != first.shape:
                raise DataError(
                    f"{place}expert {i} is {_size(w)} and expert 0 is {_size(first)}; experts of one family must have "
                    "one shape: give the others as a family of their own"
                )
        self.n_experts = len(weights)
        self.shape = (first.shape[0], first.shape[1])
        self.names = tuple(names) if names is not None else tuple(str(i) for i in range(len(weights)))

    def __iter__(self) -> Iterator[Tensor]:
        """Yield float32 ``[p, d]``."""
        for w in self._weights:
            yield w.detach().to(torch.float32)


def families_of(weights: Any) -> dict[str, ExpertSource]:
    """Turn whatever ``train`` accepts into family -> source.

    Args:
        weights: mapping family -> ``[E, p, d]``, list of ``[p, d]`` or ``ExpertSource``; or one of these alone, which
            is the family ``"experts"``.

    Raises:
        DataError: nothing there, unequal shapes, or not matrices.
        ConfigError: something else was given.
    """
    named = weights if isinstance(weights, Mapping) else {ONLY_FAMILY: weights}
    if not named:
        raise DataError("there are no families of experts; give at least one")
    return {str(family): _source(value, str(family)) for family, value in named.items()}


def _source(value: Any, family: str) -> ExpertSource:
    """Wrap what is in memory."""
    if isinstance(value, Tensor):
        if value.ndim != 3:
            raise DataError(f"family {family!r}: shape {tuple(value.shape)}, must be [E, p, d]")
        return ArrayExperts(value, family=family)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ArrayExperts(value, family=family)
    if isinstance(value, ExpertSource):
        if value.n_experts < 1:
            raise DataError(f"family {family!r}: there are no experts")
        return value
    raise ConfigError(
        f"family {family!r}: {type(value).__name__} holds no experts; give [E, p, d], a list of [p, d] or an "
        "ExpertSource"
    )


class Tiles:
    """The experts of a family as tiles ``[b, p, d]``: on a device, centred, divided by a scale, perhaps transposed.

    A small family is kept; a large one is walked anew for every pass, a tile at a time.
    """

    def __init__(
        self,
        source: ExpertSource,
        *,
        scale: float = 1.0,
        mean: float = 0.0,
        transposed: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tile_bytes: int = TILE_BYTES,
        progress: Progress = SILENT,
    ):
        """Say what to do to every expert; nothing is read yet."""
        self.source, self.scale, self.mean, self.transposed = source, scale, mean, transposed
        self.device, self.dtype, self.progress = torch.device(device), dtype, progress
        p, d = source.shape
        self.n_experts = source.n_experts
        self.shape = (d, p) if transposed else (p, d)
        size = p * d * torch.empty(0, dtype=dtype).element_size()
        self.tile = max(1, min(self.n_experts, tile_bytes // size))
        self._resident = size * self.n_experts <= RESIDENT_BYTES
        self._kept: list[Tensor] = []

    @property
    def slices(self) -> list[slice]:
        """Ranges of experts, one per tile."""
        return [slice(i, min(i + self.tile, self.n_experts)) for i in range(0, self.n_experts, self.tile)]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(experts, W [b, p, d])``."""
        if self._kept:
            yield from zip(self.slices, self._kept, strict=True)
            return
        kept = []
        for part, tile in zip(self.slices, self._read(), strict=True):
            if self._resident:
                kept.append(tile)
            yield part, tile
        self._kept = kept

    def _read(self) -> Iterator[Tensor]:
        """Walk the source once.

        Raises:
            DataError: it ends early, goes on too long, changes shape, or holds NaN or Inf.
        """
        read: list[Tensor] = []
        count = 0
        bar = self.progress.track(_single(self.source), "experts", self.n_experts, unit="expert")
        for (w,) in bar:
            name = self.source.names[count] if count < self.n_experts else "one too many"
            if tuple(w.shape) != self.source.shape or count == self.n_experts:
                raise DataError(
                    f"expert {count} ({name}): {_size(w)}, where {self.n_experts} of {self.source.shape} were promised"
                )
            if not torch.isfinite(w).all():
                wrong = int((~torch.isfinite(w)).sum())
                raise DataError(f"expert {count} ({name}): {wrong} of {w.numel()} weights are NaN or Inf; leave it out")
            read.append((w.T if self.transposed else w).to(self.device, self.dtype))
            count += 1
            if len(read) == self.tile or count == self.n_experts:
                tile = torch.stack(read)
                read = []
                yield tile if self.scale == 1.0 and self.mean == 0.0 else tile.sub_(self.mean).div_(self.scale)
        if count < self.n_experts:
            raise DataError(f"the source ended after {count} experts, promised {self.n_experts}; write it again")


def _single(source: ExpertSource) -> Iterator[tuple[Tensor]]:
    """Wrap each expert, so that a bar counts experts and not rows."""
    for w in source:
        yield (w,)


def _size(w: Tensor) -> str:
    return " x ".join(map(str, w.shape))
