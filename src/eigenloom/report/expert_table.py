"""The table of compressed experts: every bank, baseline and control at every size, mean and interval over trainings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from eigenloom.errors import StoreError
from eigenloom.report.scores import csv_text
from eigenloom.store.atomic import read_json

Document = Mapping[str, Any]
RESULTS_FORMAT, RESULTS_VERSION = "eigenloom.experts", 1
FORMAT, VERSION = "eigenloom.expert_table", 1
MEASURES = ("relative_error", "accuracy", "nll", "kl")
BASELINES = "baselines"
BANK, BASELINE, CONTROL = "bank", "baseline", "control"
LEVEL = 0.95
"""Of the intervals, by Student's t over trainings."""


def read_results(path: str | Path) -> Document:
    """Read one ``metrics.json`` of banks or baselines.

    Raises:
        StoreError: it is missing, foreign or of another version.
    """
    document = read_json(path)
    known = RESULTS_FORMAT, RESULTS_VERSION
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != known:
        raise StoreError(f"{path}: holds no results of experts; delete it and run the rule that makes it")
    return document


def read_table(path: str | Path) -> Document:
    """Read ``experts.json``, with its own path under ``path``.

    Raises:
        StoreError: it is missing, foreign or of another version.
    """
    document = read_json(path)
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"{path}: is no table of experts; delete it and run `tabulate_experts` again")
    return {**document, "path": Path(path).as_posix()}


def tabulate(documents: Sequence[Document]) -> dict[str, Any]:
    """Average rows over trainings.

    Args:
        documents: results, as ``read_results`` returns.

    Returns:
        ``rows``, by network, size, role and method: role (``bank``, ``baseline``, ``control``), share of parameters,
        number of trainings, mean and half-width of the interval of each measure (``_half``; None for one training);
        ``seedings``: network -> bank -> method and counted operations by size; ``maps``: network -> bank -> size ->
        family -> mean error of every expert.
    """
    rows: list[dict[str, Any]] = []
    seedings: dict[str, dict[str, Any]] = {}
    maps: dict[str, dict[str, Any]] = {}
    for document in documents:
        moe, bank = document["moe"], document["bank"]
        groups: dict[tuple[str, str], list[Document]] = {}
        for row in document["rows"]:
            groups.setdefault((row["method"], row["size"]), []).append(row)
        for (method, size), found in groups.items():
            role = BANK if bank != BASELINES else BASELINE if size else CONTROL
            head = {"moe": moe, "size": size, "role": role, "method": method}
            facts = {"parameters": fmean(row["parameters"] for row in found), "n_trainings": len(found)}
            rows.append({**head, **facts, **_measured(found)})
            if role == BANK:
                maps.setdefault(moe, {}).setdefault(bank, {})[size] = _map(found)
        if bank != BASELINES:
            seedings.setdefault(moe, {})[bank] = document["seeding"]
    order = {BANK: 0, BASELINE: 1, CONTROL: 2}
    rows.sort(key=lambda row: (row["moe"], not row["size"], row["size"], order[row["role"]], row["method"]))
    return {"format": FORMAT, "version": VERSION, "rows": rows, "seedings": seedings, "maps": maps, "files": {}}


def table_csv(table: Document) -> str:
    """Write the rows as CSV."""
    return csv_text(table["rows"])


def _measured(rows: Sequence[Document]) -> dict[str, float | None]:
    """Return mean and half-width of every measure."""
    found: dict[str, float | None] = {}
    for measure in MEASURES:
        values = [row[measure] for row in rows]
        found[measure] = fmean(values)
        n = len(values)
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) if n > 1 else 0.0
        found[f"{measure}_half"] = quantile * stdev(values) / n**0.5 if n > 1 else None
    return found


def _map(rows: Iterable[Document]) -> dict[str, list[float]]:
    """Average the errors of every expert."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        for family, errors in row["per_expert"].items():
            found.setdefault(family, []).append(errors)
    return {family: [round(fmean(own), 6) for own in zip(*many, strict=True)] for family, many in found.items()}
