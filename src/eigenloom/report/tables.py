"""The long table of results, its floors as rows beside, and the manifest of every run behind it.

A row is a (source, layer, basis, coding). Several seeds of one row give mean and range. The chosen layer of a basis
and coding is the one with the highest Probe R on ``probe_train``; no number of ``probe_val`` ever chooses.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from eigenloom.errors import StoreError
from eigenloom.report.scores import FORMAT, VERSION, csv_text
from eigenloom.store.atomic import read_json

Document = Mapping[str, Any]
Row = dict[str, Any]
Key = tuple[str, str, str, str]
KEY = ("source", "layer", "basis", "coding")
RESULT, FLOOR, CONSTANT_FLOOR, MISSING = "result", "random floor", "constant floor", "missing"
CONSTANT = "constant"
FLOOR_SUFFIX = "-random"
CHOSEN_BY = "probe_r_train"


class Metric(NamedTuple):
    """A column: key in ``metrics.json``, heading, what the number is in a few words, which way is better."""

    key: str
    label: str
    meaning: str
    higher_is_better: bool | None


METRICS = (
    Metric("nmse", "NMSE", "fraction of variance unexplained on fit_val", False),
    Metric("l0", "L0", "mean number of non-zero entries of a code, as measured", None),
    Metric("probe_r", "Probe R", "share of label entropy that the best single feature of each class removes", True),
    Metric("probe_r_train", "Probe R train", "the same on probe_train, which chooses features and layers", True),
    Metric("map", "mAP", "mean over classes of the best feature's average precision", True),
    Metric("purity_16", "Purity@16", "share of the commonest label among a feature's 16 highest rows", True),
    Metric("coverage_03", "Cov@0.3", "share of classes with an average precision above 0.3", True),
)
COUNTS = {"n_pairs_max_iter": "not converged", "n_pairs_approximate": "approximate"}
"""(feature, class) fits that stopped short, and those that rest on a histogram alone."""
HEADLINE = ("nmse", "probe_r", "map")


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read one ``metrics.json``.

    Raises:
        StoreError: it is missing, foreign or of another version.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise StoreError(f"{path}: is not a metrics.json of version {VERSION}; delete it and run `score` again")
    return document


def tabulate(documents: Mapping[str, Document | None]) -> dict[str, Any]:
    """Build the table from ``metrics.json`` documents by path; None stands for a file that is not there.

    A combination of basis and coding that one layer of a source has and another lacks counts as absent, too.

    Returns:
        ``columns``; ``rows`` sorted by source, layer, basis, coding, each followed by its random floor, each layer
        by the constant score; ``missing``: paths
        of absent results, and ``source/layer/basis/coding: column`` for absent numbers; ``manifest``: a flat dict
        per run.
    """
    runs: dict[Key, list[tuple[str, Document]]] = defaultdict(list)
    missing = []
    for path, document in sorted(documents.items()):
        if document is None:
            missing.append(path)
            runs[_key_of(path)] += []
        else:
            runs[_key(document)].append((path, document))
    for key in _grid(runs) - runs.keys():
        missing.append(f"results/{'/'.join(key)}/metrics.json")
        runs[key] = []
    rows: list[Row] = []
    for _, keys in groupby(sorted(runs), key=lambda key: key[:2]):
        constant: list[Row] = []
        for key in keys:
            rows += _rows(key, runs[key], real_floor=(*key[:2], key[2] + FLOOR_SUFFIX, key[3]) in runs)
            constant = constant or _constant_row(key, runs[key])
        rows += constant
    _mark_chosen(rows)
    extra = sorted({name for row in rows for name in row} - {*_LEADING, *_TRAILING})
    columns = [name for name in (*_LEADING, *extra, *_TRAILING) if any(name in row for row in rows)]
    absent = [
        f"{'/'.join(str(row[k]) for k in KEY)}: {metric.key}"
        for row, metric in product(map(filled, rows), METRICS)
        if row["role"] == RESULT and row.get(metric.key) is None
    ]
    manifest = [_manifest_line(path, document) for key in sorted(runs) for path, document in runs[key]]
    return {
        "columns": columns,
        "rows": [{name: row.get(name) for name in columns} for row in rows],
        "missing": sorted(missing) + absent,
        "manifest": manifest,
    }


def filled(row: Document) -> Row:
    """Return a row whose empty metrics take their class-balanced variants, where the probe weighted its classes."""
    balanced = {m.key: row.get(f"{m.key}_balanced") for m in METRICS if row.get(m.key) is None}
    return {**row, **{key: value for key, value in balanced.items() if value is not None}}


def label(metric: Metric, rows: Iterable[Document]) -> str:
    """Return the heading of a metric, which says so where the rows hold its class-balanced variant."""
    balanced = any(row.get(f"{metric.key}_balanced") is not None for row in rows)
    return f"{metric.label} (balanced)" if balanced else metric.label


def markdown(table: Document) -> str:
    """Render the table for people: the metrics of ``METRICS``, three decimals, missing results named below."""
    rows = [filled(row) for row in table["rows"]]
    headings = [*KEY, *(label(metric, rows) for metric in METRICS), *COUNTS.values()]
    lines = [f"| {' | '.join(headings)} |"]
    lines.append("|---|---|---|---|" + "---:|" * (len(METRICS) + len(COUNTS)))
    for row in rows:
        words = [str(row[k]) for k in KEY]
        if row["chosen"]:
            words[1] += " ◆"
        if row["role"] in (FLOOR, CONSTANT_FLOOR):
            words = [f"*{_escaped(word)}*" if word else "" for word in words]
        else:
            words = [_escaped(word) for word in words]
        if row["role"] == MISSING:
            cells = ["missing"] * (len(METRICS) + len(COUNTS))
        else:
            cells = [spread(row, m.key) for m in METRICS] + [number(row.get(name), 0) for name in COUNTS]
        lines.append(f"| {' | '.join(words + cells)} |")
    lines += ["", f"◆ the layer with the highest Probe R on `probe_train`, per basis and coding. {FLOORS_NOTE}"]
    if any(row["n_seeds"] and row["n_seeds"] > 1 for row in rows):
        lines += ["", "Several seeds: mean (lowest to highest)."]
    if table["missing"]:
        lines += ["", "Missing:", "", *(f"- `{name}`" for name in table["missing"])]
    return "\n".join(lines) + "\n"


FLOORS_NOTE = "*Floors*: random features of the same number under the same coding and probe; a constant score."


def table_csv(table: Document) -> str:
    """Render every column in full."""
    return csv_text(table["rows"], table["columns"])


def summary(table: Document) -> dict[str, Any]:
    """Return the metrics of every result, nested by source, layer, basis and coding: what ``dvc metrics`` compares."""
    nested: dict[str, Any] = {}
    for row in table["rows"]:
        if row["role"] == RESULT:
            place = nested
            for name in KEY:
                place = place.setdefault(str(row[name]), {})
            place.update({metric.key: row.get(metric.key) for metric in METRICS})
    return nested


def number(value: Any, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals, nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def spread(row: Document, name: str, digits: int = 3) -> str:
    """Write a number, with lowest and highest where several seeds were run."""
    low, high = row.get(f"{name}_min"), row.get(f"{name}_max")
    text = number(row.get(name), digits)
    return f"{text} ({number(low, digits)} to {number(high, digits)})" if low is not None and high is not None else text


MADE_WITH = (
    "kind", "geometry", "k", "is_floor", "seed", "reconstruction_of", "fit", "probe", "specs", "spec", "digests",
    "inputs",
)  # fmt: skip
_LEADING = (*KEY, "role", "chosen", *(metric.key for metric in METRICS))
_TRAILING = ("n_seeds", "seeds", "path")


def _key(document: Document) -> Key:
    """Return what a row is of."""
    source, layer, basis, coding = (str(document[name]) for name in KEY)
    return source, layer, basis, coding


def _key_of(path: str) -> Key:
    """The same, from a path ``.../source/layer/basis/coding/metrics.json``."""
    source, layer, basis, coding = Path(path).parts[-5:-1]
    return source, layer, basis, coding


def _grid(keys: Iterable[Key]) -> set[Key]:
    """Return every source's layers x every (basis, coding) that the source has anywhere."""
    layers, methods = defaultdict(set), defaultdict(set)
    for source, layer, basis, coding in keys:
        layers[source].add(layer)
        methods[source].add((basis, coding))
    return {(source, layer, *method) for source in layers for layer in layers[source] for method in methods[source]}


