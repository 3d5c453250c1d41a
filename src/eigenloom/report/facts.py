"""What ran: sources with their networks, bases with their parameters, the probe with its settings."""

from collections.abc import Mapping
from typing import Any

from eigenloom.report.evidence import Evidence, Model
from eigenloom.report.tables import FLOOR_SUFFIX, number

Document = Mapping[str, Any]
BARS = {"accuracy": "patch accuracy", "recall": "mean recall of the classes"}


def summary(evidence: Evidence) -> str:
    """Say in one sentence how much was measured."""
    counts = {
        "source": len(evidence.sources),
        "layer": sum(len(evidence.layers(source)) for source in evidence.sources),
        "basis": len(evidence.bases),
        "coding": len({(row["basis"], row["coding"]) for row in evidence.results}),
    }
    plurals = {"basis": "bases"}
    words = [f"{n} {word if n == 1 else plurals.get(word, word + 's')}" for word, n in counts.items()]
    return (
        f"{', '.join(words[:-1])} and {words[-1]}. What each basis reconstructs of {_rows_words(evidence)}, and what"
        " each of its features, taken alone, tells about the label of a row."
    )


def _rows_words(evidence: Evidence) -> str:
    """Say what the rows of this experiment are."""
    spectra = [source for source in evidence.sources if source in evidence.spectra]
    words = ["a network's activations for the patches of images"] * (len(spectra) < len(evidence.sources))
    return " and of ".join([*words, *["one-dimensional spectra"] * bool(spectra)]) or "the rows"


def fact_tables(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the tables of sources, bases and probes, as titles, columns and rows of text; empty ones left out."""
    tables = [
        {
            "title": "Sources",
            "columns": [
                "source",
                "layers",
                "rows: fit_val",
                "probe_train / probe_val",
                "classes probed",
                "seed",
                "rows are",
            ],
            "rows": [_source(evidence, source) for source in evidence.sources],
        },
        {
            "title": "Bases",
            "columns": ["basis", "kind", "seed", "parameters"],
            "rows": [_basis(evidence, basis) for basis in evidence.bases],
        },
        {"title": "Probe", "columns": ["setting", "value"], "rows": _settings(evidence)},
    ]
    return [table for table in tables if table["rows"]]


def spectra_sentence(splits: list[Document]) -> str:
    """Say which spectra a source has, what was done to them, and how many bad pixels there were."""
    one = splits[0]
    wave = one["wavelength"]
    counts = {key: sum(split["bad_pixels"][key] for split in splits) for key in ("pixels", "spectra")}
    n_spectra = sum(split["n_examples"] for split in splits)
    divided = "as they are" if one["normalise"] == "none" else f"divided by their {one['normalise']}"
    bad = "no bad pixel"
    if counts["pixels"]:
        bad = f"{counts['pixels']:,} bad pixels in {counts['spectra']:,} of {n_spectra:,} spectra, interpolated"
    unit = wave["unit"] or "(unit not stated)"
    return (
        f"spectra of {one['n_pixels']} pixels from {wave['first']:g} to {wave['last']:g} {unit} ({one['dataset']}),"
        f" {divided}; {bad}"
    )


def model_sentence(model: Model | None) -> str:
    """Say what the network reached whose activations are the rows, and the bar it had to clear."""
    if model is None:
        return "activations of a network that this source did not train"
    words = []
    for name, label in BARS.items():
        if (value := model.metrics.get(name)) is not None:
            limit = f" (bar {number(model.bar[name])})" if model.bar.get(name) else ""
            words.append(f"{label} {number(value)}{limit}")
    if model.bar.get("below_prior"):
        loss, prior = (number(model.metrics.get(name)) for name in ("loss", "prior_loss"))
        words.append(f"loss {loss} (bar: below {prior}, that of the label prior)")
    return f"activations of a network with {', '.join(words)} on fit_val"


def _source(evidence: Evidence, source: str) -> list[str]:
    """Describe one source."""
    n_rows = {d["n_rows"] for place, d in evidence.reconstructions.items() if place[0] == source and "n_rows" in d}
    documents = [d for d in evidence.metrics.values() if d["source"] == source]
    counts = [d["counts"] for d in documents]
    classes = sorted({f"{c['n_evaluated']} of {c['n_classes']}" for c in counts})
    n_probed = sorted({f"{c['n_rows_train']:,} / {c['n_rows_val']:,}" for c in counts})
    return [
        source,
        ", ".join(evidence.layers(source)),
        _joined(f"{n:,}" for n in sorted(n_rows)),
        _joined(n_probed),
        _joined(classes),
        _joined(sorted({str(d["seed"]) for d in documents})),
        spectra_sentence(evidence.spectra[source])
        if source in evidence.spectra
        else model_sentence(evidence.models.get(source)),
    ]


def _basis(evidence: Evidence, basis: str) -> list[str]:
    """Describe one basis by what its fits were asked for, and failing that by what they resolved to."""
    fits = [fit for place, fit in sorted(evidence.fits.items()) if place[2] == basis]
    documents = [d for d in evidence.metrics.values() if d["basis"] == basis]
    kinds = {fit.kind for fit in fits} | {str(d["kind"]) for d in documents}
    shown: dict[str, set[str]] = {}
    for parameters in [fit.asked or fit.parameters for fit in fits] or [d.get("fit", {}) for d in documents]:
        for name, value in parameters.items():
            if not isinstance(value, list | dict) and "." not in name:
                shown.setdefault(name, set()).add(_word(value))
    words = [f"{name} {' / '.join(sorted(values))}" for name, values in sorted(shown.items()) if name != "kind"]
    floors = any(place[2] == basis + FLOOR_SUFFIX for place in evidence.fits)
    tail = ["with a random floor"] if floors else []
    return [
        basis,
        _joined(sorted(kinds)),
        _joined(sorted({str(d["seed"]) for d in documents})),
        ", ".join(words + tail),
    ]


def _settings(evidence: Evidence) -> list[list[str]]:
    """List the probe's settings, and in how many of the runs each value was used where they differ."""
    found: dict[str, dict[str, int]] = {}
    for document in evidence.metrics.values():
        asked = ((document.get("specs") or {}).get("probe") or {}).get("probe") or {}
        for name, value in asked.items():
            uses = found.setdefault(name, {})
            uses[_word(value)] = uses.get(_word(value), 0) + 1
    return [
        [name, next(iter(uses)) if len(uses) == 1 else ", ".join(f"{v} ({n} runs)" for v, n in sorted(uses.items()))]
        for name, uses in sorted(found.items())
    ]


def _joined(words: Any) -> str:
    """Join words, a dash for none."""
    return ", ".join(words) or "–"


def _word(value: Any) -> str:
    """Write a parameter."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "automatic" if value is None else str(value)
