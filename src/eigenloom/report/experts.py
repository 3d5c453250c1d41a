"""Compressed experts in the report: figures, sentences and facts about banks, beside baselines at equal parameters.

Which bank is best is decided by the error of the weights, for which no test image is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from eigenloom.report.drawing import MUTED, PAPER, SERIES, colour, empty, legend, panels, plain_log, styled, svg
from eigenloom.report.evidence import Evidence
from eigenloom.report.expert_table import BANK, BASELINE, CONTROL
from eigenloom.report.findings import Finding, compare
from eigenloom.report.tables import number

Document = Mapping[str, Any]
NOTHING = "No experts were compressed in this run."
EQUAL = "truncated SVD"
"""The baseline that a bank has to beat: truncated SVD of every expert, at the bank's number of parameters."""
DENSE = "dense"
SHADES = 40
"""Of the map; from 50 on matplotlib would draw the scale beside it as pixels."""
DROP = 0.01
"""Accuracy that a bank may cost."""
DASHES: tuple[Any, ...] = ((0, (3, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)), (0, (6, 2)), (0, (2, 3)))
PANELS = (
    ("relative_error", "relative error of the weights"), ("accuracy", "accuracy on test images"),
    ("kl", "KL to the network as trained, nats"),
)  # fmt: skip


def expert_curves(evidence: Evidence) -> str:
    """Error, accuracy and divergence against parameters, and error against the cost of seeding."""
    moes = _networks(evidence)
    if not moes:
        return empty(NOTHING)
    with styled():
        figure, axes = panels(4 * len(moes), 2)
        for i, (moe, table) in enumerate(moes.items()):
            rows = [row for row in table["rows"] if row["moe"] == moe]
            own = axes[4 * i : 4 * i + 4]
            for ax, (measure, label) in zip(own, PANELS, strict=False):
                _lines(ax, rows, measure)
                ax.set(title=moe, xlabel="parameters, relative to the experts", ylabel=label)
            dense = next((row for row in rows if row["method"] == DENSE), None)
            if dense:
                own[1].axhline(dense["accuracy"], color=MUTED, linewidth=0.8, label="as trained")
            _costs(own[3], rows, table["seedings"][moe])
            own[3].set(title=moe, xlabel="cost of the seeding, million operations", ylabel=PANELS[0][1])
        legend(figure, axes)
        return svg(figure, "Experts compressed by banks")


def expert_map(evidence: Evidence) -> str:
    """The error of every expert under the bank of least error, at every size."""
    moes = _networks(evidence)
    if not moes:
        return empty(NOTHING)
    shade = LinearSegmentedColormap.from_list("errors", [PAPER, SERIES[0]], N=SHADES)
    with styled():
        figure, axes = panels(len(moes), 1, height=2.2)
        for ax, (moe, table) in zip(axes, moes.items(), strict=True):
            names, lines = [], []
            for size, rows in _sizes(table, moe).items():
                best = _best(rows)
                for family, errors in table["maps"][moe][best["method"]][size].items():
                    names.append(f"{size}, {family}: {best['method']}")
                    lines.append(errors)
            mesh = ax.pcolormesh(lines, cmap=shade, vmin=0, vmax=1, edgecolors=PAPER, linewidth=0.4)
            ax.set_yticks([i + 0.5 for i in range(len(names))], names)
            ax.invert_yaxis()
            ax.grid(visible=False)
            ax.set(title=moe, xlabel="expert, in the order of layers")
            figure.colorbar(mesh, ax=ax, label="relative error", shrink=0.9)
        return svg(figure, "Relative error of every expert")


def expert_findings(evidence: Evidence) -> Iterator[Finding]:
    """State what compression costs, beside the network as trained and SVD at equal parameters."""
    for moe, table in _networks(evidence).items():
        paths = (table["path"],)
        dense = next((row for row in table["rows"] if row["moe"] == moe and row["method"] == DENSE), None)
        for size, rows in _sizes(table, moe).items():
            equal = next((row for row in table["rows"] if _is(row, moe, size, EQUAL)), None)
            if dense and equal:
                text, tone = _kept(_best(rows), equal, dense)
                yield Finding(f"Experts, {moe}: {text}", tone, paths)
        yield Finding(f"Experts, {moe}: {_spread(table, moe)}", "plain", paths)


