"""The manifest over the parts of code files: written from their edges, and believed only as far as it was checked.

Without torch: of all jobs those that gather parts are the most. Reading the arrays: ``codes/shards.py``.
See ``docs/format.md``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.errors import MismatchError, StoreError
from eigenloom.store.atomic import read_json, write_json
from eigenloom.store.listing import file_problems

LAYOUTS = ("label", "topk", "dense")
STORED = ("<f2", "<f4", "<i4")
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


def write_manifest(
    path: str | Path, parts: Sequence[str | Path], *, spec: Any = None, inputs: Mapping[str, str] | None = None
) -> str:
    """Gather part edges, all beside ``path``, into the manifest of one split; return its sha256.

    Raises:
        StoreError: a part is not of this format, names a bad file, or the parts do not follow each other.
        MismatchError: parts differ in basis, layout or standardization.
    """
    path = Path(path)
    edges = [read_edge(Path(part), PART_FORMAT) for part in parts]
    if not edges:
        raise StoreError(f"{path}: a manifest needs at least one part; run encode first")
    for part, edge in zip(parts, edges, strict=True):
        if Path(part).parent.resolve() != path.parent.resolve():
            raise StoreError(f"{part}: is not beside {path}; parts and manifest share a directory")
        agree(Path(parts[0]), edges[0], Path(part), edge, SHARED)
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
    Manifest(path, manifest).check_files()
    return write_json(path, manifest)


def write_part_edge(path: str | Path, header: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    """Publish the edge of a part: ``header`` (all of ``SHARED``, ``part``, ``first_row``, ``spec``, ``inputs``) and
    what ``write_part`` returned.
    """
    missing = {*SHARED, "part", "first_row", "spec", "inputs"} - header.keys()
    assert not missing, missing
    return write_json(path, {"format": PART_FORMAT, "version": VERSION, **header, **entries})


class Manifest:
    """The stored codes of one split, in stored order, without their arrays.

    Attributes: ``path``, ``meta`` (the manifest), ``split``, ``layout``, ``values_kind`` (``labels``, ``codes``,
    ``squared-distance``), ``k``, ``stored_k``, ``n_rows``, ``standardization`` (digest), ``parts``,
    ``names`` (of the arrays).
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]):
        """Take a manifest apart and check that its parts tile the rows."""
        self.path, self.meta = path, meta
        try:
            self.split, self.layout, self.values_kind = meta["split"], meta["layout"], meta["values_kind"]
            self.k, self.stored_k, self.n_rows = meta["k"], meta["stored_k"], meta["n_rows"]
            self.standardization, self.parts = meta["standardization"], meta["parts"]
            if self.layout not in LAYOUTS:
                raise StoreError(f"{path}: layout {self.layout!r}; this eigenloom reads {', '.join(LAYOUTS)}")
            self.names = list(ARRAYS[self.layout])
            if self.values_kind == "squared-distance":
                self.names += ARRAYS["label"]
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
            for name in (*self.names, "errors"):
                shape = [n, widths[name]] if name in widths else [n]
                entry = part[name]
                if entry["shape"] != shape or entry["dtype"] not in STORED:
                    raise StoreError(
                        f"{self.path}: {name} of part {part['part']} is {entry['dtype']} {entry['shape']}, "
                        f"expected the shape {shape} and a dtype of {', '.join(STORED)}"
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
            for name in (*self.names, "errors"):
                for file, _, shape in array_files(part[name]):
                    expected = math.prod(shape) * np.dtype(part[name]["dtype"]).itemsize
                    files[file["file"]] = {"bytes": expected, "sha256": file["sha256"]}
            files[part["stats"]["file"]] = part["stats"]
            problems += file_problems(self.path.parent, files, verify)
        if problems:
            raise StoreError("; ".join(problems) + "; delete the part's edge and run encode again, or `dvc checkout`")


def agree(path: Path, one: Mapping[str, Any], other_path: Path, other: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse two headers that differ in one of ``keys``.

    Raises:
        MismatchError: names the key and both values.
    """
    for key in keys:
        if one.get(key) != other.get(key):
            raise MismatchError(
                f"{path} has {key} {one.get(key)!r}, but {other_path} has {other.get(key)!r}; "
                "run encode and join_codes again for both with the same basis"
            )


def read_edge(path: Path, expected: str) -> dict[str, Any]:
    """Read an edge and check what it claims to be.

    Raises:
        StoreError: it is missing, or of another format or version.
    """
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("format") != expected:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise StoreError(f"{path}: format {found!r}, expected {expected!r}")
    if meta.get("version") != VERSION:
        raise StoreError(f"{path}: version {meta.get('version')!r}; this eigenloom reads version {VERSION}")
    return meta


def array_files(entry: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, list[int]]]:
    """List the files of one array with dtype and shape of each."""
    shape, dtype = entry["shape"], entry["dtype"]
    if "blocks" not in entry:
        yield entry, dtype, shape
        return
    width = entry["features_per_file"]
    starts = range(0, shape[1], width)
    for start, block in zip(starts, entry["blocks"], strict=True):
        yield block, dtype, [shape[0], min(width, shape[1] - start)]
