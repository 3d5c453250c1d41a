"""Compare every artifact with its records: ``python scripts/verify.py [ROOT]``.

Each edge (a small JSON file below ``artifacts``) names its large siblings with size and sha256, and its inputs with
their sha256. All are read again; every difference is printed and makes the exit status 1. Of an edge itself the sha256
is known to what was made from it; where nothing was, `dvc status` knows it.
"""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eigenloom.errors import StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.atomic import read_json
from eigenloom.store.recording import open_store
from eigenloom.store.sidecar import FORMAT as RECORDING
from eigenloom.store.sidecar import home_of

Facts = dict[str, Any]
digest = cache(file_digest)


def recorded_files(value: Any) -> Iterator[tuple[str, Facts]]:
    """Find what an edge says about its siblings: under ``files`` by name, elsewhere beside ``name`` or ``file``."""
    if isinstance(value, list):
        for item in value:
            yield from recorded_files(item)
    elif isinstance(value, dict):
        name = value.get("name", value.get("file"))
        if isinstance(name, str) and isinstance(value.get("sha256"), str):
            yield name, value
        for key, item in value.items():
            if key == "files" and isinstance(item, dict):
                yield from ((n, facts) for n, facts in item.items() if isinstance(facts, dict) and "sha256" in facts)
            elif key not in ("spec", "inputs"):
                yield from recorded_files(item)


def problems(edge: Path, root: Path) -> Iterator[str]:
    """List the differences between an edge and what lies on the disk."""
    document = read_json(edge)
    if not isinstance(document, dict):
        yield f"{edge}: is not an edge"
        return
    home = home_of(document, edge) if document.get("format") == RECORDING else edge.parent
    for name, facts in [] if edge.name in RESULTS else recorded_files(document):
        path = home / name
        if Path(name).name != name:
            yield f"{edge}: names {name!r}, which leaves its directory"
        elif not path.is_file():
            yield f"{path}: missing"
        elif "bytes" in facts and path.stat().st_size != facts["bytes"]:
            yield f"{path}: {path.stat().st_size} bytes, expected {facts['bytes']}"
        elif digest(path) != facts["sha256"]:
            yield f"{path}: its sha256 is not the one in {edge.name}"
    if document.get("format") == RECORDING:
        yield from protocol_problems(edge)
    for name, sha256 in document.get("inputs", {}).items():
        source = root / name
        if source.is_file() and digest(source) != sha256:
            yield f"{edge}: was made from another {name}"


def protocol_problems(edge: Path) -> Iterator[str]:
    """List how ``metadata.json`` and ``shards.json``, of another project's format, disagree with ``store.json``."""
    try:
        open_store(edge)
    except StoreError as error:
        yield from str(error).splitlines()


def not_recorded(edges: list[Path]) -> Iterator[str]:
    """List the recordings of whose shards no sha256 is known: adopted ones, with ``checksums: false``."""
    for edge in edges:
        document = read_json(edge)
        shards = document.get("shards", []) if document.get("format") == RECORDING else []
        if n := sum(entry["sha256"] is None for entry in shards):
            yield f"{edge}: the sha256 of {n} shards in {home_of(document, edge)} is not recorded"


def edges_of(root: Path) -> list[Path]:
    """Return the edges of every experiment, and the results, which say what they were made from."""
    results = (path for path in (root / "results").rglob("*.json") if path.name in RESULTS)
    return sorted([*(path for path in (root / "artifacts").rglob("*.json") if is_edge(path)), *results])


def differences(root: Path, edges: list[Path] | None = None) -> list[str]:
    """List what differs from its record, below ``root/artifacts`` and between it and ``root/results``."""
    edges = edges_of(root) if edges is None else edges
    found: list[str] = []
    digest.cache_clear()
    for edge in tqdm(edges, desc="verify", unit="edge", disable=not sys.stderr.isatty()):
        try:
            found += (line for line in problems(edge, root) if line not in found)
        except StoreError as error:
            found.append(str(error))
    return found


def main() -> None:
    """Check everything, and say so or name what differs."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    edges = edges_of(root)
    if found := differences(root, edges):
        print("\n".join(found))
        sys.exit(
            f"{len(found)} problem(s) in {len(edges)} edges; delete what is named, then run again or `dvc checkout`"
        )
    print("\n".join([*not_recorded(edges), f"{len(edges)} edges, all as recorded"]))


def is_edge(path: Path) -> bool:
    """Say whether a JSON file records others: not a snapshot's, not a ``run.json``, not saev's own two."""
    inside = path.parts[len(path.parts) - path.parts[::-1].index("artifacts") :]
    names_others = path.stem in EDGE_STEMS or path.stem.rpartition("-")[0] in ("part", "shard")
    return names_others and not inside[0].startswith(".")


RESULTS = ("metrics.json", "reconstruction.json", "table.json", "experts.json")
EDGE_STEMS = {"meta", "store", "manifest", "labels"}

if __name__ == "__main__":
    main()
