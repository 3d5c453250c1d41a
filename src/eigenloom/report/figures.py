"""The figures: each takes the evidence and returns standalone SVG, or a sentence as SVG where there is nothing to show.

A basis has one colour everywhere. Results are solid and filled; their random floors, of the same colour, are dashed and
hollow; what a constant score reaches is grey.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from eigenloom.report.clusters import in_even_shares, sizes
from eigenloom.report.drawing import (
    FLOOR_LABEL,
    GRID,
    INK,
    MUTED,
    PAPER,
    colour,
    empty,
    legend,
    panels,
    plain_log,
    styled,
    svg,
)
from eigenloom.report.evidence import Evidence
from eigenloom.report.findings import chosen_row, leading_codings
from eigenloom.report.races import draw_races
from eigenloom.report.tables import FLOOR_SUFFIX

Document = Mapping[str, Any]
FLOOR_STYLE: dict[str, Any] = {"linestyle": (0, (3, 2)), "markerfacecolor": PAPER, "linewidth": 1.1, "zorder": 2}
RESULT_STYLE: dict[str, Any] = {"zorder": 3}
LEVEL_STYLE: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "zorder": 1}
MAX_CLASSES = 40
LONGEST_NAME = 22


def nmse_against_l0(evidence: Evidence) -> str:
    """Reconstruction error against the number of active features: a panel per source and layer."""
    places = sorted({place[:2] for place in evidence.reconstructions})
    if not places:
        return empty("No reconstruction was measured in this run.")
    with styled():
        figure, axes = panels(len(places), 3)
        for ax, (source, layer) in zip(axes, places, strict=True):
            for basis in evidence.bases:
                for name in (basis, basis + FLOOR_SUFFIX):
                    points = _curve(evidence.reconstructions.get((source, layer, name)))
                    style = _style(basis, name)
                    marker = "o" if len(points) > 1 else "s"
                    if points:
                        ax.plot(*zip(*points, strict=True), color=colour(evidence.bases, basis), marker=marker, **style)
            ax.axhline(1, **LEVEL_STYLE, label="predict the mean")
            ax.set(
                title=_titled(evidence, source, layer),
                xlabel="active features per row (L0)",
                ylabel="NMSE",
                xscale="log",
            )
            ax.set_ylim(0, None)
            plain_log(ax.xaxis)
        legend(figure, axes)
        return svg(figure, "NMSE against L0")


def layer_curves(evidence: Evidence) -> str:
    """Probe R, mAP and NMSE by layer, for the coding of each basis that the training loss prefers."""
    sources = [source for source in evidence.sources if leading_codings(evidence, source)]
    if not sources:
        return empty("Nothing was probed in this run.")
    wanted = (("probe_r", "Probe R"), ("map", "mAP"), ("nmse", "NMSE"))
    with styled():
        figure, axes = panels(3 * len(sources), 3, height=2.6)
        for i, source in enumerate(sources):
            layers = evidence.layers(source)
            for ax, (metric, label) in zip(axes[3 * i : 3 * i + 3], wanted, strict=True):
                for basis, rows in leading_codings(evidence, source).items():
                    line = {"color": colour(evidence.bases, basis), "marker": "o"}
                    floors = [evidence.floor(row) or {} for row in rows]
                    shown = f"{basis} {rows[0]['coding']}"
                    _by_layer(ax, layers, rows, rows, metric, {**line, **RESULT_STYLE, "label": shown})
                    _by_layer(
                        ax, layers, rows, floors, metric, {**line, **FLOOR_STYLE, "label": f"{shown}{FLOOR_LABEL}"}
                    )
                constants = [evidence.constant(row) or {} for row in evidence.results if row["source"] == source]
                level = next((row[metric] for row in constants if row.get(metric) is not None), None)
                if level is not None:
                    ax.axhline(level, **LEVEL_STYLE, label="constant score")
                ax.set(
                    title=_titled(evidence, source, label), xticks=range(len(layers)), xlim=(-0.3, len(layers) - 0.7)
                )
                ax.set_xticklabels(layers)
                ax.grid(axis="x", visible=False)
        legend(figure, axes)
        return svg(figure, "Probe R, mAP and NMSE by layer")


def utilisation(evidence: Evidence) -> str:
    """How evenly rows spread over clusters: counts in falling order, in units of an even share."""
    sized = {place: sizes(document) for place, document in sorted(evidence.reconstructions.items())}
    places = sorted({place[:2] for place, found in sized.items() if found})
    if not places:
        return empty("No basis of this run has clusters to count.")
    with styled():
        figure, axes = panels(len(places), 3)
        for ax, (source, layer) in zip(axes, places, strict=True):
            for basis in evidence.bases:
                for name in (basis, basis + FLOOR_SUFFIX):
                    x, y = in_even_shares(sized.get((source, layer, name), []))
                    if x:
                        ax.plot(x, y, color=colour(evidence.bases, basis), **_style(basis, name))
            ax.axhline(1, **LEVEL_STYLE, label="even use")
            ax.set(
                title=_titled(evidence, source, layer),
                xlabel="clusters by falling size, %",
                yscale="log",
                xlim=(0, 100),
            )
            ax.set_ylabel("rows, in even shares")
            plain_log(ax.yaxis)
        legend(figure, axes)
        return svg(figure, "Utilisation of clusters")


def histories(evidence: Evidence) -> str:
    """What the fits recorded: k-means by pass, spectra of projections, training of the networks."""
    drawn: list[tuple[str, str, str, list[tuple[str, str, list[Any], list[float]]]]] = []
    titles = {
        "inertia_history": ("k-means inertia (last = 1)", "pass over the rows"),
        "utilisation_history": ("k-means utilisation", "pass over the rows"),
        "lr_history": ("k-means learning rate", "pass over the rows"),
    }
    fits = [(p, fit) for p, fit in sorted(evidence.fits.items()) if p[2] in evidence.bases]
    for source in sorted({place[0] for place, _ in fits}):
        own = [(place, fit) for place, fit in fits if place[0] == source]
        for name, (title, x_label) in titles.items():
            lines = [(p[2], p[1], *_steps(name, fit.histories[name])) for p, fit in own if name in fit.histories]
            if any(set(line[3]) - TRIVIAL[name] for line in lines):
                drawn.append((_titled(evidence, source, title), x_label, "linear", lines))
        lines = [(p[2], p[1], *_spectrum(fit)) for p, fit in own if "explained_variance" in fit.histories]
        if lines:
            drawn.append((_titled(evidence, source, "variance left unexplained"), "components kept", "log", lines))
    for source, model in sorted(evidence.models.items()):
        steps = model.history.get("step", [])
        for name in (name for name in model.history if name not in ("step", "lr")):
            points = [(x, y) for x, y in zip(steps, model.history[name], strict=True) if not math.isnan(y)]
            if points:
                line = ("", "", [x for x, _ in points], [y for _, y in points])
                drawn.append((_titled(evidence, source, f"network, {name}"), "training step", "linear", [line]))
    if not drawn:
        return empty("No fit of this run kept a history.")
    with styled():
        figure, axes = panels(len(drawn), 2 if len(drawn) in (2, 4) else 3, height=2.3)
        for ax, (title, x_label, scale, lines) in zip(axes, drawn, strict=True):
            layers = sorted({layer for _, layer, _, _ in lines})
            for basis, layer, x, y in lines:
                color = colour(evidence.bases, basis) if basis else INK
                dashes = DASHES[layers.index(layer) % len(DASHES)]
                ax.plot(x, y, color=color, linestyle=dashes, label=f"{basis} {layer}".strip() or None)
            ax.set(title=title, xlabel=x_label, yscale=scale)
            ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            if scale == "log":
                plain_log(ax.yaxis)
        legend(figure, axes)
        return svg(figure, "Histories of the fits")


def optimizers(evidence: Evidence) -> str:
    """Races of optimizers: loss against steps and against CPU seconds."""
    return draw_races(evidence.races)


TRIVIAL: dict[str, set[float]] = {"inertia_history": {1.0}, "utilisation_history": set(), "lr_history": {0.0, 1.0}}
"""Values a history of which tells nothing: full Lloyd passes move centres all the way or not at all."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))