def _rows(key: Key, runs: Sequence[tuple[str, Document]], real_floor: bool) -> list[Row]:
    """Make the row of one result and, where that is not a result of its own, the row of its random floor."""
    head: Row = {**dict(zip(KEY, key, strict=True)), "chosen": False}
    if not runs:
        return [{**head, "role": MISSING, "n_seeds": 0}]
    path = runs[0][0] if len(runs) == 1 else None
    seeds = sorted(str(document["seed"]) for _, document in runs)
    values = [_scalars(document) for _, document in runs]
    role = FLOOR if all(document.get("is_floor") for _, document in runs) else RESULT
    tail = {"n_seeds": len(runs), "seeds": " ".join(seeds), "path": path}
    rows = [{**head, "role": role, **_averaged(values), **tail}]
    random = [document["floors"].get("random") for _, document in runs]
    if all(random) and not real_floor:
        rows.append({**head, "basis": key[2] + FLOOR_SUFFIX, "role": FLOOR, **_averaged(random), **tail})
    return rows


def _constant_row(key: Key, runs: Sequence[tuple[str, Document]]) -> list[Row]:
    """Make the row of the constant score, which depends on the labels alone: one per source and layer."""
    if not runs:
        return []
    path, document = runs[0]
    head = {"source": key[0], "layer": key[1], "basis": CONSTANT, "coding": "", "role": CONSTANT_FLOOR, "chosen": False}
    return [{**head, **document["floors"]["constant_score"], "n_seeds": 1, "seeds": "", "path": path}]


