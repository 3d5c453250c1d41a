"""The study of warm attention in the report: every arm, every seed, and no sentence beyond the rule of claims."""

from collections.abc import Iterator, Mapping
from typing import Any

from eigenloom.evaluation.arms import LEAST_SEEDS
from eigenloom.evaluation.arms import NOTHING as NO_BENEFIT
from eigenloom.report.drawing import MUTED, colour, empty, legend, panels, styled, svg
from eigenloom.report.evidence import Evidence
from eigenloom.report.findings import Finding
from eigenloom.report.tables import number

Document = Mapping[str, Any]
NOTHING = "No arms of attention were trained in this run."


def attention_curves(evidence: Evidence) -> str:
    """NMSE by epoch, by number of training spectra and by noise, and paired differences to the `small` control."""
    if not evidence.arms:
        return empty(NOTHING)
    with styled():
        counts = {source: len(table["curves"]) + 3 for source, table in evidence.arms.items()}
        figure, axes = panels(sum(counts.values()), 3)
        place = 0
        for source, table in sorted(evidence.arms.items()):
            own = axes[place : place + counts[source]]
            place += counts[source]
            _epochs(own[:-3], source, table)
            _sizes(own[-3], source, table)
            _noises(own[-2], source, table)
            _differences(own[-1], source, table)
        legend(figure, axes)
        return svg(figure, "Attention that starts from kernel PCA, beside its controls")


def attention_findings(evidence: Evidence) -> Iterator[Finding]:
    """Say what the rule of claims allows: one sentence for each condition that gains, one for all others."""
    for source, table in sorted(evidence.arms.items()):
        paths = (f"results/{source}/attention/table.json",)
        rest = [condition for condition in table["conditions"] if not condition["helps"]]
        for c in table["conditions"]:
            if c["helps"]:
                where = f"{c['n_train']} training spectra, noise {c['noise']:g} times theirs"
                yield Finding(f"Warm attention, {source}, {where}: {c['claim']}.", "good", paths)
        if rest:
            yield Finding(f"Warm attention, {source}: {_no_gain(rest, table)}.", "plain", paths)


def _no_gain(conditions: list[Document], table: Document) -> str:
    """Say in which conditions nothing is claimed, why, and how large the differences are."""
    sizes, noises = ({c[key] for c in conditions} for key in ("n_train", "noise"))
    n_seeds = len(table["seeds"])
    if n_seeds < LEAST_SEEDS:
        verdict = f"nothing is claimed from {n_seeds} seed{'s' * (n_seeds > 1)}, fewer than {LEAST_SEEDS}"
    else:
        verdict = NO_BENEFIT
    ranges = []
    for control in ("small", "linear-pca"):
        means = [c["paired"]["kpca-warm"][control]["mean"] for c in conditions]
        ranges.append(f"{min(means):+.4f} to {max(means):+.4f} against {control}")
    return (
        f"at {_listed(sizes)} training spectra and noise {_listed(noises)} times theirs, {verdict};"
        f" mean differences in NMSE are {' and '.join(ranges)}"
    )


