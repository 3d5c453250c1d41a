"""The canonical layout: which numbers of a checkpoint make up its flat vector, and in which order.

Floating-point tensors, names in byte order, each raveled in C order, one after the other; tied weights once.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.provenance import canonical_json, text_digest
from eigenloom.sources.checkpoint_file import COUNTS, FLOATS, Checkpoint, Range
from eigenloom.store.atomic import read_json

FORMAT = "eigenloom.layout"
VERSION = 1
SHOWN = 3


@dataclass(frozen=True)
class Entry:
    """One tensor of a layout: where its numbers begin in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    n_numbers: int


@dataclass(frozen=True)
class WeightLayout:
    """Entries in order, ``aliases`` (name -> entry that has its numbers), ``skipped`` (name -> reason).

    ``choice`` holds the ``include``, ``exclude`` and ``tied`` it was made by, which other checkpoints are laid out by.
    """

    entries: tuple[Entry, ...]
    aliases: Mapping[str, str]
    skipped: Mapping[str, str]
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """Length ``D`` of the flat vector."""
        return self.entries[-1].offset + self.entries[-1].n_numbers

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON of ``[name, shape, offset]`` of every entry; number formats play no part."""
        return text_digest(canonical_json([[e.name, list(e.shape), e.offset] for e in self.entries]))

    @cached_property
    def _offsets(self) -> list[int]:
        return [entry.offset for entry in self.entries]

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def entry(self, name: str) -> Entry | None:
        """Return the entry with a tensor's numbers, its own or the one it is tied to; None for skipped tensors."""
        return self._by_name.get(self.aliases.get(name, name))

    def ranges(self, start: int, stop: int) -> list[Range]:
        """Return the pieces of tensors that a range of the flat vector consists of."""
        found = []
        number = bisect_right(self._offsets, start) - 1
        while number < len(self.entries) and self.entries[number].offset < stop:
            entry = self.entries[number]
            first, last = max(start - entry.offset, 0), min(stop - entry.offset, entry.n_numbers)
            if first < last:
                found.append((entry.name, first, last))
            number += 1
        return found

    def locate(self, position: int) -> str:
        """Say where a number of the flat vector lies: tensor and index."""
        ((name, start, _),) = self.ranges(position, position + 1)
        shape, index = self._by_name[name].shape, []
        for side in reversed(shape):
            start, place = divmod(start, side)
            index.append(place)
        return f"tensor {name!r}, index {tuple(reversed(index))}"

    def document(self) -> dict[str, Any]:
        """Return what ``layout.json`` holds."""
        tensors = [{"name": e.name, "shape": list(e.shape), "dtype": e.dtype, "offset": e.offset} for e in self.entries]
        return {
            "format": FORMAT,
            "version": VERSION,
            "layout_hash": self.digest,
            "n_features": self.n_features,
            "tensors": tensors,
            "aliases": dict(sorted(self.aliases.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "choice": dict(self.choice),
        }  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``layout.json``.

        Raises:
            StoreError: missing, foreign, or not in agreement with itself.
        """
        document = read_json(path)
        if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
            raise StoreError(f"{path}: is not a layout of format {FORMAT!r} version {VERSION}; fit the basis again")
        entries = _entries([(t["name"], tuple(t["shape"]), t["dtype"]) for t in document["tensors"]])
        layout = cls(entries, document["aliases"], document["skipped"], document["choice"])
        if layout.digest != document["layout_hash"]:
            raise StoreError(f"{path}: its tensors are not those of its layout_hash; fit the basis again")
        return layout

    def differences(self, other: "WeightLayout") -> str:
        """Say how another layout differs: lacking, additional and mis-shaped tensors, the first three of each."""
        ours, theirs = ({e.name: e.shape for e in layout.entries} for layout in (self, other))
        reshaped = [f"{n} {theirs[n]} for {ours[n]}" for n in ours if n in theirs and ours[n] != theirs[n]]
        kinds = {
            "lacks": [name for name in ours if name not in theirs],
            "adds": [name for name in theirs if name not in ours],
            "has another shape of": reshaped,
        }
        return "; ".join(f"{verb} {_some(names)}" for verb, names in kinds.items() if names)


def layout_of(
    checkpoint: Checkpoint,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tied: Sequence[Sequence[str]] = (),
) -> WeightLayout:
    """Lay out one checkpoint.

    Args:
        checkpoint: its tensors.
        include: shell patterns of names to take; none takes all.
        exclude: patterns of names to leave out.
        tied: groups of names that hold the same weights although the file stores each; the first in byte order stays.

    Raises:
        ConfigError: a tied name does not exist, tied shapes differ, or nothing is left.
        DataError: a quantised or unknown number format.
    """
    aliases = {**checkpoint.aliases, **_configured(checkpoint, tied)}
    entries, skipped, kept = [], {}, {}
    for name in sorted(checkpoint.tensors, key=str.encode):
        facts = checkpoint.tensors[name]
        if include and not any(fnmatchcase(name, pattern) for pattern in include):
            skipped[name] = "not included"
        elif pattern := next((p for p in exclude if fnmatchcase(name, p)), None):
            skipped[name] = f"excluded by {pattern}"
        elif facts.dtype in COUNTS:
            skipped[name] = f"{facts.dtype} is not floating-point"
        elif facts.dtype not in FLOATS:
            raise DataError(
                f"{checkpoint.label}: tensor {name!r} is {facts.dtype}; quantised and unknown formats are refused:"
                " dequantise the checkpoint, or exclude the tensor"
            )
        elif facts.n_numbers == 0:
            skipped[name] = "has no numbers"
        elif name not in aliases:
            entries.append((name, facts.shape, facts.dtype))
    names = {name for name, _, _ in entries}
    for name, target in aliases.items():
        while target in aliases:
            target = aliases[target]
        if target in names and name not in skipped:
            kept[name] = target
        elif name in checkpoint.tensors:
            skipped.setdefault(name, f"tied to {target}, which is left out")
    if not entries:
        raise ConfigError(
            f"{checkpoint.label}: no floating-point tensor is left; there are {_some(checkpoint.tensors)}"
        )
    choice = {"include": [*include], "exclude": [*exclude], "tied": [[*group] for group in tied]}
    return WeightLayout(_entries(entries), kept, skipped, choice)


def _entries(tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> tuple[Entry, ...]:
    """Place tensors one after the other."""
    entries, offset = [], 0
    for name, shape, dtype in tensors:
        n_numbers = 1
        for side in shape:
            n_numbers *= side
        entries.append(Entry(name, shape, dtype, offset, n_numbers))
        offset += n_numbers
    return tuple(entries)


def _configured(checkpoint: Checkpoint, tied: Sequence[Sequence[str]]) -> dict[str, str]:
    """Turn groups of tied names into aliases."""
    aliases = {}
    for group in tied:
        if absent := [name for name in group if name not in checkpoint.tensors and name not in checkpoint.aliases]:
            raise ConfigError(f"{checkpoint.label}: tied tensor {absent[0]!r} does not exist;"
                              f" there are {_some(checkpoint.tensors)}")  # fmt: skip
        stored = sorted((name for name in group if name in checkpoint.tensors), key=str.encode)
        first = stored[0] if stored else ""
        for name in stored[1:]:
            if checkpoint.tensors[name].shape != checkpoint.tensors[first].shape:
                raise ConfigError(f"{checkpoint.label}: tied tensors {first!r} and {name!r} differ in shape")
            aliases[name] = first
    return aliases


def _some(names: Any) -> str:
    """List the first three of some names, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
