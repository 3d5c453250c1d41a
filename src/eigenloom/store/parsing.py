"""Believe nothing that a recording's files say before it is checked; list all that is wrong."""

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained, read_json
from eigenloom.store.protocol import (
    KEYS,
    PROTOCOL,
    SHARD_NAME,
    Layout,
    Metadata,
    is_count,
    shard_name,
    shown,
    value_problems,
)

OLD_PROTOCOLS = ("1.0.0", "1.1")
OLD_KEYS = (
    "vit_family", "vit_ckpt", "patches_per_ex", "n_patches_per_img", "n_ex", "n_imgs", "patches_per_shard",
    "max_patches_per_shard", "n_patches_per_shard",
)  # fmt: skip
MAX_METADATA_BYTES = 1 << 20
MAX_LIST_BYTES = 64 << 20
logger = logging.getLogger("eigenloom")


def check_present(directory: Path, ours: bool) -> None:
    """Refuse a directory without its documents, telling what is there."""
    if not directory.is_dir():
        repair = f"run `snakemake {directory}/store.json`" if ours else "correct the path"
        raise StoreError(f"{directory}: no such directory; {repair}")
    names = ["metadata.json", "shards.json"] + ["store.json"] * ours
    repair = f"run `snakemake {directory}/store.json`" if ours else "record it again, or correct the path"
    absent = [name for name in names if not (directory / name).exists()]
    if absent:
        found = sorted(path.name for path in directory.iterdir())
        acts = [name for name in found if name.startswith("acts")]
        what = f"{len(acts)} acts*.bin and {len(found) - len(acts)} other files"
        first = f" ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''})" if found else ""
        raise StoreError(
            f"{directory}: {' and '.join(absent)} absent; there are {what}{first}; recording incomplete: {repair}"
        )


def read_document(path: Path, max_bytes: int) -> tuple[Any, Path]:
    """Read a JSON document that is a regular file, or a link to one, of bounded size."""
    with explained(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path}: is not a regular file")
    return read_json(path, max_bytes), path


def size_problems(path: Path, expected: int, least: int | None = None) -> list[str]:
    """List what is wrong with the kind and size of a file."""
    try:
        facts = os.stat(path)
    except OSError:
        link = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
        return [f"{path}: missing{link}, {expected} bytes expected; run the rule that makes it, or `dvc pull`"]
    if not stat.S_ISREG(facts.st_mode):
        return [f"{path}: is not a regular file, {expected} bytes expected; move it away"]
    if not (expected if least is None else least) <= facts.st_size <= expected:
        return [f"{path}: {facts.st_size} bytes, {expected} expected; delete it and run the rule that makes it"]
    return []


def first_difference(ours: Any, theirs: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """Return the dotted name and both values of the first field that differs."""
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return None if ours == theirs else (field, ours, theirs)
    for key in sorted(ours.keys() | theirs.keys()):
        found = first_difference(ours.get(key), theirs.get(key), f"{field}.{key}" if field else str(key))
        if found is not None:
            return found
    return None


def parse_metadata(document: Any, path: Path) -> Metadata:
    """Turn a parsed ``metadata.json`` into ``Metadata``; unknown keys are ignored with one log line.

    Raises:
        StoreError: another protocol, a missing key, a value of the wrong type or out of range; all are listed.
    """
    problems = metadata_problems(document)
    if problems:
        raise StoreError("\n".join(f"{path}: {problem}" for problem in problems))
    extra = sorted(document.keys() - set(KEYS))
    if extra:
        logger.warning("%s: unknown keys are ignored: %s", path, ", ".join(extra))
    values = {key: value for key, value in _stated(document).items() if key in KEYS}
    return Metadata(**{**values, "layers": tuple(values["layers"])})


def parse_shards(document: Any, layout: Layout, path: Path) -> list[int]:
    """Check a parsed ``shards.json`` against the layout; return the number of examples in each shard.

    saev leaves an entry without examples behind the last when the last shard is full; it is dropped.

    Raises:
        StoreError: names out of order or unsafe, counts that do not add up; all problems are listed.
    """
    problems = _entry_problems(document)
    if not problems:
        if len(document) > 1 and document[-1]["n_examples"] == 0:
            document = document[:-1]
        problems = _count_problems([entry["n_examples"] for entry in document], layout)
    if problems:
        raise StoreError("\n".join(f"{path}: {problem}" for problem in problems))
    return [entry["n_examples"] for entry in document]


def metadata_problems(document: Any) -> list[str]:
    """List what is wrong with a parsed ``metadata.json``."""
    if not isinstance(document, dict):
        return ["is not a JSON object"]
    old = [key for key in OLD_KEYS if key in document]
    protocol = document.get("protocol", PROTOCOL)
    if protocol in OLD_PROTOCOLS or (old and "n_examples" not in document):
        named = f"protocol {protocol}" if protocol in OLD_PROTOCOLS else f"the key {old[0]!r} of an older protocol"
        return [f"{named} is refused; record the activations again with protocol {PROTOCOL}"]
    if protocol != PROTOCOL:
        return [f"protocol {shown(protocol)} is refused; eigenloom reads {PROTOCOL}"]
    missing = [key for key in KEYS if key not in document and key != "pixel_agg"]
    if missing:
        return [f"lacks {', '.join(missing)}; record the activations again"]
    return value_problems({"pixel_agg": "majority", **_stated(document)})


def _stated(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without a ``pixel_agg`` of null, which says no more than its absence."""
    return {key: value for key, value in document.items() if key != "pixel_agg" or value is not None}


def _entry_problems(document: Any) -> list[str]:
    """List what is wrong with single entries of a ``shards.json``."""
    if not isinstance(document, list) or not document:
        return ["is not a JSON list with at least one shard"]
    problems = []
    for shard, entry in enumerate(document):
        if not isinstance(entry, dict) or "name" not in entry or "n_examples" not in entry:
            problems.append(f"entry {shard} must have name and n_examples, not {shown(entry)}" + _age(entry))
            continue
        name = entry["name"]
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            problems.append(f"entry {shard}: the shard name {shown(name)} is refused; it must be {shard_name(shard)}")
        elif name != shard_name(shard):
            problems.append(f"entry {shard} is called {name}, but its position calls for {shard_name(shard)}")
        last = shard == len(document) - 1
        if not is_count(entry["n_examples"], 0 if last else 1):
            problems.append(f"entry {shard}: n_examples must be a positive integer, not {shown(entry['n_examples'])}")
    return problems


def _age(entry: Any) -> str:
    """Name the older protocol that an entry belongs to."""
    old = isinstance(entry, dict) and next((key for key in OLD_KEYS if key in entry), None)
    return f" (the key {old!r} is of an older protocol; record again with {PROTOCOL})" if old else ""


def _count_problems(counts: Sequence[int], layout: Layout) -> list[str]:
    """List how the examples of the shards fail to be those of the layout."""
    problems = []
    full = layout.examples_per_shard
    short = [shard for shard, count in enumerate(counts[:-1]) if count != full]
    for shard in short:
        problems.append(f"shard {shard} has {counts[shard]} examples, but every shard before the last has {full}")
    if sum(counts) != layout.n_examples:
        stopped = short[0] if short else len(counts) - 1
        problems.append(
            f"the shards hold {sum(counts)} examples, metadata.json promises {layout.n_examples} in {layout.n_shards}"
            f" shards; recording stopped at shard {stopped}; run it again"
        )
    elif not problems and counts[-1] > full:
        problems.append(f"shard {len(counts) - 1} has {counts[-1]} examples, more than the {full} that fit")
    return problems
