"""The map of the probes: average precision of the best feature of each class by method, beside random features."""

import math
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from eigenloom.report.drawing import INK, PAPER, SERIES, empty, panels, styled, svg
from eigenloom.report.evidence import Evidence

MAX_CLASSES = 40
SHADES = 48
"""Above 50 matplotlib draws a colour bar as pixels."""
WRITTEN = 12
"""Up to this many classes the numbers stand in the cells."""


LEVEL = 70
"""Up to this many characters together the names of classes stand level."""


def probe_map(evidence: Evidence) -> str:
    """Draw a panel per source: methods at their best layer down, each followed by its random floor; classes across."""
    shade = LinearSegmentedColormap.from_list("precision", [PAPER, SERIES[1]], N=SHADES)
    grids = {source: grid for source in evidence.sources if (grid := _grid(evidence, source))[1]}
    if not grids:
        return empty("No class was probed in this run, or only means over seeds are known.")
    n_lines = max(len(lines) for _, lines in grids.values())
    with styled():
        figure, axes = panels(len(grids), 1, height=0.6 + 0.17 * n_lines)
        for ax, (source, (classes, lines)) in zip(axes, grids.items(), strict=True):
            values = [[float("nan") if value is None else value for value in line] for _, line in lines]
            mesh = ax.pcolormesh(values, cmap=shade, vmin=0, vmax=1, edgecolors=PAPER, linewidth=0.4)
            ax.set_yticks([i + 0.5 for i in range(len(lines))], [name for name, _ in lines])
            turn = {"rotation": 35, "ha": "right"} if sum(map(len, classes)) > LEVEL else {}
            ax.set_xticks([i + 0.5 for i in range(len(classes))], classes, **turn)
            ax.invert_yaxis()
            ax.grid(visible=False)
            ax.set_title(source)
            if len(classes) <= WRITTEN:
                _write(ax, values)
            figure.colorbar(mesh, ax=ax, label="average precision", shrink=0.9)
        return svg(figure, "Average precision of every method for every class")


def _grid(evidence: Evidence, source: str) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Return the names of the classes, and the lines of a source: name, one value per class."""
    chosen = [row for row in evidence.results if row["source"] == source and row["chosen"] and row.get("path")]
    tables = [(row, {c["id"]: c for c in evidence.classes.get(str(row["path"]), [])}) for row in chosen]
    seen = {number: c["class"] for _, table in tables for number, c in table.items() if c.get("ap") is not None}
    numbers = sorted(seen)[:MAX_CLASSES]
    lines = []
    for row, table in tables:
        name = f"{row['basis']} {row['coding']}"
        lines.append((name, [table.get(number, {}).get("ap") for number in numbers]))
        if any(table.get(number, {}).get("ap_random") is not None for number in numbers):
            lines.append(("random", [table.get(number, {}).get("ap_random") for number in numbers]))
    return [_short(str(seen[number])) for number in numbers], lines if numbers else []


def _write(ax: Any, values: list[list[float]]) -> None:
    """Put the numbers into the cells."""
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                ink = PAPER if value > 0.6 else INK
                ax.text(x + 0.5, y + 0.53, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=ink)


def _short(name: str) -> str:
    """Keep a class name within its column."""
    return name if len(name) <= 18 else f"{name[:17]}…"
