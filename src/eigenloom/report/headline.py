"""The table to look at first: every method at its best layer beside its floors, published numbers marked as such."""

from collections.abc import Mapping
from typing import Any

from eigenloom.report.evidence import Evidence
from eigenloom.report.tables import METRICS, label, number

Document = Mapping[str, Any]
SHOWN = tuple(metric for metric in METRICS if metric.key != "probe_r_train")
PUBLISHED = (
    ("k-means, 16384", (0.619, 1, 0.001, 0.031, 0.795, 0.026)),
    ("PCA", (0.352, 256, 0.259, 0.093, 0.612, 0.079)),
    ("sparse autoencoder", (0.460, 64.1, 0.425, 0.313, 0.748, 0.417)),
    ("Matryoshka sparse autoencoder", (0.702, 6.5, 0.402, 0.319, 0.808, 0.450)),
)
"""arXiv 2511.17735: DINOv3 ViT-L/16, last layer; NMSE on ImageNet-1K, the rest on ADE20K."""


def headline(evidence: Evidence, link: Any) -> dict[str, Any]:
    """Return labels and rows: results at the layer that probe_train chose with their floors, then published rows."""
    chosen = [row for row in evidence.results if row["chosen"]]
    rows = [_row(row, evidence.floor(row) or {}, link, "result") for row in chosen]
    constants = {row["source"]: constant for row in chosen if (constant := evidence.constant(row))}
    rows += [
        _row({**constant, "layer": "", "basis": "constant score"}, {}, link, "floor") for constant in constants.values()
    ]
    activations = any(source not in evidence.spectra for source in evidence.sources)
    rows += [
        {
            "words": ["published", "last", name, ""],
            "cells": [_cell(m.key, value) for m, value in zip(SHOWN, values, strict=True)],
            "role": "published",
            "href": "",
        }
        for name, values in PUBLISHED
        if activations
    ]
    return {"labels": [label(metric, evidence.rows) for metric in SHOWN], "rows": rows}


def _row(row: Document, floor: Document, link: Any, role: str) -> dict[str, Any]:
    """Arrange one row."""
    return {
        "words": [row["source"], row["layer"], row["basis"], row["coding"]],
        "cells": [_cell(m.key, row.get(m.key), floor.get(m.key)) for m in SHOWN],
        "role": role,
        "href": link(row["path"]) if row.get("path") else "",
    }


def _cell(key: str, value: Any, floor: Any = None) -> dict[str, str]:
    """Show a number and its floor below, and say what to sort by; L0 needs no third decimal."""
    decimals = 1 if key == "l0" else 3
    sorted_by = f"{value!r}" if isinstance(value, int | float) else ""
    return {"text": number(value, decimals) or "–", "floor": number(floor, decimals), "value": sorted_by}
