"""The page: one HTML file with figures, pictures and style inside, that loads nothing and runs its own script alone."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from eigenloom.report.attention import CAPTION, attention_curves, attention_facts, attention_findings
from eigenloom.report.denoising import denoised_spectra, denoising_facts, denoising_findings, denoising_scores
from eigenloom.report.drawing import SERIES, themed
from eigenloom.report.evidence import Evidence
from eigenloom.report.experts import expert_curves, expert_facts, expert_findings, expert_map
from eigenloom.report.facts import fact_tables, summary
from eigenloom.report.figures import class_precision, histories, layer_curves, nmse_against_l0, utilisation
from eigenloom.report.findings import Finding, compare, find
from eigenloom.report.gallery import arrange, css
from eigenloom.report.headline import headline
from eigenloom.report.interaction import HASH, SCRIPT
from eigenloom.report.probe_map import probe_map
from eigenloom.report.races import draw_races
from eigenloom.report.stylesheet import CSS
from eigenloom.report.tables import (
    CONSTANT_FLOOR,
    FLOOR,
    HEADLINE,
    KEY,
    METRICS,
    MISSING,
    RESULT,
    Metric,
    label,
    number,
    spread,
)  # fmt: skip
from eigenloom.report.template import PAGE
from eigenloom.report.weights import weight_curves, weight_facts, weight_findings, weight_paths

Document = Mapping[str, Any]

FIGURES = {
    "nmse_l0": (
        nmse_against_l0,
        "Reconstruction error against the number of active features",
        "NMSE, the fraction of variance unexplained in the standardized space, on rows of fit_val that no"
        " basis was fitted to, against the mean number of non-zero entries of a code as measured. Clusters"
        " have one active entry; projections keep the K largest, their rightmost point keeps all. Control:"
        " random directions and random rows as centres, as many (dashed, hollow); 1 is what predicting the"
        " training mean gives.",
    ),
    "layers": (
        layer_curves,
        "Layers",
        "Each basis under the coding that has its highest Probe R on the training split. Probe R and mAP of"
        " the best single feature per class on probe_val, NMSE on fit_val. Control: the same number of random"
        " features, coded and probed alike (dashed, hollow), and a constant score (grey).",
    ),
    "classes": (
        class_precision,
        "Average precision by class",
        "For each class its best single feature, chosen by training loss, in the coding and layer that the"
        " training split prefers; average precision on probe_val. Control: from the hollow dot, the best of as"
        " many random features, to the filled one; the grey tick is the prevalence, which a constant score"
        " reaches. Up to 40 classes, best ones first.",
    ),
    "probe_map": (
        probe_map,
        "Probes, method by method",
        "Average precision on probe_val of the best single feature of each class, chosen by training loss, for every"
        " method at the layer that the training split prefers. Control: below each method as many random features,"
        " coded and probed alike. Up to 40 classes.",
    ),
    "utilisation": (
        utilisation,
        "Utilisation",
        "Rows of fit_val per cluster, in falling order and in units of an even share; a line that ends early"
        " has clusters without rows. Control: random training rows as centres (dashed).",
    ),
    "history": (
        histories,
        "Histories of the fits",
        "What the fits recorded of themselves on fit_train: k-means by pass, variance left by principal"
        " components, training of the networks. Line styles tell layers apart. No control: these show that"
        " fits ended, not that they are good.",
    ),
    "weights": (
        weight_curves,
        "Networks rebuilt from few numbers",
        "Checkpoints of trainings, decomposed as rows of weights: squared error against squared distance from the mean"
        " checkpoint, and the share of fit_val patches that the rebuilt networks label right, by number of components;"
        " error of held-out checkpoints by part of the network. Held-out checkpoints took no part in the fit and lie"
        " between fitted ones of the same training. Controls: random orthonormal directions through the same mean,"
        " random walks with the trainings' own step norms (dashed, hollow), the mean network (k = 0), the networks as"
        " trained (grey).",
    ),
    "weight_paths": (
        weight_paths,
        "Trainings in weight space",
        "Scores of checkpoints on the first two components, joined in time; held-out checkpoints hollow. No control is"
        " drawn here: a random walk in many dimensions shows such curves, too, and the findings say by how much the"
        " trainings exceed it.",
    ),
    "experts": (
        expert_curves,
        "Compressed experts",
        "Banks of shared matrices in the place of the experts of trained networks, one line per seeding: relative error"
        " of the weights, accuracy on test images, divergence of the predictions from those of the network as trained,"
        " all against the number of parameters, with 95 % intervals over trainings; and the error after training"
        " against what the seeding cost, in counted floating-point operations. Controls: other factorisations with as"
        " many parameters (dashed, hollow; the bound by the SVD of every expert has more), and the trained networks.",
    ),
    "expert_map": (
        expert_map,
        "Experts one by one",
        "Relative error of every expert under the bank of least error at each size, mean over trainings; 0 is exact, 1"
        " is what leaving the expert out gives. Control: the errors of SVD at equal parameters in the table of facts.",
    ),
    "denoised": (
        denoised_spectra,
        "Spectra before and after denoising",
        "Three spectra of each denoised survey, from faint to bright, and below each what is left of it in units of its"
        " own error. Pixels above the threshold are hits. Truth is drawn where the survey was simulated.",
    ),
    "denoising": (
        denoising_scores,
        "What denoising is worth",
        "Gain in signal to noise against the true spectrum, and the share of planted hits that are found, by height."
        " Controls: principal components at their best rank and at that of pcp, pcp without its noise term, a running"
        " median, and the flux with hits against that median replaced; rank and window are those with the highest gain,"
        " which needs the truth to know. Without a truth hits were injected into a copy.",
    ),
    "attention": (attention_curves, "Attention that starts from kernel PCA", CAPTION),
    "optimizers": (
        lambda evidence: draw_races(evidence.races),
        "Race of optimizers",
        "Training loss, mean over seeds with its 95 % interval, against steps and against the CPU seconds of one thread"
        " spent in the optimizer. All start from the same weights, see the same data in the same order, and share"
        " schedule and weight decay. Learning rates are fixed in the configuration, not swept here. Controls: no-spike"
        " lowers nothing, exact shapes by a full singular value decomposition. A short race of small networks says"
        " nothing of large ones.",
    ),
}
"""Name, which is the file's stem -> how it is drawn, its title, its caption: measured what, on what, against what."""

