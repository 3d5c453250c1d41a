"""Scores: one basis, layer and coding, every metric beside its floors.

Pure JSON in, JSON and CSV out: no arrays and no torch, so that the many small jobs that do this start at once.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenloom.errors import MismatchError, StoreError
from eigenloom.store.atomic import read_json

FORMAT = "eigenloom.metrics"
VERSION = 1
RECONSTRUCTION = ("nmse", "nmse_raw", "nmse_raw_own_mean")
MEASURED = ("metrics", "counts", "classes", "top_features")
"""Of the probe's parameters: what it measured. The rest is what it was asked for and what that became."""
FLOOR_PREFIX = "floor_"
"""Of the probe's own scalars: what a constant score reaches."""
PER_CLASS = (
    "id", "class", "skipped", "n_train", "n_val", "prevalence_train", "prevalence_val", "best_feature", "b", "w",
    "train_ce", "val_ce", "h_train", "h_val", "margin", "ap", "ap_floor", "ap_random", "covered", "purity",
    "rows_found", "mean_ce",
)  # fmt: skip

Document = Mapping[str, Any]


def read_reconstruction(path: str | Path) -> dict[str, Any]:
    """Read ``reconstruction.json``.

    Raises:
        StoreError: it is missing, foreign or of another version.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "eigenloom.reconstruction":
        raise StoreError(f"{path}: is not a reconstruction; delete it and run `evaluate` again")
    if document.get("version") != 1:
        raise StoreError(f"{path}: reconstruction version {document.get('version')!r}; this eigenloom reads version 1")
    return document


def read_edge(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Read the ``meta.json`` of an artifact of that kind; its arrays stay where they are.

    Raises:
        StoreError: it is missing or something else.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not document.keys() >= {"kind", "parameters", "spec", "inputs"}:
        raise StoreError(f"{path}: is not the meta.json of an artifact; delete it and run its rule again")
    if kind is not None and document["kind"] != kind:
        raise StoreError(f"{path}: is a {document['kind']!r}, where a {kind!r} is needed")
    return document


def merge(
    spec: Document,
    inputs: Mapping[str, str],
    reconstruction: Document,
    probe: Document,
    floor_reconstruction: Document | None = None,
    floor_probe: Document | None = None,
    basis: Document | None = None,
) -> dict[str, Any]:
    """Gather every scalar of one basis, layer and coding, with its floors.

    Args:
        spec: ``source``, ``layer``, ``basis``, ``coding``, and what else the job was given.
        inputs: path of every input edge -> sha256 hex.
        reconstruction: of the basis, all codings.
        probe: the ``meta.json`` of its probe under this coding.
        floor_reconstruction: the same of the random basis of equal size; None where the basis is itself a floor.
        floor_probe: likewise.
        basis: the ``meta.json`` of the basis, for the manifest.

    Returns:
        The document of ``metrics.json``, but for ``files``. What is undefined is None.

    Raises:
        MismatchError: a reconstruction or a probe is of another layer.
        StoreError: a reconstruction lacks this coding and has no one-hot entry to share.
    """
    layer, coding = str(spec["layer"]), str(spec["coding"])
    parts = {"reconstruction": reconstruction, "probe": probe}
    parts |= {"floor's reconstruction": floor_reconstruction or {}, "floor's probe": floor_probe or {}}
    for name, part in parts.items():
        found = part.get("layer") or (part.get("spec") or {}).get("layer") or layer
        if found != layer:
            raise MismatchError(f"the {name} is of {found}, the score of {layer}; run its rule again")
    metrics, shared = _metrics(coding, reconstruction, probe)
    floors = {"constant_score": constant_score(probe)}
    if floor_reconstruction is not None and floor_probe is not None:
        floors["random"] = _metrics(coding, floor_reconstruction, floor_probe)[0]
    fit, parameters = basis or {}, probe["parameters"]
    document = {
        "format": FORMAT,
        "version": VERSION,
        **{key: spec[key] for key in ("source", "layer", "basis", "coding")},
        **{key: reconstruction.get("basis", {}).get(key) for key in ("kind", "geometry", "k")},
        "is_floor": "random" not in floors,
        "seed": _first(spec, fit.get("spec"), probe.get("spec"), key="seed"),
        "metrics": metrics,
        "reconstruction_of": shared,
        "floors": floors,
        "counts": parameters["counts"],
        "utilisation": (reconstruction["utilisation"].get(shared) or {}).get("total", {}),
        "probe": {k: v for k, v in parameters.items() if k not in MEASURED},
        "fit": {k: v for k, v in fit.get("parameters", {}).items() if _is_scalar(v)},
        "specs": {"fit": fit.get("spec"), "reconstruction": reconstruction["spec"], "probe": probe["spec"]},
        "digests": {**reconstruction["inputs"], **probe["inputs"]},
        "spec": dict(spec),
        "inputs": dict(sorted(inputs.items())),
    }
    return finite(document)


def constant_score(probe: Document) -> dict[str, float | None]:
    """Score a feature that says the same of every row.

    Its average precision is the prevalence, its cross-entropy the baseline, so Probe R is 0; its sixteen best rows
    are a sample of all rows, so purity is the largest prevalence; it reconstructs the mean, so NMSE is 1.
    """
    metrics, classes = probe["parameters"]["metrics"], probe["parameters"]["classes"]
    own = {k.removeprefix(FLOOR_PREFIX): v for k, v in metrics.items() if k.startswith(FLOOR_PREFIX)}
    shares = [q for q in classes["prevalence_val"] if q is not None]
    return {"nmse": 1.0, "l0": 0.0, "probe_r_train": 0.0, "purity_16": max(shares, default=None), **own}


def class_rows(probe: Document, floor_probe: Document | None = None) -> list[dict[str, Any]]:
    """List the classes, one dict each, with the random floor's average precision as ``ap_random``.

    Raises:
        StoreError: the columns of a probe, or of it and its floor, differ in length.
    """
    columns = dict(probe["parameters"]["classes"])
    columns["id"] = list(range(len(columns["class"])))
    if floor_probe is not None:
        columns["ap_random"] = floor_probe["parameters"]["classes"]["ap"]
    return _transposed(columns, "classes")


def feature_rows(probe: Document) -> list[dict[str, Any]]:
    """List the features of highest average precision of each class; none where they were not asked for."""
    return _transposed(probe["parameters"].get("top_features") or {}, "top_features")


def csv_text(rows: Sequence[Mapping[str, Any]], order: Iterable[str] = ()) -> str:
    """Write rows as CSV: numbers in full, None and NaN empty, columns of ``order`` first, others as they come."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    wanted = list(order)
    columns = [key for key in wanted if key in found] + [key for key in found if key not in wanted]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(key)) for key in columns] for row in rows)
    return file.getvalue()


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(coding: str, reconstruction: Document, probe: Document) -> tuple[dict[str, Any], str]:
    """Join the metrics of reconstruction and probe; say which coding's reconstruction it is.

    A coding that none was measured for has that of what it became (a Top-K that leaves nothing out is dense), or of the
    nearest centre.
    """
    codings, became = reconstruction["codings"], str(probe["parameters"].get("coding_name"))
    shared = next((name for name in (coding, became) if name in codings), "onehot")
    if shared not in codings:
        raise StoreError(f"the reconstruction knows {sorted(codings)}, not {coding!r}; run `evaluate` again")
    entry, found = codings[shared], probe["parameters"]["metrics"]
    scores = {key: value for key, value in found.items() if not key.startswith(FLOOR_PREFIX)}
    l0 = entry["l0"] if shared == coding else found["l0_val"]
    return {**{name: entry[name] for name in RECONSTRUCTION}, "l0": l0, **scores}, shared


def _transposed(columns: Mapping[str, Sequence[Any]], what: str) -> list[dict[str, Any]]:
    """Turn columns into rows."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StoreError(f"the probe's {what} have columns of different lengths: {lengths}; run `probe` again")
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_scalar(value: Any) -> bool:
    """Say whether a JSON value is neither list nor mapping."""
    return value is None or isinstance(value, str | bool | int | float)


def _first(*documents: Document | None, key: str) -> Any:
    """Return the first document's value of a key that has one."""
    return next((document[key] for document in documents if document and key in document), None)


def _cell(value: Any) -> Any:
    """Write a value for CSV."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else value
