"""Arms of an experiment side by side: means, paired differences with intervals, and what may be claimed of them.

The rule of claims is code, so that no sentence can say more than the figures: a benefit needs five seeds and a 95 %
interval of the paired differences below zero against *both* controls.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from eigenloom.errors import StoreError
from eigenloom.store.atomic import read_json

FORMAT, VERSION = "eigenloom.arm", 1
TABLE_FORMAT = "eigenloom.arms"
TREATED, CONTROLS, BASELINE = "kpca-warm", ("small", "linear-pca"), "cold"
LEAST_SEEDS = 5
LEVEL = 0.95
NOTHING = "no measurable benefit over starting from near-uniform attention"
Document = Mapping[str, Any]


def read_arm(path: str | Path) -> dict[str, Any]:
    """Read the result of one arm, seed and condition.

    Raises:
        StoreError: missing, foreign, or of another version.
    """
    document = read_json(path)
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"{path}: holds no result of an arm; delete it and run `train_arms` again")
    return document


def compare(documents: Sequence[Document]) -> dict[str, Any]:
    """Put the results of all arms, seeds and conditions into one table.

    Returns:
        ``arms`` in the order in which they were found; ``seeds``; ``parameters``, one number; ``curves``, validation
        NMSE by ``n_train``, arm and seed; ``starts``, mean entropy and logit deviation by arm; ``conditions``, a list
        by ``n_train`` and ``noise`` of ``arms`` (values by seed, mean, half-width of the interval), ``paired``
        (differences of every other arm to ``small``, and of ``kpca-warm`` to every control), ``helps`` and ``claim``.

    Raises:
        StoreError: arms of unequal parameters, or without the same seeds.
    """
    arms = list(dict.fromkeys(d["arm"] for d in documents))
    seeds = sorted({d["seed"] for d in documents})
    found = {(d["n_train"], d["arm"], d["seed"]): d for d in documents}
    sizes = sorted({d["n_train"] for d in documents})
    if missing := [key for n in sizes for a in arms for s in seeds if (key := (n, a, s)) not in found]:
        raise StoreError(f"no result of n_train, arm, seed {missing[0]}; run `train_arms` again")
    counts = {d["parameters"] for d in documents}
    if len(counts) != 1:
        raise StoreError(f"arms differ in their trainable parameters ({sorted(counts)}), so they cannot be compared")
    conditions = []
    for n in sizes:
        for noise in found[n, arms[0], seeds[0]]["test"]:
            values = {arm: [found[n, arm, s]["test"][noise]["nmse"] for s in seeds] for arm in arms}
            conditions.append({"n_train": n, "noise": float(noise), **_condition(values)})
    every = {(n, arm): [found[n, arm, s] for s in seeds] for n in sizes for arm in arms}
    return {
        "arms": arms,
        "seeds": seeds,
        "parameters": counts.pop(),
        "labels": documents[0]["labels"],
        "curves": {str(n): {a: [d["val_nmse"] for d in every[n, a]] for a in arms} for n in sizes},
        "epochs_to_cold": {str(n): {a: [d["epochs_to_cold"] for d in every[n, a]] for a in arms} for n in sizes},
        "starts": {
            a: {k: _mean(d[k] for d in documents if d["arm"] == a) for k in ("entropy", "logit_std")} for a in arms
        },
        "conditions": conditions,
        "claims": [condition["claim"] for condition in conditions],
    }


def paired(values: Sequence[float], control: Sequence[float]) -> dict[str, Any]:
    """Return mean and 95 % interval of ``values - control``, seed by seed (Student's t); no interval of one seed."""
    differences = [a - b for a, b in zip(values, control, strict=True)]
    mean, half = _mean(differences), half_width(differences)
    interval = None if half is None else [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "n": len(differences)}


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean; None of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = _mean(values)
    deviation = (sum((value - mean) ** 2 for value in values) / (n - 1)) ** 0.5
    return float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * deviation / n**0.5)


def helps(comparisons: Iterable[Document]) -> bool:
    """Apply the rule: at least five seeds, and every interval wholly below zero."""
    return all(c["n"] >= LEAST_SEEDS and c["interval"] is not None and c["interval"][1] < 0 for c in comparisons)


def epochs_to(history: Sequence[float], goal: float) -> int | None:
    """Return after how many epochs a history first is as low as ``goal``; None if never."""
    return next((epoch for epoch, value in enumerate(history, 1) if value <= goal), None)


def table_csv(table: Document) -> str:
    """Write a line for every condition and arm."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["n_train", "noise", "arm", "nmse", "half_width", "minus_small", "low", "high", "seeds"])
    for c in table["conditions"]:
        for arm, entry in c["arms"].items():
            difference = c["paired"]["small"].get(arm)
            low, high = (difference and difference["interval"]) or (None, None)
            numbers = [entry["mean"], entry["half_width"], difference and difference["mean"], low, high]
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([c["n_train"], f"{c['noise']:g}", arm, *cells, len(table["seeds"])])
    return file.getvalue()


def markdown(table: Document) -> str:
    """Write the table and the claims for a reader."""
    arms = table["arms"]
    lines = [
        f"Final NMSE on unseen stars, mean of {len(table['seeds'])} seeds and half the width of its 95 % interval; "
        f"{table['parameters']:,} trainable parameters in every arm.",
        "",
        "| n_train | noise | " + " | ".join(arms) + " | kpca-warm minus small |",
        "|---:|---:|" + "---:|" * (len(arms) + 1),
    ]
    for c in table["conditions"]:
        cells = [_plus_minus(c["arms"][arm]["mean"], c["arms"][arm]["half_width"]) for arm in arms]
        lines.append(
            f"| {c['n_train']} | {c['noise']:g}x | {' | '.join(cells)} | {_shown(c['paired']['small'][TREATED])} |"
        )
    return "\n".join([*lines, "", *(f"- {claim}" for claim in table["claims"])]) + "\n"


def _condition(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Compare the arms under one condition."""
    small = {arm: paired(v, values["small"]) for arm, v in values.items() if arm != "small"}
    warm = {control: paired(values[TREATED], values[control]) for control in CONTROLS}
    better = helps(warm.values())
    return {
        "arms": {a: {"values": list(v), "mean": _mean(v), "half_width": half_width(v)} for a, v in values.items()},
        "paired": {"small": small, TREATED: warm},
        "helps": better,
        "claim": _claim(warm, better),
    }


def _claim(warm: Mapping[str, Document], better: bool) -> str:
    """Say what one condition shows."""
    listed = " and ".join(f"{_shown(c)} against {control}" for control, c in warm.items())
    n = next(iter(warm.values()))["n"]
    if n < LEAST_SEEDS:
        seeds = f"{n} seed{'s' if n > 1 else ''}"
        return f"differences in NMSE of {listed}; nothing is claimed from {seeds}, fewer than {LEAST_SEEDS}"
    if better:
        return f"kernel PCA helps: differences in NMSE of {listed}"
    return f"{NOTHING}: differences in NMSE of {listed}"


def _shown(comparison: Document) -> str:
    """Write a difference and its interval."""
    if comparison["interval"] is None:
        return f"{comparison['mean']:+.4f}"
    low, high = comparison["interval"]
    return f"{comparison['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _plus_minus(mean: float, half: float | None) -> str:
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