def _scalars(document: Document) -> Row:
    """Flatten the numbers of one run: metrics, counts, utilisation."""
    utilisation = {f"utilisation_{name}": value for name, value in document["utilisation"].items()}
    return {**document["metrics"], **document["counts"], **utilisation}


def _averaged(runs: Sequence[Document]) -> Row:
    """Average every number over seeds; one seed stays as it is, of several lowest and highest are kept beside."""
    if len(runs) == 1:
        return dict(runs[0])
    row: Row = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
        row[name] = statistics.fmean(values) if len(values) == len(runs) else None
        row |= {f"{name}_min": min(values), f"{name}_max": max(values)} if row[name] is not None else {}
    return row


def _mark_chosen(rows: Iterable[Row]) -> None:
    """Mark, per source, basis and coding, the layer with the highest Probe R on the training split."""
    best: dict[tuple[str, str, str], tuple[Row, float]] = {}
    for row in rows:
        method = (row["source"], row["basis"], row["coding"])
        score = filled(row).get(CHOSEN_BY)
        if row["role"] == RESULT and score is not None and score > best.get(method, ({}, -math.inf))[1]:
            best[method] = (row, score)
    for row, _ in best.values():
        row["chosen"] = True


def _manifest_line(path: str, document: Document) -> Row:
    """Flatten everything that a run was made with: its words, seeds, specifications, digests; no results."""
    line: Row = {"path": path, **dict(zip(KEY, _key(document), strict=True))}
    for name in (
        "kind",
        "geometry",
        "k",
        "is_floor",
        "seed",
        "reconstruction_of",
        "fit",
        "probe",
        "specs",
        "spec",
        "digests",
        "inputs",
    ):
        _flatten(name, document.get(name), line)
    return line


def _flatten(prefix: str, value: Any, line: Row) -> None:
    """Spread nested mappings over dotted names; lists stay whole, as text."""
    if isinstance(value, Mapping):
        for name in value:
            _flatten(f"{prefix}.{name}", value[name], line)
    else:
        line[prefix] = " ".join(map(str, value)) if isinstance(value, list) else value


def _escaped(word: str) -> str:
    """Keep a word inside its Markdown cell."""
    return " ".join(word.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
