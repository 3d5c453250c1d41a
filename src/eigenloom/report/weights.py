"""Checkpoints in the report: figures, sentences and facts about networks rebuilt from few numbers.

Of a collection only what exceeds its controls is called a finding: random directions through the same mean, random
walks with the trainings' own step norms, and the mean network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eigenloom.report.drawing import GRID, MUTED, PAPER, SERIES, colour, empty, legend, panels, styled, svg
from eigenloom.report.evidence import Evidence
from eigenloom.report.findings import Finding, compare
from eigenloom.report.tables import number

Document = Mapping[str, Any]
NOTHING = "No checkpoints were decomposed in this run."
HELD_OUT, FITTED, WALK = SERIES[0], SERIES[1], SERIES[2]
SOLID: dict[str, Any] = {"marker": "o", "zorder": 3}
CONTROL: dict[str, Any] = {"marker": "o", "linestyle": (0, (3, 2)), "markerfacecolor": PAPER, "linewidth": 1.1}
POOR = 0.05
"""A mean network that labels this share of patches less right than the networks themselves is called poor."""


def weight_curves(evidence: Evidence) -> str:
    """What components carry: error and accuracy against their number, and error by part of the network."""
    if not evidence.weights:
        return empty(NOTHING)
    with styled():
        figure, axes = panels(3 * len(evidence.weights), 3)
        for i, (name, document) in enumerate(sorted(evidence.weights.items())):
            errors, accuracies, groups = axes[3 * i : 3 * i + 3]
            curve = document["curve"]
            ks = [row["k"] for row in curve]
            for key, label, color, style in (
                ("nmse_fitted", "fitted checkpoints", FITTED, SOLID),
                ("nmse_held_out", "held-out checkpoints", HELD_OUT, SOLID),
                ("nmse_held_out_random", "held out, random directions", HELD_OUT, CONTROL),
                ("nmse_held_out_walk", "held out, random walk", WALK, CONTROL),
            ):
                errors.plot(ks, [row[key] for row in curve], color=color, label=label, **style)
            for key, label, color, style in (
                ("accuracy_fitted", "fitted checkpoints", FITTED, SOLID),
                ("accuracy_held_out", "held-out checkpoints", HELD_OUT, SOLID),
                ("accuracy_held_out_random", "held out, random directions", HELD_OUT, CONTROL),
            ):
                accuracies.plot(ks, [row[key] for row in curve], color=color, label=label, **style)
            original = document["original"]["held_out"]
            accuracies.axhline(original, color=MUTED, linewidth=0.8, label="held out, as trained")
            errors.set(title=f"{name}: weights", xlabel="components k (0: the mean)", ylabel="NMSE, centred")
            accuracies.set(title=f"{name}: rebuilt networks", xlabel="components k (0: the mean)", ylabel="accuracy")
            for ax in (errors, accuracies):
                ax.set_xticks(ks)
                ax.set_ylim(0, None)
            _groups(groups, name, document)
        legend(figure, axes)
        return svg(figure, "Checkpoints rebuilt from few numbers")


def weight_paths(evidence: Evidence) -> str:
    """Trainings in the plane of the first two components, joined in time."""
    if not evidence.weights:
        return empty(NOTHING)
    with styled():
        figure, axes = panels(len(evidence.weights), 2, height=3.2)
        for ax, (name, document) in zip(axes, sorted(evidence.weights.items()), strict=True):
            names = [training["name"] for training in document["trainings"]]
            for training in document["trainings"]:
                own = [s for s in document["samples"] if s["training"] == training["name"]]
                color = colour(names, training["name"])
                points = [_plane(s) for s in own]
                ax.plot(*zip(*points, strict=True), color=color, label=_described(training), zorder=2)
                for sample, point in zip(own, points, strict=True):
                    face = PAPER if sample["held_out"] else color
                    ax.plot(*point, marker="o", color=color, markerfacecolor=face, zorder=3)
                ax.annotate("start", points[0], xytext=(4, 4), textcoords="offset points", color=MUTED, fontsize=7.5)
            shares = [f"{100 * share:.0f} %" for share in document["shares"][:2]]
            ax.set(title=name, xlabel=f"first component ({shares[0]} of the variance)")
            ax.set_ylabel(f"second component ({shares[1]})" if len(shares) > 1 else "")
        legend(figure, axes)
        return svg(figure, "Trainings in the plane of two components")


def weight_findings(evidence: Evidence) -> Iterator[Finding]:
    """State what the checkpoints of every collection show, and what chance alone would have shown."""
    for name, document in sorted(evidence.weights.items()):
        paths = (f"results/weights/{name}/metrics.json",)
        for text, tone in (_rebuilt(document), _walk(document), *_separate(document), _sketch(document)):
            yield Finding(f"Weights, {name}: {text}", tone, paths)


def weight_facts(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the table of collections; none where there are none."""
    columns = ["collection", "trainings", "checkpoints: fitted + held out", "numbers each", "components", "method"]
    rows = [
        [
            name,
            "; ".join(_described(training) for training in d["trainings"]),
            f"{sum(not s['held_out'] for s in d['samples'])} + {sum(s['held_out'] for s in d['samples'])}",
            f"{d['n_features']:,}",
            str(d["n_components"]),
            d["method"],
        ]
        for name, d in sorted(evidence.weights.items())
    ]
    return [{"title": "Weights", "columns": columns, "rows": rows}] if rows else []


