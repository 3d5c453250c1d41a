"""Code files: the manifest over their parts, and the reader that believes nothing it has not checked.

Little-endian arrays without header, C order. See ``docs/format.md``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.codes.layouts import DTYPES, NAMES
from eigenloom.codes.statistics import FeatureStatistics
from eigenloom.errors import MismatchError, StoreError
from eigenloom.store.artifact import file_problems
from eigenloom.store.atomic import explained, read_json, write_json

PART_FORMAT = "eigenloom.codes-part"
FORMAT = "eigenloom.codes"
VERSION = 1
SHARED = ("split", "layer", "layout", "values_kind", "k", "stored_k", "basis", "signature", "standardization")
"""Keys that all parts of one manifest must agree on."""
TOGETHER = ("layer", "layout", "values_kind", "k", "stored_k", "basis", "signature", "standardization")
"""Keys that the manifests of two splits must agree on."""
ARRAYS = {
    "label": ("labels", "distances"),
    "topk": ("values", "indices"),
    "dense": ("values",),
}
"""Arrays a reader needs; a dense part of squared distances has those of ``label`` too."""
BATCH_ROWS = 8192


def write_manifest(
    path: str | Path, parts: Sequence[str | Path], *, spec: Any = None, inputs: Mapping[str, str] | None = None
) -> str:
    """Gather part edges, all beside ``path``, into the manifest of one split; return its sha256.

    Raises:
        StoreError: a part is not of this format, names a bad file, or the parts do not follow each other.
        MismatchError: parts differ in basis, layout or standardization.
    """
    path = Path(path)
    edges = [_read(Path(part), PART_FORMAT) for part in parts]
    if not edges:
        raise StoreError(f"{path}: a manifest needs at least one part; run encode first")
    for part, edge in zip(parts, edges, strict=True):
        if Path(part).parent.resolve() != path.parent.resolve():
            raise StoreError(f"{part}: is not beside {path}; parts and manifest share a directory")
        _agree(Path(parts[0]), edges[0], Path(part), edge, SHARED)
    edges.sort(key=lambda edge: edge["first_row"])
    own = {"format", "version", "spec", "inputs", *SHARED}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **{key: edges[0][key] for key in SHARED},
        "n_rows": sum(edge["n_rows"] for edge in edges),
        "spec": spec,
        "inputs": dict(sorted((inputs or {}).items())),
        "parts": [{key: value for key, value in edge.items() if key not in own} for edge in edges],
    }
    CodeShards(path, manifest)
    return write_json(path, manifest)


def write_part_edge(path: str | Path, header: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    """Publish the edge of a part: ``header`` (all of ``SHARED``, ``part``, ``first_row``, ``spec``, ``inputs``) and
    what ``write_part`` returned.
    """
    missing = {*SHARED, "part", "first_row", "spec", "inputs"} - header.keys()
    assert not missing, missing
    return write_json(path, {"format": PART_FORMAT, "version": VERSION, **header, **entries})


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
    shards = CodeShards(path, _read(path, FORMAT))
    shards.check_files(verify)
    return shards


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of stored codes: ``first_row`` counts from the split's first, ``shard`` is theirs."""

    first_row: int
    shard: int
    arrays: dict[str, Tensor]