def class_precision(evidence: Evidence) -> str:
    """Average precision of each class's best feature, from its random floor to the basis's own."""
    tables: dict[str, list[tuple[Document, list[dict[str, Any]]]]] = {}
    for source in evidence.sources:
        for row in map(chosen_row, leading_codings(evidence, source).values()):
            if classes := [c for c in evidence.classes.get(str(row["path"]), []) if c.get("ap") is not None]:
                tables.setdefault(source, []).append((row, classes))
    if not tables:
        return empty("No class was probed in this run, or only means over seeds are known.")
    n = max(min(MAX_CLASSES, len(classes)) for pairs in tables.values() for _, classes in pairs)
    with styled():
        per_class = 0.13 + 0.1 * max(len(pairs) for pairs in tables.values())
        figure, axes = panels(len(tables), 2, height=0.8 + per_class * max(n, 2))
        for ax, (source, pairs) in zip(axes, tables.items(), strict=True):
            _class_panel(ax, evidence, pairs)
            ax.set_title(source)
        legend(figure, axes)
        return svg(figure, "Average precision by class")


def _class_panel(ax: Any, evidence: Evidence, pairs: Sequence[tuple[Document, list[dict[str, Any]]]]) -> None:
    """Draw one line per class and basis: hollow where random features get, filled where the basis gets."""
    shown = sorted(pairs[0][1], key=lambda row: (-max(_aps(pairs, row["id"])), row["id"]))[:MAX_CLASSES]
    step = 0.72 / len(pairs)
    for place, shown_class in enumerate(shown):
        for i, (row, classes) in enumerate(pairs):
            found = next((c for c in classes if c["id"] == shown_class["id"]), {})
            color, y = colour(evidence.bases, row["basis"]), place + (i - (len(pairs) - 1) / 2) * step
            ap, random = found.get("ap"), found.get("ap_random")
            label = f"{row['basis']} {row['coding']}, {row['layer']}"
            if ap is not None:
                ax.plot([ap], [y], color=color, marker="o", label=label if place == 0 else None, **RESULT_STYLE)
            if ap is not None and random is not None:
                ax.plot([random, ap], [y, y], color=color, linewidth=1.4, zorder=1.5)
                hollow = f"{label}{FLOOR_LABEL}" if place == 0 else None
                ax.plot([random], [y], color=color, marker="o", markersize=4, label=hollow, **FLOOR_STYLE)
        prevalence = shown_class.get("prevalence_val")
        if prevalence is not None:
            tick = "constant score (prevalence)" if place == 0 else None
            ax.plot([prevalence] * 2, [place - 0.42, place + 0.42], color=MUTED, linewidth=1.6, label=tick)
        ax.axhline(place + 0.5, color=GRID, linewidth=0.6)
    ax.set(xlim=(0, 1.02), ylim=(len(shown) - 0.5, -0.5), xlabel="average precision on probe_val")
    ax.set_yticks(range(len(shown)), [_short(str(row["class"])) for row in shown])
    ax.grid(axis="y", visible=False)