def expert_facts(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the table of banks, baselines and controls; none where no experts were compressed."""
    columns = ["network", "size", "what", "parameters", "error", "accuracy", "NLL", "KL", "trainings"]
    rows = [
        [
            moe,
            row["size"] or "–",
            row["method"] if row["role"] == BANK else f"{row['method']} ({row['role']})",
            number(row["parameters"]),
            *(_interval(row, measure) for measure in ("relative_error", "accuracy", "nll", "kl")),
            str(row["n_trainings"]),
        ]
        for moe, table in _networks(evidence).items()
        for row in table["rows"]
        if row["moe"] == moe
    ]
    return [{"title": "Experts", "columns": columns, "rows": rows}] if rows else []


def _networks(evidence: Evidence) -> dict[str, Document]:
    """Return network -> the table it is in."""
    return {moe: table for table in evidence.experts for moe in sorted({row["moe"] for row in table["rows"]})}


def _sizes(table: Document, moe: str) -> dict[str, list[Document]]:
    """Return size -> rows of banks, in the order of their parameters."""
    found: dict[str, list[Document]] = {}
    for row in sorted(table["rows"], key=lambda row: row["parameters"]):
        if row["moe"] == moe and row["role"] == BANK:
            found.setdefault(row["size"], []).append(row)
    return found


def _best(rows: Sequence[Document]) -> Document:
    """Return the bank of least error, the first by name of equals."""
    return min(rows, key=lambda row: (round(row["relative_error"], 4), row["method"]))


def _is(row: Document, moe: str, size: str, method: str) -> bool:
    return (row["moe"], row["size"], row["method"], row["role"]) == (moe, size, method, BASELINE)


def _kept(bank: Document, equal: Document, dense: Document) -> tuple[str, str]:
    """Say what the best bank of a size keeps."""
    drop = dense["accuracy"] - bank["accuracy"]
    better = [compare(bank[key], equal[key]) < 0 for key in ("relative_error", "nll", "kl")]
    kept = compare(drop, DROP) <= 0
    even = [word for word, less in zip(("error", "NLL", "KL"), better, strict=True) if not less]
    verdict = (
        f" SVD is as good in {', '.join(even)}." if even else "" if kept else " It costs more than a point of accuracy."
    )
    text = (
        f"at {number(bank['parameters'])} of the parameters {bank['method']} has the least error,"
        f" {number(bank['relative_error'])}, SVD of each expert {number(equal['relative_error'])}. Accuracy"
        f" {number(bank['accuracy'])} (SVD {number(equal['accuracy'])}, as trained {number(dense['accuracy'])}), NLL"
        f" {number(bank['nll'])} ({number(equal['nll'])}, {number(dense['nll'])}), KL to the trained network"
        f" {number(bank['kl'])} ({number(equal['kl'])}); means of {bank['n_trainings']} trainings.{verdict}"
    )
    return text, "good" if kept and all(better) else "warning"


def _spread(table: Document, moe: str) -> str:
    """Say how far seedings end apart."""
    parts = []
    for rows in _sizes(table, moe).values():
        best, worst = _best(rows), max(rows, key=lambda row: row["relative_error"])
        low, high = number(best["relative_error"]), number(worst["relative_error"])
        parts.append(f"from {low} ({best['method']}) to {high} ({worst['method']}) at {number(best['parameters'])}")
    return f"errors of the banks, by seeding: {'; '.join(parts)}."


def _lines(ax: Any, rows: Sequence[Document], measure: str) -> None:
    """Draw one measure of every method against parameters, with its interval."""
    methods = sorted({row["method"] for row in rows if row["role"] == BANK})
    others = sorted({row["method"] for row in rows if row["role"] == BASELINE})
    for role, method in (*((BASELINE, name) for name in others), *((BANK, name) for name in methods)):
        own = [row for row in rows if (row["role"], row["method"]) == (role, method)]
        own.sort(key=lambda row: row["parameters"])
        x, y = ([row[key] for row in own] for key in ("parameters", measure))
        if role == BASELINE:
            style = DASHES[others.index(method) % len(DASHES)]
            ax.plot(x, y, color=MUTED, linestyle=style, marker="o", markerfacecolor=PAPER, markersize=3.5, label=method)
            continue
        halves = [row[f"{measure}_half"] or 0.0 for row in own]
        hue = colour(methods, method)
        ax.errorbar(x, y, yerr=halves, color=hue, marker="o", elinewidth=0.8, label=method, zorder=3)


def _costs(ax: Any, rows: Sequence[Document], seedings: Document) -> None:
    """Draw the final error of every bank against the counted cost of its seeding."""
    methods = sorted({row["method"] for row in rows if row["role"] == BANK})
    for method in methods:
        own = [row for row in rows if (row["role"], row["method"]) == (BANK, method)]
        x = [seedings[method]["operations"][row["size"]] / 1e6 for row in own]
        y = [row["relative_error"] for row in own]
        ax.plot(x, y, color=colour(methods, method), linestyle="none", marker="o", label=method, zorder=3)
    ax.set_xscale("log")
    plain_log(ax.xaxis)


def _interval(row: Document, measure: str) -> str:
    """Write mean and half-width."""
    if measure == "relative_error" and row["role"] == CONTROL and row["method"] == DENSE:
        return "0"
    half = row[f"{measure}_half"]
    return f"{number(row[measure])} ± {number(half)}" if half is not None else number(row[measure])
