"""Experts streamed from a checkpoint on disk: no model is made, no tensor is read before its turn, each is read once.

Files are safetensors: ``model.safetensors``, or shards with their index. Names and layouts: ``layouts``.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.experts.layouts import FP8, SCALE_SUFFIX, ExpertLayout, Stored, find_experts, refuse_unequal
from eigenloom.sources.checkpoint_file import FlatCheckpoint
from eigenloom.sources.checkpoint_safetensors import INDEX_SUFFIX, open_index, open_safetensors
from eigenloom.store.atomic import read_json

CONFIG = "config.json"
INDEX, SINGLE_FILE = f"model{INDEX_SUFFIX}", "model.safetensors"
FP8_BLOCK = (128, 128)
"""Rows and columns that share a scale where the configuration does not say."""
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class ExpertCheckpoint:
    """The checkpoint of a mixture-of-experts model: its directory, configuration, headers, and where experts lie."""

    directory: Path
    config: Mapping[str, Any]
    tensors: FlatCheckpoint
    layout: ExpertLayout

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Read configuration, index and headers.

        Args:
            directory: with ``config.json`` and ``model.safetensors`` or ``model.safetensors.index.json``.

        Raises:
            StoreError: a file is missing or damaged, or the index names a shard that is absent.
            DataError: no experts, quantised ones that cannot be read, or an expert is missing.
        """
        directory = Path(directory)
        config = _config(directory)
        index, single = directory / INDEX, directory / SINGLE_FILE
        if index.is_file():
            _refuse_absent(index)
            tensors = open_index(index)
        elif single.is_file():
            tensors = open_safetensors(single)
        else:
            raise StoreError(f"{directory}: holds neither {INDEX} nor {SINGLE_FILE}; name the folder of a checkpoint")
        return cls(directory, config, tensors, find_experts(str(directory), tensors.tensors, config))

    @property
    def fp8_block(self) -> tuple[int, int]:
        """Rows and columns of FP8 weights that share a scale."""
        quantisation = self.config.get("quantization_config") or {}
        rows, columns = quantisation.get("weight_block_size") or FP8_BLOCK
        return int(rows), int(columns)

    def sources(
        self,
        families: Sequence[str] = ("gate", "up"),
        *,
        layers: Collection[int] | None = None,
        scope: str = "global",
        max_experts: int | None = None,
    ) -> dict[str, "CheckpointExperts"]:
        """Return family -> its experts, in the order of layers and numbers.

        Args:
            families: of ``gate``, ``up``, ``down``.
            layers: which to take, by their numbers; None takes all with experts.
            scope: ``global``, one family over all layers, or ``layer``, one per layer, such as ``layer-03-gate``.
            max_experts: take only so many of each, the first ones.

        Raises:
            ConfigError: an unknown family or scope, a layer without experts, or no experts to be taken.
            DataError: the experts of a family differ in shape.
        """
        if unknown := [family for family in families if family not in self.layout.families]:
            known = ", ".join(self.layout.families)
            raise ConfigError(f"{self.directory}: has no family {unknown[0]!r}; choose from {known}")
        if not families or scope not in SCOPES or (max_experts is not None and max_experts < 1):
            wrong = (
                "no family" if not families else f"scope {scope!r}" if scope not in SCOPES else f"{max_experts} experts"
            )
            raise ConfigError(
                f"{wrong} cannot be fitted; scopes are {' and '.join(SCOPES)}, and at least one is needed"
            )
        found: dict[str, list[Stored]] = {}
        for family in families:
            experts = self.layout.families[family]
            there = {stored.layer for stored in experts}
            if absent := sorted(set(layers or ()) - there):
                raise ConfigError(
                    f"{self.directory}: layer {absent[0]} has no experts; layers that do: {_ranges(sorted(there))}"
                )
            for stored in experts:
                if layers is None or stored.layer in layers:
                    name = family if scope == "global" else f"layer-{stored.layer:02d}-{family}"
                    found.setdefault(name, []).append(stored)
        chosen = {name: tuple(stored[:max_experts]) for name, stored in found.items()}
        for name, taken in chosen.items():
            refuse_unequal(str(self.directory), name, taken)
        return {name: CheckpointExperts(self, taken) for name, taken in chosen.items()}


