"""The files that an edge lists, compared with those on the disk; without torch, so that small jobs start fast."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenloom.provenance import file_digest


def file_problems(directory: Path, files: Mapping[str, Mapping[str, Any]], verify: bool) -> list[str]:
    """List what is wrong with the siblings an edge names: unsafe names, missing, wrong size, wrong sha256."""
    problems = []
    for name, facts in files.items():
        path = directory / name
        if name in ("", ".", "..") or os.sep in name or "/" in name or "\\" in name:
            problems.append(f"{directory}: names the file {name!r}, which leaves its directory")
        elif not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != facts["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, expected {facts['bytes']}")
        elif verify and file_digest(path) != facts["sha256"]:
            problems.append(f"{path}: its sha256 is not the recorded {facts['sha256'][:8]}...")
    return problems