FACTS = (fact_tables, weight_facts, denoising_facts, attention_facts, expert_facts)


def draw(evidence: Evidence) -> dict[str, str]:
    """Draw every figure; return standalone SVG by name."""
    return {name: function(evidence) for name, (function, _, _) in FIGURES.items()}


def render(name: str, evidence: Evidence, figures: Mapping[str, str], here: str | Path, tables: Sequence[Path]) -> str:
    """Render the page.

    Args:
        name: of the experiment.
        evidence: what it is made from.
        figures: standalone SVG by name, as ``draw`` returns.
        here: directory the page will lie in; links are relative to it.
        tables: paths of the ``table.json`` files.

    Returns:
        HTML, a pure function of the arguments.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)

    def link(path: str | Path) -> str:
        return Path(os.path.relpath(path, here)).as_posix()

    siblings = [table.with_name(f"{stem}.csv") for table in tables for stem in ("table", "manifest")]
    return environment.from_string(PAGE).render(
        name=name,
        css=Markup(CSS + css(g for _, g in sorted(evidence.galleries.items()))),
        summary=summary(evidence),
        topics=[
            {
                "title": topic,
                "findings": [
                    {"text": f.text, "tone": f.tone, "links": [{"href": link(path), "title": path} for path in f.paths]}
                    for f in found
                ],
            }
            for topic, found in _topics(evidence).items()
        ],
        headline=[{"label": label(m, evidence.rows), "meaning": m.meaning} for m in METRICS if m.key in HEADLINE],
        grids=[_grid(evidence, source, link) for source in evidence.sources],
        figures=[
            # Markup: our own SVG, in which matplotlib escaped every name.
            {"name": n, "title": title, "caption": caption, "svg": Markup(themed(figures[n], n))}
            for n, (_, title, caption) in FIGURES.items()
        ],
        facts=[t for tables in FACTS for t in tables(evidence)],
        manifests=[link(path) for path in siblings if path.name == "manifest.csv"],
        metrics=[{"label": m.label, "meaning": m.meaning, "direction": _direction(m)} for m in METRICS],
        headline_table=headline(evidence, link),
        galleries=arrange(evidence.galleries, evidence.bases, link),
        script=Markup(SCRIPT),
        script_hash=HASH,
        missing=[item for table in evidence.tables for item in table["missing"]],
        full=_full(evidence, link),
        downloads=[link(path) for path in [*siblings, *tables]],
    )


def _topics(evidence: Evidence) -> dict[str, list[Finding]]:
    """Return every sentence by its topic, in the order of the parts; what is said of the whole run comes last."""
    found = find(evidence)
    for topic, part in PARTS.items():
        found += [replace(finding, topic=topic) for finding in part(evidence)]
    topics: dict[str, list[Finding]] = {}
    for finding in sorted(found, key=lambda f: f.topic == "this run"):
        topics.setdefault(finding.topic, []).append(finding)
    return topics


PARTS = {
    "weights": weight_findings,
    "denoising": denoising_findings,
    "attention": attention_findings,
    "experts": expert_findings,
}


def _direction(metric: Metric) -> str:
    """Say which way is better."""
    return {True: "; higher is better", False: "; lower is better", None: ""}[metric.higher_is_better]


def _grid(evidence: Evidence, source: str, link: Any) -> dict[str, Any]:
    """Arrange the results of a source: methods down, layers and headline metrics across."""
    layers = evidence.layers(source)
    rows = [row for row in evidence.rows if row["source"] == source and row["role"] in (RESULT, MISSING)]
    found = {(row["basis"], row["coding"], row["layer"]): row for row in rows}
    groups = []
    methods = sorted({(row["basis"], row["coding"]) for row in rows})
    for basis, codings in groupby(methods, key=lambda pair: pair[0]):
        lines = [
            {
                "coding": coding,
                "cells": [c for lay in layers for c in _cells(evidence, found.get((basis, coding, lay)), link)],
            }
            for _, coding in codings
        ]
        position = evidence.bases.index(basis) % len(SERIES) if basis in evidence.bases else 0
        groups.append({"basis": basis, "colour": position, "lines": lines})
    constants = {r["layer"]: r for r in evidence.rows if r["source"] == source and r["role"] == CONSTANT_FLOOR}
    constant = [
        {"value": number((constants.get(layer) or {}).get(key)), "classes": "start" if key == HEADLINE[0] else ""}
        for layer in layers
        for key in HEADLINE
    ]
    return {"source": source, "layers": layers, "groups": groups, "constant": constant if constants else []}


def _cells(evidence: Evidence, row: Document | None, link: Any) -> Iterator[dict[str, Any]]:
    """Make a row's cells of one layer: value, random floor below it, and how the two compare."""
    floor = evidence.floor(row) if row else None
    for metric in (metric for metric in METRICS if metric.key in HEADLINE):
        value, random = (row or {}).get(metric.key), (floor or {}).get(metric.key)
        sign = 1 if metric.higher_is_better else -1
        beaten = None not in (value, random) and sign * compare(float(value or 0), float(random or 0)) < 0
        classes = (
            ["start"] * (metric.key == HEADLINE[0]) + ["chosen"] * bool(row and row["chosen"]) + ["below"] * beaten
        )
        yield {
            "value": spread(row or {}, metric.key),
            "floor": number(random),
            "classes": " ".join(classes),
            "href": link(row["path"]) if row and row.get("path") else "",
            "title": f"{metric.label}; random floor {number(random) or 'not measured'}",
        }


def _full(evidence: Evidence, link: Any) -> dict[str, Any]:
    """Arrange every row with every metric."""
    rows = [
        {
            "words": [f"{row[key]} ◆" if key == "layer" and row["chosen"] else row[key] for key in KEY],
            "cells": ["missing" if row["role"] == MISSING else spread(row, m.key) or "–" for m in METRICS],
            "is_floor": row["role"] in (FLOOR, CONSTANT_FLOOR),
            "href": link(row["path"]) if row.get("path") else "",
        }
        for row in evidence.rows
    ]
    return {"words": KEY, "labels": [label(metric, evidence.rows) for metric in METRICS], "rows": rows}
