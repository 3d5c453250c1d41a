"""The schema of ``store.json``, our facts beside the protocol's: format names, keys, and what may be wrong with one."""

from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.store.protocol import Metadata, is_count, metadata_hash, shard_name, shown

FORMAT = "eigenloom.store"
VERSION = 1
SHARD_KEYS = ("name", "n_examples", "sha256")
DIRECTORY = "directory"
"""The one further key, of a recording that lies elsewhere: its directory, relative to what holds ``artifacts``."""
LABEL_KEYS = ("sha256", "classes", "void", "rule", "counts")
KEYS = (
    "format", "version", "source", "split", "saev_hash", "n_examples", "tokens_per_example", "n_rows", "d_model",
    "layers", "grid", "bytes_per_shard", "signature", "shards", "files", "labels", "spec", "inputs",
)  # fmt: skip


def home_of(document: Any, path: Path) -> Path:
    """Return the directory of the shards that a parsed ``store.json`` at ``path`` describes: its own, or another.

    Raises:
        StoreError: it names a place that is not relative to the repository.
    """
    if not isinstance(document, dict) or DIRECTORY not in document:
        return path.parent
    named = document[DIRECTORY]
    if not isinstance(named, str) or not named or named[0] in "/~" or "\0" in named:
        raise StoreError(f"{path}: its directory {shown(named)} is not relative to the repository; adopt it again")
    parts = path.parts
    root = parts[: len(parts) - 1 - parts[::-1].index("artifacts")] if "artifacts" in parts else ()
    return Path(*root, named)


def implied(metadata: Metadata) -> dict[str, Any]:
    """Return the part of a sidecar that follows from ``metadata.json``."""
    layout = metadata.layout
    return {
        "saev_hash": metadata_hash(metadata),
        "n_examples": layout.n_examples,
        "tokens_per_example": layout.content_tokens_per_example,
        "n_rows": layout.n_examples * layout.content_tokens_per_example,
        "d_model": layout.d_model,
        "layers": list(layout.layers),
        "bytes_per_shard": layout.shard_bytes,
    }


def sidecar_problems(document: Any, metadata: Metadata, path: Path) -> list[str]:
    """List what is wrong with a parsed ``store.json``: its form, and where it contradicts ``metadata.json``."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return [f"{path}: is not the sidecar of an activation store (format {FORMAT!r} expected)"]
    if document.get("version") != VERSION:
        return [f"{path}: version {shown(document.get('version'))}; this eigenloom reads version {VERSION}"]
    missing = [key for key in KEYS if key not in document]
    if missing:
        return [f"{path}: lacks {', '.join(missing)}; delete it and run `snakemake {path}`"]
    problems = [
        f"{path}: {key} is {shown(document[key])}, but metadata.json says {shown(value)}; run `snakemake {path}`"
        for key, value in implied(metadata).items()
        if document[key] != value
    ]
    if not isinstance(document["signature"], dict):
        problems.append(f"{path}: signature must be an object, not {shown(document['signature'])}")
    grid = document["grid"]
    if grid is not None and not (isinstance(grid, list) and len(grid) == 2 and all(map(is_count, grid))):
        problems.append(f"{path}: grid must be null or two positive integers, not {shown(grid)}")
    problems += [f"{path}: {problem}" for problem in _shard_problems(document["shards"], metadata)]
    problems += [f"{path}: {problem}" for problem in _label_problems(document["labels"])]
    return problems


def _shard_problems(shards: Any, metadata: Metadata) -> list[str]:
    """List how the sidecar's shards differ from those the protocol calls for."""
    layout = metadata.layout
    if not isinstance(shards, list) or len(shards) != layout.n_shards:
        found = f"{len(shards)} entries" if isinstance(shards, list) else shown(shards)
        return [f"shards has {found}, where metadata.json calls for {layout.n_shards}"]
    problems = []
    for number, entry in enumerate(shards):
        first, stop = layout.shard_range(number)
        facts = entry if isinstance(entry, dict) else {}
        if facts.get("name") != shard_name(number) or facts.get("n_examples") != stop - first:
            problems.append(
                f"shard {number} is {shown(entry)}, expected {shard_name(number)} with {stop - first} examples"
            )
        elif "sha256" not in facts or not (facts["sha256"] is None or _is_digest(facts["sha256"])):
            problems.append(f"shard {number}: sha256 {shown(facts.get('sha256'))} is not 64 hex digits")
    return problems


def _label_problems(labels: Any) -> list[str]:
    """List what is wrong with the description of the labels."""
    if labels is None:
        return []
    if not isinstance(labels, dict) or any(key not in labels for key in LABEL_KEYS):
        return [f"labels must have {', '.join(LABEL_KEYS)}, not {shown(labels)}"]
    classes, void = labels["classes"], labels["void"]
    if not isinstance(classes, list) or not 0 < len(classes) <= 256 or not all(isinstance(c, str) for c in classes):
        return [f"labels: classes must be a list of 1 to 256 names, not {shown(classes)}"]
    if void is not None and not (is_count(void, 0) and void < len(classes)):
        return [f"labels: void must be null or the number of a class, not {shown(void)}"]
    if not _is_digest(labels["sha256"]):
        return [f"labels: sha256 {shown(labels['sha256'])} is not 64 hex digits"]
    return []


def _is_digest(value: Any) -> bool:
    """Say whether a value is a sha256 in lower-case hex."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")
