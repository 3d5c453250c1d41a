"""One checkpoint on disk: named tensors whose flat ranges can be read; no model class, nothing held whole.

Providers describe where each tensor lies and read pieces of it. What they have in common is here: the contract, the
number formats, and how bytes of a file become float32 numbers.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Formats that are weights, by their names in safetensors."""
COUNTS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Formats of buffers that are no weights, and their bytes per number."""
SIZES = {name: torch.empty(0, dtype=dtype).element_size() for name, dtype in FLOATS.items()} | COUNTS


@dataclass(frozen=True)
class TensorFacts:
    """Shape of a stored tensor and the name of its number format: those of safetensors, else the provider's own."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def n_numbers(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=np.int64))


Range = tuple[str, int, int]
"""A tensor's name and a half-open range of its numbers in C order."""


class Checkpoint(ABC):
    """Tensors of one sample, by name.

    Attributes: ``label``, what messages call it; ``n_bytes`` on disk; ``tensors``, name -> facts; ``aliases``, name ->
    the name of the tensor whose storage it shares, as far as the file tells; ``metadata``, the header's texts.
    """

    label: str
    n_bytes: int
    tensors: Mapping[str, TensorFacts]
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]

    @abstractmethod
    def fill(self, ranges: Sequence[Range], out: Tensor) -> None:
        """Read ranges of floating-point tensors, one after the other, into ``out`` float32 ``[c]``.

        Raises:
            StoreError: the file is missing, shorter than described, or cannot be read.
        """

    @abstractmethod
    def raw(self, name: str) -> Iterable[bytes | memoryview]:
        """Yield the stored bytes of a tensor of any format, little-endian, C order, in pieces."""

    def stored_bytes(self, name: str) -> int:
        """Return how many bytes ``raw`` yields."""
        facts = self.tensors[name]
        return facts.n_numbers * SIZES[facts.dtype]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return a range of one tensor as float32 ``[stop - start]``."""
        stop = self.tensors[name].n_numbers if stop is None else stop
        out = torch.empty(stop - start)
        self.fill([(name, start, stop)], out)
        return out


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor begin, in which file, and how many there are."""

    path: Path
    offset: int
    n_bytes: int


PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FlatCheckpoint(Checkpoint):
    """A checkpoint whose tensors are plain little-endian numbers at known places of files."""

    label: str
    n_bytes: int
    tensors: Mapping[str, TensorFacts]
    places: Mapping[str, Place]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def fill(self, ranges: Sequence[Range], out: Tensor) -> None:
        """Read by one open file at a time; float32 goes straight to its place."""
        done, at, file = 0, None, -1
        try:
            for name, start, stop in ranges:
                place, kind = self.places[name], self.tensors[name].dtype
                if place.path != at:
                    file = _reopen(file, place.path)
                    at = place.path
                target, size = out[done : done + stop - start], SIZES[kind]
                if kind == "F32":
                    _read_exactly(file, place.path, target.view(torch.uint8).numpy().data, place.offset + start * size)
                else:
                    buffer = bytearray((stop - start) * size)
                    _read_exactly(file, place.path, memoryview(buffer), place.offset + start * size)
                    target.copy_(torch.frombuffer(buffer, dtype=FLOATS[kind]) if buffer else target)
                done += stop - start
        finally:
            if file >= 0:
                os.close(file)

    def stored_bytes(self, name: str) -> int:
        """Return how many bytes the header promises."""
        return self.places[name].n_bytes

    def raw(self, name: str) -> Iterable[bytes | memoryview]:
        """Yield pieces of one MiB."""
        place = self.places[name]
        file = _reopen(-1, place.path)
        try:
            for start in range(0, place.n_bytes, PIECE_BYTES):
                buffer = bytearray(min(PIECE_BYTES, place.n_bytes - start))
                _read_exactly(file, place.path, memoryview(buffer), place.offset + start)
                yield memoryview(buffer)
        finally:
            os.close(file)


def _reopen(file: int, path: Path) -> int:
    """Close one file and open the next."""
    if file >= 0:
        os.close(file)
    with explained(path):
        return os.open(path, os.O_RDONLY)


def _read_exactly(file: int, path: Path, target: memoryview, offset: int) -> None:
    """Fill ``target`` from a position.

    Raises:
        StoreError: the file ends before.
    """
    done = 0
    while done < len(target):
        n = os.preadv(file, [target[done:]], offset + done)
        if n == 0:
            raise StoreError(
                f"{path}: ends at byte {offset + done}, where its header promises {len(target) - done} more;"
                " it was cut short while it was read; copy it again"
            )
        done += n
