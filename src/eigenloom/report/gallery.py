"""The gallery in the page: images with maps laid over, as parts of two sheets that the page carries inside."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.provenance import file_digest
from eigenloom.report.drawing import SERIES
from eigenloom.report.tables import number
from eigenloom.store.atomic import explained, read_json

FORMAT = "eigenloom.gallery"
Document = Mapping[str, Any]
TYPES = {"pictures": "image/jpeg", "maps": "image/png"}
TILE = 64
"""CSS pixels of a tile."""


def read_gallery(path: Path) -> Document:
    """Read a gallery; under ``pictures`` and ``maps`` the sheets' facts gain ``uri``, the file itself.

    Raises:
        StoreError: it is foreign or of another version, or a sheet is missing or not the one it names.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != 1:
        raise StoreError(f"{path}: is no gallery of version 1; delete it and run `illustrate` again")
    return {**document, **{name: _with_file(path, document[name], media) for name, media in TYPES.items()}}


def _with_file(path: Path, sheet: Document, media: str) -> Document:
    """Add the file of a sheet as a data URI."""
    file = path.parent / Path(sheet["file"]).name
    with explained(file):
        data = file.read_bytes()
    if file_digest(file) != sheet["sha256"]:
        raise StoreError(f"{file}: is not the file that {path.name} names; delete both and run `illustrate` again")
    return {**sheet, "uri": f"data:{media};base64,{base64.b64encode(data).decode()}"}


def arrange(galleries: Mapping[str, Document], bases: list[str], link: Any) -> list[dict[str, Any]]:
    """Arrange each source's gallery by class: what the template shows."""
    return [_source(source, document, bases, link) for source, document in sorted(galleries.items())]


def css(galleries: Iterable[Document]) -> str:
    """Give each gallery's tiles their sheets, drawn so that a tile of either is 64 CSS pixels wide."""
    rules = []
    for position, document in enumerate(galleries):
        for name, selector in (("pictures", ".tile"), ("maps", ".tile i")):
            sheet = document[name]
            width, height = (round(length * TILE / sheet["side"]) for length in sheet["size"])
            rules.append(
                f'.gallery-{position} {selector}{{background-image:url("{sheet["uri"]}");'
                f"background-size:{width}px {height}px}}"
            )
    return "\n".join(rules)


def _source(source: str, document: Document, bases: list[str], link: Any) -> dict[str, Any]:
    """Arrange one source: classes, each with its methods, each with its tiles."""
    names = {entry["id"]: entry["class"] for method in document["methods"] for entry in method["classes"]}
    classes = []
    for number_, name in sorted(names.items()):
        methods = []
        for method in document["methods"]:
            entry = next((e for e in method["classes"] if e["id"] == number_), None)
            if entry is not None:
                methods.append(_method(method, entry, document, bases, link))
        best = max(methods, key=lambda method: method["ap"] or 0.0)
        classes.append({"name": name, "methods": methods, "best": best["basis"], "best_ap": number(best["ap"])})
    return {"source": source, "split": document["split"], "classes": classes}


def _method(method: Document, entry: Document, document: Document, bases: list[str], link: Any) -> dict[str, Any]:
    """Describe what one basis shows of one class."""
    columns = document["pictures"]["columns"]
    turned = "" if entry["sign"] > 0 else "minus "
    return {
        "basis": method["basis"],
        "colour": bases.index(method["basis"]) % len(SERIES) if method["basis"] in bases else 0,
        "where": f"{method['layer']}, {method['coding']}, {turned}feature {entry['feature']}",
        "ap": entry["ap"],
        "words": f"AP {number(entry['ap'])}; random features {number(entry['ap_random']) or '–'}",
        "href": link(method["metrics"]),
        "tiles": [_tile(tile, columns) for tile in entry["images"]],
    }


def _tile(tile: Document, columns: int) -> dict[str, str]:
    """Place one tile on both sheets and say what it shows."""
    label = f"labelled {tile['label']}" if tile["label"] is not None else "without a label"
    row, column = tile["patch"]
    return {
        "title": f"{tile['example']}: highest score {tile['score']:.3g} at row {row}, column {column}, {label}",
        "picture": _position(tile["picture"], columns),
        "map": _position(tile["map"], columns),
    }


def _position(number_: int, columns: int) -> str:
    """Return the CSS offset of a tile on its sheet."""
    return f"-{number_ % columns * TILE}px -{number_ // columns * TILE}px"
