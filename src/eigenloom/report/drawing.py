"""How figures look, and how a figure becomes SVG: the same bytes every time, text as text, colours by name.

Standalone files carry plain colours on white. ``themed`` turns the same SVG into one for a page, whose colours are the
page's custom properties and whose ids cannot collide with another figure's.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

INK, MUTED, GRID, PAPER = "#1c2128", "#68707c", "#e2e5ea", "#ffffff"
SERIES = ("#2563ae", "#0e8a77", "#d0681c", "#8250b4", "#b8394e", "#857219", "#3f8fc4", "#5f6b2b")
"""Told apart in the usual colour deficiencies by lightness as well; a ninth series starts over."""
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES)}
FAMILY = "DejaVu Sans"
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eigenloom",
    "text.parse_math": False,
    "font.family": FAMILY,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}
WIDTH = 9.2
"""Inches; a point of this width is about one and a half pixels of the page."""
MEAN_CHARACTER = 5.2
"""Points of width, at the size of legends, rather too many."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style, whatever the user's matplotlib is set to."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        for name, value in STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        # Text stays text: the reader's browser has the glyphs of class names that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        yield


def panels(n: int, per_row: int, height: float = 2.9) -> tuple[Figure, list[Any]]:
    """Return a figure and ``n`` axes of equal size, ``per_row`` in a row."""
    columns = max(1, min(n, per_row))
    n_rows = -(-n // columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(WIDTH, 0.5 + height * n_rows), layout=layout)
    axes = figure.subplots(n_rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[n:]:
        spare.set_axis_off()
    return figure, axes[:n]


def colour(names: Sequence[str], name: str) -> str:
    """Return the colour of a name, which its position among all names decides."""
    return SERIES[names.index(name) % len(SERIES)]


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis 1, 10, 100 instead of powers of ten, which need mathematical type."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """Put one legend for all panels below them, each label once, in columns of two: a result and its floor."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        room = WIDTH * 72 / (MEAN_CHARACTER * (max(map(len, found)) + 7))
        columns = max(1, min(int(room), -(-len(found) // 2)))
        figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=columns, handlelength=2.4)


def empty(sentence: str) -> str:
    """Return a figure that says why there is nothing to draw."""
    with styled():
        figure = Figure(figsize=(WIDTH, 0.6))
        figure.text(0.01, 0.5, sentence, color=MUTED, va="center")
        return svg(figure, sentence)


def svg(figure: Figure, title: str) -> str:
    """Write a figure as standalone SVG: no date, no program version, no document type to be fetched."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<!DOCTYPE[^>]*>\s*", "", text)
    text = text.replace(f"'{FAMILY}'", FONTS.replace('"', "'"))
    label = escape(title, quote=True)
    text = re.sub(r"<svg ([^>]*)>", rf'<svg role="img" aria-label="{_literal(label)}" \1>', text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def themed(text: str, prefix: str) -> str:
    """Turn standalone SVG into SVG for a page: page colours, prefixed ids, width by the page."""
    text = re.sub(r"<\?xml[^>]*\?>\s*", "", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: f"var(--{NAMES[match[0]]})" if match[0] in NAMES else match[0], text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', text)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*" width="[^"]*"', r"\1\2", text)


def _literal(text: str) -> str:
    """Keep a text whole in the replacement of a regular expression."""
    return text.replace("\\", "\\\\")
