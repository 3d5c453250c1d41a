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
COVERED_ABOVE = 0.3
RECONSTRUCTION = ("nmse", "nmse_raw", "nmse_raw_own_mean")
METRIC_STEMS = ("probe_r", "map", "coverage_", "purity_", "mean_ce", "oracle_", "ceiling")
"""Beginnings of the probe's metrics; suffixes (``_train``, ``_all``, ``_balanced``) make variants of them."""
PER_CLASS = (
    "id", "name", "n_train", "n_val", "prevalence_train", "prevalence_val", "best_feature", "b", "w", "train_ce",
    "val_ce", "entropy", "margin", "ap", "ap_floor", "ap_random", "purity_16", "rows_found", "covered", "mean_ce",
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
    if not isinstance(document, dict) or not {"kind", "parameters", "spec", "inputs"} <= document.keys():
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
    parameters = probe["parameters"]
    metrics, shared = _metrics(coding, reconstruction, probe)
    floors = {"constant_score": constant_score(parameters.get("per_class") or {})}
    if floor_reconstruction is not None and floor_probe is not None:
        floors["random"] = _metrics(coding, floor_reconstruction, floor_probe)[0]
    document = {
        "format": FORMAT,
        "version": VERSION,
        **{key: spec[key] for key in ("source", "layer", "basis", "coding")},
        "kind": reconstruction.get("kind"),
        "is_floor": "random" not in floors,
        "seed": _first(spec, (basis or {}).get("spec"), probe.get("spec"), reconstruction.get("spec"), key="seed"),
        "metrics": metrics,
        "reconstruction_of": shared,
        "floors": floors,
        "counts": parameters.get("counts", {}),
        "utilisation": ((reconstruction.get("utilisation") or {}).get(shared) or {}).get("total", {}),
        "probe": {k: v for k, v in parameters.items() if _is_scalar(v) and not _is_metric(k)},
        "fit": {k: v for k, v in (basis["parameters"] if basis else {}).items() if _is_scalar(v)},
        "specs": {
            "fit": basis["spec"] if basis else None,
            "reconstruction": reconstruction.get("spec"),
            "probe": probe.get("spec"),
        },
        "digests": {**reconstruction.get("inputs", {}), **probe.get("inputs", {})},
        "spec": dict(spec),
        "inputs": dict(sorted(inputs.items())),
    }
    return finite(document)


def constant_score(per_class: Mapping[str, Sequence[Any]]) -> dict[str, float | None]:
    """Score a feature that says the same of every row, from the prevalences of the evaluated classes.

    Its average precision is the prevalence, its cross-entropy the baseline, so Probe R is 0; its sixteen best rows
    are a sample of all rows, so purity is the largest prevalence; it reconstructs the mean, so NMSE is 1.
    """
    shares = [q for q in per_class.get("prevalence_val", []) if _is_number(q) and q > 0]
    baselines = [h for h in per_class.get("entropy", []) if _is_number(h)]
    return {
        "nmse": 1.0,
        "l0": 0.0,
        "probe_r": 0.0 if shares else None,
        "probe_r_train": 0.0 if shares else None,
        "map": _mean(shares),
        "coverage_03": _mean([float(q > COVERED_ABOVE) for q in shares]),
        "purity_16": max(shares, default=None),
        "mean_ce": _mean(baselines),
    }


def class_rows(probe: Document, floor_probe: Document | None = None) -> list[dict[str, Any]]:
    """List the classes, one dict each, with the random floor's average precision as ``ap_random``.

    Raises:
        StoreError: the probe's columns differ in length.
    """
    columns = dict(probe["parameters"].get("per_class") or {})
    if floor_probe is not None and "ap" in columns:
        columns["ap_random"] = floor_probe["parameters"].get("per_class", {}).get("ap", [None] * len(columns["ap"]))
    return _transposed(columns, "per_class")


def feature_rows(probe: Document) -> list[dict[str, Any]]:
    """List the probe's ``top_features``: given as records, or as columns of equal length."""
    top = probe["parameters"].get("top_features") or []
    return _transposed(top, "top_features") if isinstance(top, Mapping) else [dict(row) for row in top]


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
    """Join the metrics of reconstruction and probe; say which coding's reconstruction it is."""
    codings = reconstruction["codings"]
    shared = coding if coding in codings else "onehot"
    if shared not in codings:
        raise StoreError(f"the reconstruction knows {sorted(codings)}, not {coding!r}; run `evaluate` again")
    parameters = probe["parameters"]
    entry = codings[shared]
    own = entry if shared == coding else {}
    l0 = {name: parameters[name] if name in parameters else own.get(name) for name in ("l0", "nominal_l0")}
    scores = {key: value for key, value in parameters.items() if _is_metric(key) and _is_scalar(value)}
    return {**{name: entry.get(name) for name in RECONSTRUCTION}, **l0, **scores}, shared


def _transposed(columns: Mapping[str, Sequence[Any]], what: str) -> list[dict[str, Any]]:
    """Turn columns into rows."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StoreError(f"the probe's {what} have columns of different lengths: {lengths}; run `probe` again")
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_metric(key: str) -> bool:
    """Tell a probe's metrics from its settings."""
    return key in ("l0", "nominal_l0") or key.startswith(METRIC_STEMS)


def _is_scalar(value: Any) -> bool:
    """Say whether a JSON value is neither list nor mapping."""
    return value is None or isinstance(value, str | bool | int | float)


def _is_number(value: Any) -> bool:
    """Say whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first(*documents: Document | None, key: str) -> Any:
    """Return the first document's value of a key that has one."""
    return next((document[key] for document in documents if document and key in document), None)


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _cell(value: Any) -> Any:
    """Write a value for CSV."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else value
