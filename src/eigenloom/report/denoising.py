"""Denoised surveys in the report: spectra before and after, with residuals, and what denoising is worth.

Where the truth is known every number stands beside simpler methods; where it is not, hits were injected into a copy.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from eigenloom.evaluation.denoising import AMPLITUDES
from eigenloom.report.drawing import GRID, INK, MUTED, SERIES, WIDTH, colour, empty, legend, panels, styled, svg
from eigenloom.report.evidence import Evidence
from eigenloom.report.findings import Finding, compare
from eigenloom.report.tables import number

Document = Mapping[str, Any]
NOTHING = "No survey was denoised in this run."
FLUX, LOW, TRUE, HIT = MUTED, SERIES[0], SERIES[1], SERIES[2]
TARGETS = {"precision": 0.98, "recall_strong": 0.95, "snr_gain_db": 15.0}
"""What the denoising of the default survey should reach."""
SIGMAS = 12.0
"""Half the height of a residual panel; what lies beyond is drawn at its edge."""


def denoised_spectra(evidence: Evidence) -> str:
    """Some spectra with their low-rank part, and below each the residual in units of its error."""
    if not evidence.denoised:
        return empty(NOTHING)
    shown = [
        (source, d["examples"], star)
        for source, d in sorted(evidence.denoised.items())
        for star in d["examples"]["spectra"]
    ]
    with styled():
        layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.08)
        figure = Figure(figsize=(WIDTH, 0.7 + 2.9 * len(shown)), layout=layout)
        axes = figure.subplots(2 * len(shown), 1, height_ratios=[2.2, 1] * len(shown)).tolist()
        for i, (source, examples, star) in enumerate(shown):
            threshold = evidence.denoised[source]["pursuit"]["threshold"]
            _spectrum(axes[2 * i], axes[2 * i + 1], f"{source}, spectrum {star['row']}", examples, star, threshold)
        legend(figure, axes)
        return svg(figure, "Spectra before and after denoising")


def denoising_scores(evidence: Evidence) -> str:
    """Gain of every method, and recall of hits by their height."""
    if not evidence.denoised:
        return empty(NOTHING)
    with styled():
        figure, axes = panels(2 * len(evidence.denoised), 2)
        for i, (source, document) in enumerate(sorted(evidence.denoised.items())):
            gains, recalls = axes[2 * i : 2 * i + 2]
            methods = document.get("methods", [])
            _gains(gains, source, methods)
            edges = range(len(AMPLITUDES))
            judged = methods or [{"method": "injected hits", **document["injected"]}]
            names = [method["method"] for method in judged]
            for method in judged:
                ours = method["method"] in ("pcp", "injected hits")
                style: dict[str, Any] = {"linewidth": 2.2, "zorder": 4} if ours else {"linewidth": 1.0}
                values = [np.nan if value is None else value for value in method["recall"]]
                color = colour(names, method["method"])
                recalls.plot(edges, values, marker="o", color=color, label=method["method"], **style)
            bins = [f"{a:g} to {b:g}" for a, b in pairwise(AMPLITUDES)]
            recalls.set_xticks(edges, [*bins, f"above {AMPLITUDES[-1]:g}"])
            recalls.set(title=f"{source}: hits found", xlabel="height of the hit, in sigma", ylabel="recall")
            recalls.set_ylim(0, 1.03)
        legend(figure, axes)
        return svg(figure, "What denoising is worth")


def denoising_findings(evidence: Evidence) -> Iterator[Finding]:
    """State what was found and gained, beside the best of the simpler methods, and which targets were missed."""
    for source, document in sorted(evidence.denoised.items()):
        paths = (f"results/{source}/denoised/metrics.json",)
        facts = document["pursuit"]
        split = f"rank {facts['rank']}, {facts['status']} with a relative duality gap of {facts['gap']:.1e}"
        if "whole" not in document:
            found = document["injected"]
            text = f"{number(found['recall_strong'])} of the injected hits above 5 sigma are found ({split})"
            yield Finding(f"Denoising, {source}: {text}; there is no truth to judge by.", "plain", paths)
            continue
        whole, (ours, *rivals) = document["whole"], document["methods"]
        best = max(rivals, key=lambda method: _value(method, "snr_gain_db"))
        gain, other = _value(ours, "snr_gain_db"), _value(best, "snr_gain_db")
        missed = [
            f"{name} {number(whole[name])} below its target {target:g}"
            for name, target in TARGETS.items() if _value(whole, name) < target
        ]  # fmt: skip
        rival = f"{best['method']} ({best['detail']})"
        text = (
            f"pcp finds {number(whole['recall_strong'])} of the hits above 5 sigma at a precision of"
            f" {number(whole['precision'])} and gains {number(whole['snr_gain_db'], 1)} dB over the flux as measured"
            f" ({split}). The best of the simpler methods, {rival}, gains {other:.1f} dB on the same"
            f" {document['n_compared']:,} spectra, pcp {gain:.1f}."
        ) + "".join(f" Missed: {line}." for line in missed)
        yield Finding(
            f"Denoising, {source}: {text}", "good" if compare(gain, other) > 0 and not missed else "warning", paths
        )


def denoising_facts(evidence: Evidence) -> list[dict[str, Any]]:
    """Return a table of all methods for each survey with a truth."""
    columns = ["method", "detail", "precision", "recall above 5 sigma", "gain, dB", "gain on pixels without a hit, dB"]
    keys = ("precision", "recall_strong", "snr_gain_db", "snr_gain_unhit_db")
    tables = []
    for source, document in sorted(evidence.denoised.items()):
        rows = [
            [m["method"], m["detail"], *(number(m[key], 1 if key.endswith("db") else 3) or "–" for key in keys)]
            for m in document.get("methods", [])
        ]
        places = ", ".join(f"{place['wavelength']:.1f} ({100 * place['share']:.1f} %)" for place in document["pile_up"])
        note = ["wavelengths with most hits", f"{places}: a narrow emission line is sparse, too"]
        tables.append({"title": f"Denoising: {source}", "columns": columns, "rows": [*rows, [*note, *[""] * 4]]})
    return tables


def _spectrum(top: Any, below: Any, title: str, examples: Document, star: Document, threshold: float) -> None:
    """Draw one spectrum and its residual."""
    wave = np.array(examples["wavelength"])
    values = {name: np.array(v, dtype=float) for name, v in star.items() if isinstance(v, list)}
    hits = values["found"] > 0
    top.plot(wave, values["flux"], color=FLUX, linewidth=0.7, label="as measured")
    if "clean" in values:
        top.plot(wave, values["clean"], color=TRUE, linewidth=1.0, linestyle=(0, (3, 2)), zorder=4, label="truth")
    top.plot(wave, values["low"], color=LOW, linewidth=1.2, label="low-rank part")
    top.plot(wave[hits], values["flux"][hits], "x", color=HIT, markersize=4, label="hit")
    span = np.nanpercentile(values["low"], [0, 100])
    noise = np.nanmedian(values.get("error", np.zeros(1)))
    top.set_ylim(span[0] - 5 * noise - 0.05 * np.ptp(span), span[1] + 8 * noise + 0.25 * np.ptp(span))
    top.set(title=title, ylabel="flux", xlim=(wave[0], wave[-1]))
    top.tick_params(labelbottom=False)
    unit = examples["unit"] or "unit not stated"
    residual = values["flux"] - values["low"]
    residual = residual / values["error"] if "error" in values else residual / (np.nanstd(residual) or 1)
    below.axhline(0, color=GRID, linewidth=0.8)
    below.axhline(threshold, color=HIT, linewidth=0.8, linestyle=(0, (3, 2)), label=f"{threshold:g} sigma")
    below.plot(wave, np.clip(residual, -SIGMAS, SIGMAS), color=INK, linewidth=0.6)
    below.plot(wave[hits], np.clip(residual[hits], -SIGMAS, SIGMAS), "x", color=HIT, markersize=4)
    below.set(
        xlabel=f"wavelength ({unit})", ylabel="residual / sigma", xlim=(wave[0], wave[-1]), ylim=(-SIGMAS, SIGMAS)
    )


def _gains(ax: Any, source: str, methods: list[Document]) -> None:
    """Draw gains as bars, over all pixels and over those without a hit."""
    if not methods:
        ax.text(0.02, 0.5, "no truth, hence no gain", transform=ax.transAxes, color=MUTED)
    places = np.arange(len(methods))
    for shift, key, label, color in (
        (-0.2, "snr_gain_db", "all pixels", LOW),
        (0.2, "snr_gain_unhit_db", "pixels without a hit", TRUE),
    ):
        values = [_value(method, key) for method in methods]
        ax.barh(places + shift, values, height=0.36, color=color, label=label, zorder=3)
    ax.set_yticks(places, [method["method"] for method in methods])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(title=f"{source}: gain in signal to noise", xlabel="dB over the flux as measured")


def _value(scores: Document, key: str) -> float:
    """Return a score, the worst where there is none."""
    return -np.inf if scores[key] is None else float(scores[key])