class CodeShards:
    """The stored codes of one split, in stored order.

    Attributes: ``path``, ``meta`` (the manifest), ``split``, ``layout``, ``values_kind`` (``labels``, ``codes``,
    ``squared-distance``), ``k``, ``stored_k``, ``n_rows``, ``standardization`` (digest), ``parts``.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]):
        """Take a manifest apart and check that its parts tile the rows."""
        self.path, self.meta = path, meta
        try:
            self.split, self.layout, self.values_kind = meta["split"], meta["layout"], meta["values_kind"]
            self.k, self.stored_k, self.n_rows = meta["k"], meta["stored_k"], meta["n_rows"]
            self.standardization, self.parts = meta["standardization"], meta["parts"]
            if self.layout not in NAMES:
                raise StoreError(f"{path}: layout {self.layout!r}; this eigenloom reads {', '.join(NAMES)}")
            self._names = list(ARRAYS[self.layout])
            if self.values_kind == "squared-distance":
                self._names += ARRAYS["label"]
            self._check_parts()
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: lacks or garbles {error}; run join_codes again") from None

    def _check_parts(self) -> None:
        """Refuse gaps, overlaps and shapes that do not fit."""
        row = 0
        for part in self.parts:
            n = part["n_rows"]
            if (
                part["first_row"] != row
                or sum(part["shard_rows"]) != n
                or len(part["shards"]) != len(part["shard_rows"])
            ):
                raise StoreError(f"{self.path}: part {part['part']} begins at row {part['first_row']}, not at {row}")
            row += n
            widths = {"values": self.k if self.layout == "dense" else self.stored_k, "indices": self.stored_k}
            widths["errors"] = len(part["errors"]["ks"])
            for name in (*self._names, "errors"):
                shape = [n, widths[name]] if name in widths else [n]
                entry = part[name]
                if entry["shape"] != shape or entry["dtype"] not in DTYPES:
                    raise StoreError(
                        f"{self.path}: {name} of part {part['part']} is {entry['dtype']} {entry['shape']}, "
                        f"expected the shape {shape} and a dtype of {', '.join(DTYPES)}"
                    )
        if row != self.n_rows:
            raise StoreError(f"{self.path}: parts hold {row} rows, not {self.n_rows}")

    def check_files(self, verify: bool = False) -> None:
        """Refuse files that are missing, of another size than their shape, or (``verify``) of another sha256.

        Raises:
            StoreError: names each.
        """
        problems = []
        for part in self.parts:
            files = {}
            for name in (*self._names, "errors"):
                for file, _, shape in _files(part[name]):
                    expected = math.prod(shape) * _itemsize(part[name]["dtype"])
                    files[file["file"]] = {"bytes": expected, "sha256": file["sha256"]}
            files[part["stats"]["file"]] = part["stats"]
            problems += file_problems(self.path.parent, files, verify)
        if problems:
            raise StoreError("; ".join(problems) + "; delete the part's edge and run encode again, or `dvc checkout`")

    def __iter__(self) -> Iterator[Block]:
        """Yield the arrays in blocks of at most 8192 rows that never cross a shard."""
        for part in self.parts:
            row = 0
            for shard, n_rows in zip(part["shards"], part["shard_rows"], strict=True):
                for start in range(row, row + n_rows, BATCH_ROWS):
                    stop = min(start + BATCH_ROWS, row + n_rows)
                    arrays = {name: self._rows(part[name], start, stop) for name in self._names}
                    self._check_range(part, arrays)
                    yield Block(part["first_row"] + start, shard, arrays)
                row += n_rows

    def _rows(self, entry: Mapping[str, Any], start: int, stop: int) -> Tensor:
        """Read rows of one array."""
        pieces = []
        for file, dtype, shape in _files(entry):
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
    _agree(one.path, one.meta, other.path, other.meta, TOGETHER)


def _agree(path: Path, one: Mapping[str, Any], other_path: Path, other: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Compare two headers."""
    for key in keys:
        if one.get(key) != other.get(key):
            raise MismatchError(
                f"{path} has {key} {one.get(key)!r}, but {other_path} has {other.get(key)!r}; "
                "run encode and join_codes again for both with the same basis"
            )


def _read(path: Path, expected: str) -> dict[str, Any]:
    """Read an edge and check what it claims to be."""
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("format") != expected:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise StoreError(f"{path}: format {found!r}, expected {expected!r}")
    if meta.get("version") != VERSION:
        raise StoreError(f"{path}: version {meta.get('version')!r}; this eigenloom reads version {VERSION}")
    return meta


def _files(entry: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, list[int]]]:
    """List the files of one array with dtype and shape of each."""
    shape, dtype = entry["shape"], entry["dtype"]
    if "blocks" not in entry:
        yield entry, dtype, shape
        return
    width = entry["features_per_file"]
    starts = range(0, shape[1], width)
    for start, block in zip(starts, entry["blocks"], strict=True):
        yield block, dtype, [shape[0], min(width, shape[1] - start)]


def _itemsize(dtype: str) -> int:
    """Bytes of one number."""
    return np.dtype(dtype).itemsize
