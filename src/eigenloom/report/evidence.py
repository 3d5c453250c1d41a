"""Everything the report is made from, read once: tables, metrics, reconstructions, bases, models, spectra,
weights, denoised surveys, arms of attention.

The names of source, layer and basis come from the paths, which are normative (``docs/format.md``).
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.evaluation.arms import TABLE_FORMAT
from eigenloom.provenance import text_digest
from eigenloom.report.expert_table import read_table
from eigenloom.report.gallery import read_gallery
from eigenloom.report.races import Entry, read_races
from eigenloom.report.scores import read_reconstruction
from eigenloom.report.tables import FLOOR_SUFFIX, KEY, RESULT, filled, read_metrics
from eigenloom.sources.spectra_edge import read_spectra_edge
from eigenloom.store.artifact import read_artifact
from eigenloom.store.atomic import explained, read_json

Document = Mapping[str, Any]
Place = tuple[str, str, str]
"""Source, layer, basis."""


@dataclass(frozen=True)
class Fit:
    """What a fit remembers of itself: kind, parameters asked for and resolved, histories and spectra by name."""

    kind: str
    asked: Document
    parameters: Document
    histories: Mapping[str, list[Any]]


@dataclass(frozen=True)
class Model:
    """The network of a source: what it reached on fit_val, the bar it had to clear, its training history by column."""

    metrics: Document
    bar: Document
    history: Mapping[str, list[float]]


@dataclass(frozen=True)
class Evidence:
    """Results by their names; ``metrics`` by path, as the table's column ``path``; edges of spectra by source."""

    tables: Sequence[Document] = ()
    metrics: Mapping[str, Document] = field(default_factory=dict)
    classes: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    reconstructions: Mapping[Place, Document] = field(default_factory=dict)
    fits: Mapping[Place, Fit] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    spectra: Mapping[str, list[Document]] = field(default_factory=dict)
    weights: Mapping[str, Document] = field(default_factory=dict)
    experts: Sequence[Document] = ()
    denoised: Mapping[str, Document] = field(default_factory=dict)
    arms: Mapping[str, Document] = field(default_factory=dict)
    races: Sequence[Entry] = ()
    galleries: Mapping[str, Document] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[Document]:
        """Rows of all tables; where classes were weighted, the balanced metrics stand for the plain ones."""
        return [filled(row) for table in self.tables for row in table["rows"]]

    @property
    def results(self) -> list[Document]:
        """Rows that are results, neither floors nor missing."""
        return [row for row in self.rows if row["role"] == RESULT]

    @property
    def sources(self) -> list[str]:
        """Names of the sources, sorted."""
        return sorted({row["source"] for row in self.rows} | {place[0] for place in self.reconstructions})

    def layers(self, source: str) -> list[str]:
        """Layers of a source, sorted."""
        found = {row["layer"] for row in self.rows if row["source"] == source}
        return sorted(found | {place[1] for place in self.reconstructions if place[0] == source})

    @property
    def bases(self) -> list[str]:
        """Names of the bases, floors left out, sorted; a basis's position is its colour."""
        found = {row["basis"] for row in self.results} | {place[2] for place in self.reconstructions}
        return sorted(name for name in found if not name.endswith(FLOOR_SUFFIX))

    def floor(self, row: Document) -> Document | None:
        """Return the row of a result's random floor."""
        wanted = {**{name: row[name] for name in KEY}, "basis": row["basis"] + FLOOR_SUFFIX}
        return next((r for r in self.rows if all(r[name] == wanted[name] for name in KEY)), None)

    def constant(self, row: Document) -> Document | None:
        """Return the row of the constant score of a result's source and layer."""
        place = (row["source"], row["layer"], "constant floor")
        return next((r for r in self.rows if (r["source"], r["layer"], r["role"]) == place), None)


HISTORIES = ("inertia_history", "lr_history", "utilisation_history", "explained_variance")


