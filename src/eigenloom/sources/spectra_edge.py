"""The edge that says which spectra a split consists of, and how they are treated."""

from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.store.atomic import read_json

FORMAT = "eigenloom.spectra"
VERSION = 1
KEYS = (
    "format", "version", "dataset", "survey", "keys", "n_examples", "n_spectra", "n_pixels", "wavelength", "normalise",
    "bad_pixels", "files", "spec", "inputs",
)  # fmt: skip


def read_spectra_edge(path: str | Path) -> dict[str, Any]:
    """Read the edge of a split's spectra.

    Raises:
        StoreError: missing, of another format or version, or without one of ``KEYS``.
    """
    edge = read_json(path)
    if not isinstance(edge, dict) or edge.get("format") != FORMAT or edge.get("version") != VERSION:
        raise StoreError(f"{path}: is not an edge of format {FORMAT!r} version {VERSION}; run the rule that makes it")
    if missing := [key for key in KEYS if key not in edge]:
        raise StoreError(f"{path}: lacks {', '.join(missing)}; delete it and run the rule that makes it")
    return edge
