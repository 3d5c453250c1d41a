"""Compare every file below ``artifacts`` with the sha256 its edge records: ``python scripts/verify.py [ROOT]``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eigenloom.errors import StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.artifact import file_problems
from eigenloom.store.atomic import read_json


def recorded_files(value: Any) -> Iterator[dict[str, dict[str, Any]]]:
    """Find every ``{name: {"bytes", "sha256"}}`` mapping, and every single ``{"name"|"file", "sha256"}``, in an edge."""
    if isinstance(value, dict):
        name = value.get("name", value.get("file"))
        if isinstance(name, str) and isinstance(value.get("sha256"), str):
            yield {name: {"bytes": value.get("bytes"), "sha256": value["sha256"]}}
        for key, item in value.items():
            if key == "files" and isinstance(item, dict):
                yield {n: f for n, f in item.items() if isinstance(f, dict) and "sha256" in f}
            elif key not in ("spec", "inputs"):
                yield from recorded_files(item)
    elif isinstance(value, list):
        for item in value:
            yield from recorded_files(item)