def gather(
    tables: Iterable[Path] = (),
    metrics: Iterable[Path] = (),
    reconstructions: Iterable[Path] = (),
    bases: Iterable[Path] = (),
    models: Iterable[Path] = (),
    spectra: Iterable[Path] = (),
    weights: Iterable[Path] = (),
    experts: Iterable[Path] = (),
    denoised: Iterable[Path] = (),
    arms: Iterable[Path] = (),
    races: Iterable[Path] = (),
    galleries: Iterable[Path] = (),
) -> Evidence:
    """Read the edges, and what the figures need beside them.

    Raises:
        StoreError: an edge is missing, foreign or of another version, or a sibling is not the one it names.
    """
    splits: dict[str, list[Document]] = {}
    for path in sorted(spectra):
        splits.setdefault(path.parts[-4], []).append(read_spectra_edge(path))
    scored = {path.as_posix(): read_metrics(path) for path in sorted(metrics)}
    return Evidence(
        tables=[_table(path) for path in sorted(tables)],
        metrics=scored,
        classes={path: _classes(Path(path), document) for path, document in scored.items()},
        reconstructions={_place(path, 4, 3, 2): read_reconstruction(path) for path in sorted(reconstructions)},
        fits={_place(path, 5, 2, 3): _fit(path) for path in sorted(bases)},
        models={path.parts[-3]: _model(path) for path in sorted(models)},
        spectra=splits,
        weights={path.parts[-2]: _weights(path) for path in sorted(weights)},
        experts=[read_table(path) for path in sorted(experts)],
        denoised={path.parts[-3]: _denoised(path) for path in sorted(denoised)},
        arms={path.parts[-3]: _arms(path) for path in sorted(arms)},
        races=read_races(races),
        galleries={path.parts[-2]: read_gallery(path) for path in sorted(galleries)},
    )


def _place(path: Path, source: int, layer: int, basis: int) -> Place:
    """Take source, layer and basis from the parts of a path, counted from its end."""
    return path.parts[-source], path.parts[-layer], path.parts[-basis]


def _table(path: Path) -> Document:
    """Read one table.json."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "eigenloom.table":
        raise StoreError(f"{path}: is not a table; delete it and run `tabulate` again")
    return document


def _classes(path: Path, document: Document) -> list[dict[str, Any]]:
    """Read the per-class rows beside a metrics.json: numbers as floats, empty cells as None."""
    text = _sibling(path, "per_class.csv", document["files"])
    return [{key: _value(key, cell) for key, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _fit(path: Path) -> Fit:
    """Load what a basis remembers of its fit; the arrays are checked against the edge."""
    artifact = read_artifact(path)
    histories = {name: artifact.arrays[name].tolist() for name in HISTORIES if name in artifact.arrays}
    asked = (artifact.meta["spec"] or {}).get("basis") or {}
    return Fit(artifact.meta["kind"], asked, artifact.parameters, histories)


def _model(path: Path) -> Model:
    """Read the edge of a trained network and its history."""
    edge = read_json(path)
    if not isinstance(edge, dict) or edge.get("format") != "eigenloom.model":
        raise StoreError(f"{path}: is not the edge of a model; delete it and run `train` again")
    text = _sibling(path, "history.csv", edge["files"])
    history: dict[str, list[float]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        for name, cell in row.items():
            history.setdefault(name, []).append(float(cell) if cell else math.nan)
    return Model(edge["metrics"], edge["bar"], history)


def _weights(path: Path) -> Document:
    """Read the results of a collection of checkpoints."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "eigenloom.weights":
        raise StoreError(f"{path}: holds no results of weights; delete it and run `rebuild` again")
    return document


def _denoised(path: Path) -> Document:
    """Read the scores of a denoised survey, and under ``examples`` the spectra beside them."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "eigenloom.denoising":
        raise StoreError(f"{path}: holds no scores of a denoised survey; delete it and run `score_denoised` again")
    return {**document, "examples": json.loads(_sibling(path, "examples.json", document["files"]))}


def _arms(path: Path) -> Document:
    """Read the table of a study of attention."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != TABLE_FORMAT:
        raise StoreError(f"{path}: is no table of arms; delete it and run `compare_arms` again")
    return document


def _sibling(path: Path, name: str, files: Document) -> str:
    """Read a text beside an edge, and check that it is the one the edge names."""
    sibling = path.with_name(name)
    with explained(sibling):
        text = sibling.read_bytes().decode("utf-8")
    if text_digest(text) != files[name]["sha256"]:
        raise StoreError(f"{sibling}: is not the file that {path.name} names; delete both and run their rule again")
    return text


def _value(key: str, cell: str) -> Any:
    """Read a cell: names stay text whatever they look like."""
    if key in ("class", "skipped"):
        return cell
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