@dataclass(frozen=True)
class CheckpointExperts:
    """The experts of one family as an ``ExpertSource``: every walk opens each shard once and reads each place once."""

    checkpoint: ExpertCheckpoint
    stored: tuple[Stored, ...]

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, int]:
        """``(p, d)`` of each."""
        return self.stored[0].shape

    @property
    def names(self) -> tuple[str, ...]:
        """Names, alike in every layout of a model, such as ``model.layers.3.experts.7.gate``."""
        return tuple(stored.name for stored in self.stored)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every expert, float32 ``[p, d]``, FP8 dequantised.

        Raises:
            DataError: NaN or Inf, with file and tensor.
            StoreError: a file has become unreadable.
        """
        tensors = self.checkpoint.tensors
        with Shards(tensors, Counter(key for stored in self.stored for key in keys_of(tensors, stored))) as shards:
            for stored in self.stored:
                matrix = read_expert(self.checkpoint, shards, stored)
                if not torch.isfinite(matrix).all():
                    n_bad = int((~torch.isfinite(matrix)).sum())
                    raise DataError(
                        f"{tensors.places[stored.key].path}: {stored.key!r} holds {n_bad} NaN or infinite numbers in"
                        f" {stored.name}; leave its layer out, or copy the file again"
                    )
                yield matrix


class Shards:
    """Open files of a checkpoint: each opened when first needed and closed after its last planned read."""

    def __init__(self, tensors: FlatCheckpoint, planned: Counter[str]) -> None:
        """Take the headers, and how often each tensor will be asked for."""
        self._tensors = tensors
        self._left: Counter[Path] = Counter()
        for key, times in planned.items():
            self._left[tensors.places[key].path] += times
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        """Open nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()

    def read(self, key: str, place: tuple[int | slice, ...]) -> Tensor:
        """Return a part of a tensor, in its own number format.

        Raises:
            StoreError: the file is gone or damaged.
        """
        path = self._tensors.places[key].path
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt").__enter__()
            part = self._open[path].get_slice(key)[place]
        except Exception as error:  # safetensors raises its own type
            raise StoreError(f"{path}: {key!r} cannot be read ({error}); copy the file again") from None
        self._left[path] -= 1
        if not self._left[path]:
            self._open.pop(path).__exit__(None, None, None)
        return part


def keys_of(tensors: FlatCheckpoint, stored: Stored) -> tuple[str, ...]:
    """Return the tensors that an expert is read from: its own, and that of its scales if it is FP8."""
    scaled = tensors.tensors[stored.key].dtype == FP8
    return (stored.key, stored.key + SCALE_SUFFIX) if scaled else (stored.key,)


def read_expert(checkpoint: ExpertCheckpoint, shards: Shards, stored: Stored) -> Tensor:
    """Return one expert, float32 ``[p, d]`` contiguous."""
    part = shards.read(stored.key, stored.place)
    if checkpoint.tensors.tensors[stored.key].dtype == FP8:
        whole = slice(None), slice(None)
        scales = shards.read(stored.key + SCALE_SUFFIX, whole if stored.index is None else (stored.index, *whole))
        rows, columns = (slice(None), stored.rows) if stored.transposed else (stored.rows, slice(None))
        part = dequantised(part, scales, checkpoint.fp8_block, rows, columns)
    return (part.T if stored.transposed else part).to(torch.float32).contiguous()


def dequantised(
    part: Tensor, scales: Tensor, block: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> Tensor:
    """Multiply FP8 weights by the scales of their blocks.

    Args:
        part: FP8 ``[p, d]``, a part of a matrix.
        scales: of the whole matrix, one per block, ``[ceil(P / rows), ceil(D / columns)]``.
        block: rows and columns per scale.
        rows: of the matrix that ``part`` is.
        columns: likewise.

    Returns:
        float32 ``[p, d]``.

    Raises:
        DataError: there are fewer scales than blocks.
    """
    chosen = []
    for axis, cut in enumerate((rows, columns)):
        first, step = cut.start or 0, cut.step or 1
        at = (first + step * torch.arange(part.shape[axis])) // block[axis]
        if len(at) and int(at[-1]) >= scales.shape[axis]:
            raise DataError(
                f"FP8 weights of shape {tuple(part.shape)} have scales of shape {tuple(scales.shape)}, too few for"
                f" blocks of {block[0]} x {block[1]}; correct weight_block_size in {CONFIG}"
            )
        chosen.append(at)
    return part.to(torch.float32) * scales.to(torch.float32)[chosen[0]][:, chosen[1]]


def _config(directory: Path) -> Mapping[str, Any]:
    """Read ``config.json``."""
    config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else None
    if not isinstance(config, dict):
        raise StoreError(
            f"{directory / CONFIG}: is missing or no mapping; a checkpoint needs the configuration of its model"
        )
    return config


def _refuse_absent(index: Path) -> None:
    """Refuse an index that names files which are not there."""
    document = read_json(index)
    named = document.get("weight_map") if isinstance(document, dict) else None
    files = {str(name) for name in named.values()} if isinstance(named, dict) else set()
    if absent := sorted(name for name in files if Path(name).name == name and not index.with_name(name).is_file()):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise StoreError(
            f"{index}: names the shard {absent[0]}{more}, which is absent; copy all shards beside the index"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers as ranges."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