def _listed(values: set[Any]) -> str:
    """List numbers in words."""
    words = [f"{value:g}" for value in sorted(values)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def attention_facts(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the table of final NMSE with half the width of its interval, for each study."""
    tables = []
    for source, table in sorted(evidence.arms.items()):
        columns = ["training spectra", "noise", *table["arms"], "kpca-warm minus small [95 %]"]
        rows = []
        for c in table["conditions"]:
            cells = [_plus_minus(c["arms"][arm]) for arm in table["arms"]]
            difference = c["paired"]["small"]["kpca-warm"]
            low, high = difference["interval"] or (None, None)
            shown = f"{difference['mean']:+.4f}" + ("" if low is None else f" [{low:+.4f}, {high:+.4f}]")
            rows.append([str(c["n_train"]), f"{c['noise']:g}x", *cells, shown])
        starts = [f"{s['entropy']:.3f} / {s['logit_std']:.3f}" for s in (table["starts"][arm] for arm in table["arms"])]
        rows.append(["start", "entropy / logit std", *starts, ""])
        each = f"{len(table['seeds'])} seeds, {table['parameters']:,} parameters each"
        title = f"Warm attention: {source}, final NMSE, {each}"
        tables.append({"title": title, "columns": columns, "rows": rows})
    return tables


CAPTION = (
    "Small transformers estimate labels from spectra; arms differ in what queries and keys of the first block are made"
    " of and where they start, in nothing else. NMSE, mean over labels, on unseen spectra: after each epoch (thick: the"
    " mean of all seeds, thin: each), by number of training spectra, by noise that training never saw; paired"
    " differences to small, a near-uniform start without kernel PCA, with 95 % intervals. Fewer than"
    f" {LEAST_SEEDS} seeds claim nothing; otherwise kernel PCA helps where its intervals exclude zero against small and"
    f" linear-pca, and else there is {NO_BENEFIT}. Features of raw patches know no position, while tokens, which cold"
    " and small use, do."
)


def _epochs(axes: list[Any], source: str, table: Document) -> None:
    """Draw validation NMSE by epoch, one panel per number of training spectra, axes shared."""
    top = max(
        value for arms in table["curves"].values() for seeds in arms.values() for curve in seeds for value in curve
    )
    low = min(
        value for arms in table["curves"].values() for seeds in arms.values() for curve in seeds for value in curve
    )
    for ax, (n_train, arms) in zip(axes, table["curves"].items(), strict=True):
        for arm, seeds in arms.items():
            epochs, color = range(1, len(seeds[0]) + 1), colour(table["arms"], arm)
            for curve in seeds:
                ax.plot(epochs, curve, color=color, linewidth=0.5, alpha=0.5)
            means = [sum(values) / len(values) for values in zip(*seeds, strict=True)]
            ax.plot(epochs, means, color=color, label=arm, zorder=3)
        ax.set(title=f"{source}: {n_train} training spectra", xlabel="epoch", ylabel="validation NMSE")
        ax.set_ylim(0.95 * low, 1.02 * top)


def _sizes(ax: Any, source: str, table: Document) -> None:
    """Draw final NMSE by number of training spectra, at the training noise."""
    least = min(c["noise"] for c in table["conditions"])
    chosen = [c for c in table["conditions"] if c["noise"] == least]
    for arm in table["arms"]:
        _line(ax, table, arm, [(c["n_train"], c["arms"][arm]) for c in chosen])
    ax.set_xscale("log")
    ax.set_xticks([c["n_train"] for c in chosen], [str(c["n_train"]) for c in chosen])
    ax.minorticks_off()
    ax.set(title=f"{source}: by training spectra", xlabel="training spectra", ylabel="final NMSE")


def _noises(ax: Any, source: str, table: Document) -> None:
    """Draw final NMSE by noise, for the largest number of training spectra."""
    most = max(c["n_train"] for c in table["conditions"])
    for arm in table["arms"]:
        _line(ax, table, arm, [(c["noise"], c["arms"][arm]) for c in table["conditions"] if c["n_train"] == most])
    ax.set(title=f"{source}: by noise, {most} spectra", xlabel="noise, in units of training", ylabel="final NMSE")


def _line(ax: Any, table: Document, arm: str, points: list[tuple[float, Document]]) -> None:
    """Draw means and every seed."""
    color = colour(table["arms"], arm)
    ax.plot([x for x, _ in points], [entry["mean"] for _, entry in points], color=color, marker="o", label=arm)
    for x, entry in points:
        ax.plot([x] * len(entry["values"]), entry["values"], ".", color=color, markersize=2.5, alpha=0.6)


def _differences(ax: Any, source: str, table: Document) -> None:
    """Draw paired differences to `small` with their intervals."""
    others = [arm for arm in table["arms"] if arm != "small"]
    names = []
    for row, c in enumerate(table["conditions"]):
        names.append(f"{c['n_train']}, {c['noise']:g}x")
        for i, arm in enumerate(others):
            found, y = c["paired"]["small"][arm], row + 0.7 * ((i + 0.5) / len(others) - 0.5)
            color = colour(table["arms"], arm)
            if found["interval"]:
                ax.plot(found["interval"], [y, y], color=color, linewidth=1.1)
            ax.plot([found["mean"]], [y], "o", color=color, markersize=3.5, label=arm)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(title=f"{source}: NMSE minus that of small", xlabel="paired difference, 95 % interval")
    ax.set_ylabel("training spectra, noise")


def _plus_minus(entry: Document) -> str:
    """Write a mean and half the width of its interval."""
    return number(entry["mean"]) + ("" if entry["half_width"] is None else f" ± {number(entry['half_width'])}")
