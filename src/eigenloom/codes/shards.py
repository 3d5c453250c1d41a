"""Stored codes: the arrays that a manifest lists, read in blocks.

Little-endian arrays without header, C order. See ``docs/format.md``.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.codes.manifest import FORMAT, TOGETHER, Manifest, agree, array_files, read_edge
from eigenloom.codes.statistics import FeatureStatistics
from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained

BATCH_ROWS = 8192


def open_codes(path: str | Path, verify: bool = False) -> "CodeShards":
    """Open a manifest and check what it says against the files.

    Args:
        path: ``manifest.json`` or its directory.
        verify: also compare every sha256.

    Raises:
        StoreError: another format, version or layout; a file is missing, too short, too long, or (``verify``) changed.
    """
    path = Path(path)
    path = path / "manifest.json" if path.is_dir() else path
    shards = CodeShards(path, read_edge(path, FORMAT))
    shards.check_files(verify)
    return shards


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of stored codes: ``first_row`` counts from the split's first, ``shard`` is theirs."""

    first_row: int
    shard: int
    arrays: dict[str, Tensor]


class CodeShards(Manifest):
    """The stored codes of one split, in stored order: a ``Manifest`` with its arrays."""

    def __iter__(self) -> Iterator[Block]:
        """Yield the arrays in blocks of at most 8192 rows that never cross a shard."""
        for part in self.parts:
            row = 0
            for shard, n_rows in zip(part["shards"], part["shard_rows"], strict=True):
                for start in range(row, row + n_rows, BATCH_ROWS):
                    stop = min(start + BATCH_ROWS, row + n_rows)
                    arrays = {name: self._rows(part[name], start, stop) for name in self.names}
                    self._check_range(part, arrays)
                    yield Block(part["first_row"] + start, shard, arrays)
                row += n_rows

    def _rows(self, entry: Mapping[str, Any], start: int, stop: int) -> Tensor:
        """Read rows of one array."""
        pieces = []
        for file, dtype, shape in array_files(entry):
            width = math.prod(shape[1:])
            path = self.path.parent / file["file"]
            with explained(path):
                offset = start * width * np.dtype(dtype).itemsize
                data = np.fromfile(path, dtype, (stop - start) * width, offset=offset)
            if data.size != (stop - start) * width:
                raise StoreError(f"{path}: ends before row {stop}; delete the part's edge and run encode again")
            pieces.append(
                torch.from_numpy(data.astype(dtype.lstrip("<"), copy=False).reshape(stop - start, *shape[1:]))
            )
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _check_range(self, part: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
        """Refuse indices that no element has."""
        for name in ("labels", "indices"):
            if name in arrays and arrays[name].numel():
                low, high = arrays[name].aminmax()
                if low < 0 or high >= self.k:
                    where = self.path.parent / part[name]["file"]
                    raise StoreError(f"{where}: holds {int(low)} to {int(high)}, but there are {self.k} elements")

    def statistics(self) -> FeatureStatistics:
        """Merge the statistics of the parts, in order."""
        found = [FeatureStatistics.load(self.path.parent / part["stats"]["file"]) for part in self.parts]
        if any(statistics.n_features != self.k for statistics in found):
            raise StoreError(f"{self.path}: statistics of other than {self.k} features; run encode again")
        return reduce(FeatureStatistics.merge, found)

    def errors(self, part: int) -> tuple[list[int], Tensor]:
        """Return the kept counts and ``|x - xhat|^2`` ``[rows, counts]`` float32 of the part at that position."""
        entry = self.parts[part]["errors"]
        return list(entry["ks"]), self._rows(entry, 0, self.parts[part]["n_rows"])


def check_together(one: CodeShards, other: CodeShards) -> None:
    """Refuse codes of two splits that are not of the same making.

    Raises:
        MismatchError: names what differs and both values.
    """
    agree(one.path, one.meta, other.path, other.meta, TOGETHER)