def _rebuilt(document: Document) -> tuple[str, str]:
    """What rebuilt networks are worth, beside the mean network and random directions."""
    best, mean = document["curve"][-1], next((row for row in document["curve"] if row["k"] == 0), None)
    kept, original = best["accuracy_held_out"], document["original"]["held_out"]
    floors = [best["accuracy_held_out_random"]] + ([mean["accuracy_held_out"]] if mean else [])
    beats = compare(kept, max(floors)) > 0
    mean_words = f"the mean network reaches {number(mean['accuracy_held_out'])}, " if mean else ""
    verdict = "" if beats else " The components carry nothing that these floors lack."
    text = (
        f"held-out checkpoints rebuilt from {best['k']} numbers label {number(kept)} of the patches right, as trained"
        f" {number(original)}; {mean_words}{best['k']} random directions {number(best['accuracy_held_out_random'])}."
        f"{verdict} A basis of {best['k']} costs as much as {best['k'] + 1} networks, and held-out checkpoints lie"
        " between fitted ones of the same run."
    )
    return text, "good" if beats else "warning"


def _walk(document: Document) -> tuple[str, str]:
    """Whether the weights are more low-dimensional than a random walk."""
    own, walk = ([100 * share for share in document[key][:2]] for key in ("shares", "shares_walk"))
    best = document["curve"][-1]
    less = compare(best["nmse_held_out"], best["nmse_held_out_walk"])
    head = (
        f"the first components hold {_listed(own)} of the variance; of random walks with the same step norms"
        f" {_listed(walk)}. At {best['k']} components the held-out error is {number(best['nmse_held_out'])}, that of"
        f" the walks {number(best['nmse_held_out_walk'])}"
    )
    if less < 0:
        return f"{head}: lower than chance, by which these trainings are smoother than a walk.", "plain"
    return f"{head}: no evidence of a low-dimensional training.", "warning"


def _separate(document: Document) -> Iterator[tuple[str, str]]:
    """Where there are several trainings: do components tell them apart, and is their mean a network."""
    if len(document["trainings"]) < 2:
        return
    groups = [
        [s["scores"][0] for s in document["samples"] if s["training"] == training["name"]]
        for training in document["trainings"]
    ]
    share = 100 * _between(groups)
    mean = next((row for row in document["curve"] if row["k"] == 0), None)
    text = f"{share:.0f} % of the first component's variance lies between the trainings"
    seeds = len({training["seed"] for training in document["trainings"]})
    starts = f"{seeds} initial networks" if seeds > 1 else "one initial network"
    if mean is not None:
        gap = document["original"]["fitted"] - mean["accuracy_fitted"]
        quality = "is a poor network" if gap > POOR else "is about as good as they are"
        values = number(mean["accuracy_fitted"]), number(document["original"]["fitted"])
        text += f"; their mean {quality}: {values[0]} against {values[1]}"
    yield f"{text}. They grew from {starts}.", "plain"


def _sketch(document: Document) -> tuple[str, str]:
    """What a sketch loses."""
    found = document["sketch"]
    return (
        f"a sketched fit leaves {found['residual_ratio']:.4f} times the squared error of the exact one, and its"
        f" subspace is off by {found['largest_angle']:.1f} degrees at most.",
        "plain",
    )


def _groups(ax: Any, name: str, document: Document) -> None:
    """Draw the error of each part of the network."""
    groups = [g for g in document["groups"] if g["nmse"] is not None]
    ax.barh(range(len(groups)), [g["nmse"] for g in groups], color=HELD_OUT, height=0.62, zorder=3)
    ax.set_yticks(range(len(groups)), [g["group"] for g in groups])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=GRID)
    ax.set(title=f"{name}: by part, k = {document['groups_k']}", xlabel="NMSE of held-out checkpoints")


def _plane(sample: Document) -> tuple[float, float]:
    """Return the first two scores, 0 where there is one component."""
    scores = [*sample["scores"], 0.0]
    return scores[0], scores[1]


def _described(training: Document) -> str:
    """Name a training by what made it."""
    optimizer = training["optimizer"]
    rate = f" {optimizer['lr']:g}" if "lr" in optimizer else ""
    return f"{training['name']}: {optimizer['kind']}{rate}, seed {training['seed']}, {training['steps']} steps"


def _between(groups: Sequence[Sequence[float]]) -> float:
    """Return the share of the sum of squares that lies between groups."""
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    total = sum((value - mean) ** 2 for value in values)
    between = sum(len(group) * (sum(group) / len(group) - mean) ** 2 for group in groups)
    return between / total if total > 0 else 0.0


def _listed(shares: Sequence[float]) -> str:
    """Write percentages."""
    return " and ".join(f"{share:.1f} %" for share in shares)
