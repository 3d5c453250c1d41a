"""Render the table of ``docs/claims.md`` from the results of the default experiment."""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from scipy import stats

Read = Callable[[str], Any]
"""Path below the repository -> parsed JSON, None where there is no such file."""


def claims_table(read: Read) -> str:
    """Say how each claim that the default experiment puts to a test came out."""
    rows = [row for part in (attention, denoising, weights, experts, optimizers) for row in part(read)]
    if not rows:
        return "Not built yet: `make run`."
    head = ["| claim | setting | measured | control | file |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def attention(read: Read) -> Iterator[tuple[str, ...]]:
    """Attention that starts from kernel PCA: differences in NMSE, paired by seed; below zero is better."""
    for path in ("results/stars/attention-full/table.json", "results/stars/attention/table.json"):
        table = read(path) or {"conditions": []}
        for condition in table["conditions"]:
            against = {arm: condition["paired"]["kpca-warm"][arm] for arm in ("small", "linear-pca")}
            small, linear = (
                f"{d['mean']:+.4f} [{d['interval'][0]:+.4f}, {d['interval'][1]:+.4f}]" for d in against.values()
            )
            setting = f"{condition['n_train']} spectra, noise x {condition['noise']:g}, {len(table['seeds'])} seeds"
            yield ("attention gains from starting at kernel PCA", setting, f"NMSE {small} against `small`",
                   f"{linear} against `linear-pca`", f"`{path}`")  # fmt: skip


def denoising(read: Read) -> Iterator[tuple[str, ...]]:
    """Principal component pursuit finds hits: beside the best rank of PCA."""
    path = "results/stars/denoised/metrics.json"
    metrics = read(path) or {"methods": []}
    methods = {m["method"]: m for m in reversed(metrics["methods"])}
    if {"pcp", "pca"} <= methods.keys():
        words = [
            f"{m['detail']}: precision {m['precision']:.3f}, gain {m['snr_gain_db']:.1f} dB"
            for m in (methods["pcp"], methods["pca"])
        ]
        yield ("pursuit separates hits from spectra", f"{metrics['n_compared']} spectra", words[0],
               f"PCA, {words[1]}", f"`{path}`")  # fmt: skip


def weights(read: Read) -> Iterator[tuple[str, ...]]:
    """Checkpoints lie in few directions: held-out error beside random walks of the same steps."""
    for name in ("trajectory", "pooled"):
        path = f"results/weights/{name}/metrics.json"
        metrics = read(path)
        if metrics:
            last = metrics["curve"][-1]
            walk = f"walks {shares(metrics['shares_walk'])}; {last['nmse_held_out_walk']:.3f}"
            yield ("checkpoints of trainings lie in few directions", f"`{name}`, k = {last['k']}",
                   f"first two shares {shares(metrics['shares'])}; held-out error {last['nmse_held_out']:.3f}",
                   walk, f"`{path}`")  # fmt: skip


def shares(values: list[float]) -> str:
    """Write two shares of the variance."""
    return " and ".join(f"{100 * value:.0f} %" for value in values[:2])


def experts(read: Read) -> Iterator[tuple[str, ...]]:
    """A bank of shared matrices beats cut singular value decompositions of as many parameters."""
    path = "results/tables/default/experts.json"
    rows = (read(path) or {"rows": []})["rows"]
    for size in sorted({row["size"] for row in rows if row["role"] == "bank"}):
        banks = [row for row in rows if row["size"] == size and row["role"] == "bank"]
        rivals = [row for row in rows if row["size"] == size and row["method"] == "truncated SVD"]
        if rivals:
            best = min(banks, key=lambda row: row["relative_error"])
            setting = f"{best['parameters']:.2f} of the parameters, {best['n_trainings']} trainings"
            yield ("a shared bank of experts beats truncated SVD", setting, f"`{best['method']}`: {judged(best)}",
                   judged(rivals[0]), f"`{path}`")  # fmt: skip


def judged(row: dict[str, Any]) -> str:
    """Write error, accuracy and likelihood of replaced experts."""
    words = [f"error {row['relative_error']:.3f}"]
    return ", ".join([*words, f"accuracy {spread(row, 'accuracy')}", f"NLL {spread(row, 'nll')}"])


def spread(row: dict[str, Any], key: str) -> str:
    """Write a mean and its half width, where there is one."""
    half = row.get(f"{key}_half")
    return f"{row[key]:.3f}" + (f" ± {half:.3f}" if half is not None else "")


def optimizers(read: Read) -> Iterator[tuple[str, ...]]:
    """SpectraTEON trains better than AdamW: validation losses after equal steps."""
    for race in ("full/patches", "full/text", "reduced/patches"):
        folder = f"results/optimizers/scenes/{race}"
        losses = {name: read(f"{folder}/{name}.json") for name in ("spectra-teon", "adamw", "torch-muon")}
        if all(losses.values()):
            runs = {name: [run["loss"] for run in document["runs"]] for name, document in losses.items()}
            words = {name: f"{statistics.fmean(values):.3f}{half_width(values)}" for name, values in runs.items()}
            kind = "rates swept" if race.startswith("full") else "rates as they stand, few steps"
            setting = f"race on {race.split('/')[1]}, {len(runs['adamw'])} seeds, {kind}"
            yield ("SpectraTEON trains better than AdamW", setting, f"loss {words['spectra-teon']}",
                   f"AdamW {words['adamw']}, torch's Muon {words['torch-muon']}",
                   f"`{folder}/spectra-teon.json`")  # fmt: skip


def half_width(values: list[float]) -> str:
    """Write half the 95 % interval of a mean, by Student's t; nothing for one value."""
    if len(values) < 2:
        return ""
    return f" ± {stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)):.3f}"
