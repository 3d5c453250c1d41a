"""The guard: do the artifacts on disk and Snakemake's records of them stem from the same runs?

Records move with Git, artifacts with DVC. After one moved without the other, Snakemake alone says "Nothing to be done"
over artifacts of another configuration. ``skew`` compares them, reading small files only.
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Container
from functools import cache
from pathlib import Path

from eigenloom.provenance import canonical_json, file_digest

EDGE = re.compile(r"artifacts/[^.].*/(store|meta|manifest|labels|part-\d+|shard-\d+)\.json$")
RECORDS, RUNNING = ".snakemake/metadata", ".snakemake/incomplete"


def by_target(root: str) -> dict[str, Path]:
    """Return target -> Snakemake's file about it; names are base64, cut into @-directories when long."""
    found = {}
    for path in Path(root).rglob("*"):
        if path.is_file() and path.name != "migration_underway":
            name = "".join(part.removeprefix("@") for part in path.relative_to(root).parts)
            found[urlsafe_b64decode(name).decode()] = path
    return found


def skew(wanted: Container[str] | None = None) -> dict[str, str]:
    """Return file -> reason for each file below the working directory whose record stems from another run.

    Files that a live or interrupted run is making are left out: Snakemake knows them.

    Args:
        wanted: the files to look at, all when left out. Those of other experiments, and what an edit of the
            configuration left behind, mislead nobody.
    """
    records, running = by_target(RECORDS), by_target(RUNNING)
    edges = filter(EDGE.match, map(str, Path("artifacts").rglob("*.json")))
    found = {edge: "has no record" for edge in edges if edge not in records and edge not in running}
    found = {edge: reason for edge, reason in found.items() if wanted is None or edge in wanted}
    for out in sorted(out for out in records if out not in running and (wanted is None or out in wanted)):
        if not Path(out).is_file():
            continue
        try:
            reason = _difference(out, records[out])
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = "cannot be read, or its record cannot"
        if reason:
            found[out] = reason
    return found


def _difference(out: str, path: Path) -> str | None:
    """Say in what a file differs from its record."""
    record = json.loads(path.read_text(encoding="utf-8"))
    sums = {k: v for k, v in record["input_checksums"].items() if k.startswith(("artifacts/", "results/"))}
    if EDGE.match(out):
        edge = json.loads(Path(out).read_text(encoding="utf-8"))
        inputs = {name: f"sha256:{digest}" for name, digest in edge["inputs"].items()}
        if [repr(canonical_json(edge["spec"]))] != record["params"] or inputs != sums:
            return "is not the file its record describes"
    made = Path(out).stat().st_mtime
    for source, wanted in sums.items():  # Snakemake compares checksums only of inputs that are newer
        if Path(source).is_file() and Path(source).stat().st_mtime <= made and _digest(source) != wanted:
            return f"was made from another {source}"
    return None


@cache
def _digest(path: str) -> str:
    """Digest an input in the form that records have."""
    return f"sha256:{file_digest(path)}"


def complaint(found: dict[str, str], shown: int = 5) -> list[str]:
    """Put what ``skew`` found into lines: the first few files, and the ways out."""
    lines = [f"{len(found)} file(s) and Snakemake's records of them stem from different runs:"]
    lines += [f"  {name} {reason}" for name, reason in list(found.items())[:shown]]
    lines += [f"  and {len(found) - shown} more"] if len(found) > shown else []
    ways = ["  git checkout -- .snakemake/metadata      the records of the commit you are on, if they went"]
    if Path(".dvc").is_dir():
        ways += [
            "  dvc checkout (after `dvc pull`)          the artifacts of the commit you are on",
            "  dvc checkout --force                     the same, dropping files that nothing recorded",
        ]
    return [*lines, "Nothing was run. Ways out:", *ways, "  delete the files named, and run again    they are remade"]


def is_bare() -> bool:
    """Say whether there are records but no artifacts, as in a clone before ``dvc pull``."""
    return any(Path(RECORDS).rglob("*")) and not any(p.is_file() for p in Path("artifacts").glob("[!.]*/**/*"))