def _aps(pairs: Sequence[tuple[Document, list[dict[str, Any]]]], class_id: Any) -> list[float]:
    """List the average precisions that the methods reach on one class."""
    return [c["ap"] for _, classes in pairs for c in classes if c["id"] == class_id]


def _by_layer(
    ax: Any, layers: Sequence[str], rows: Sequence[Document], values: Sequence[Document], metric: str, style: Document
) -> None:
    """Draw one metric of some rows over their layers."""
    points = [
        (layers.index(row["layer"]), value[metric])
        for row, value in zip(rows, values, strict=True)
        if value.get(metric) is not None
    ]
    if points:
        ax.plot(*zip(*sorted(points), strict=True), **style)


def _curve(document: Document | None) -> list[tuple[float, float]]:
    """List (L0, NMSE) of every coding of a reconstruction, by L0."""
    entries = (document or {}).get("codings", {}).values()
    return sorted((e["l0"], e["nmse"]) for e in entries if e["l0"] > 0)


def _style(basis: str, name: str) -> dict[str, Any]:
    """Return how a basis or its floor is drawn."""
    return {**RESULT_STYLE, "label": basis} if name == basis else {**FLOOR_STYLE, "label": f"{basis}{FLOOR_LABEL}"}


def _steps(name: str, recorded: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Number the passes; inertia is shown relative to where it ended, learning rates by their median over centres."""
    values = [value[1] if isinstance(value, list) else value for value in recorded]
    scale = values[-1] if name == "inertia_history" and values and values[-1] else 1.0
    return list(range(1, len(values) + 1)), [value / scale for value in values]


def _spectrum(fit: Any) -> tuple[list[Any], list[float]]:
    """Return the share of variance left after each number of components, while more than rounding is left."""
    variances = fit.histories["explained_variance"]
    total = fit.parameters.get("total_variance") or sum(variances)
    left = [1 - sum(variances[: i + 1]) / total for i in range(len(variances))]
    kept = [(i + 1, share) for i, share in enumerate(left) if share > 1e-6]
    return [i for i, _ in kept], [share for _, share in kept]


def _titled(evidence: Evidence, source: str, title: str) -> str:
    """Name the source in a panel's title, where there are several."""
    return f"{source}: {title}" if len(evidence.sources) > 1 else title


def _short(name: str) -> str:
    """Cut a long name."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
