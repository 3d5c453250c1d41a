"""Races of optimizers: intervals, what they allow to be said, and their figure.

A difference is claimed where the 95 % interval of the differences paired by seed excludes zero (Student's t). An entry
whose best learning rate lies on the edge of its sweep is shown and takes no part in claims.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from eigenloom.errors import StoreError
from eigenloom.report.drawing import colour, empty, legend, panels, plain_log, styled, svg
from eigenloom.store.atomic import read_json

Document = Mapping[str, Any]
CONFIDENCE = 0.95
BASELINE, PEER = "adamw", "torch-muon"
TASKS = {"patches": "patch labels, validation loss", "text": "next character, validation loss"}


@dataclass(frozen=True)
class Entry:
    """One optimizer on one task: losses by seed, training curves and cumulated CPU seconds ``[seeds, windows]``."""

    task: str
    name: str
    algorithm: str
    rates: Mapping[str, float]
    losses: np.ndarray
    curves: np.ndarray
    seconds: np.ndarray
    window: int
    on_edge: bool
    sweeps: Document

    @property
    def interval(self) -> tuple[float, float]:
        """Mean validation loss and half the width of its interval."""
        return interval(self.losses)

    @property
    def step_seconds(self) -> float:
        """Median over seeds of the CPU seconds of one optimizer step."""
        return float(np.median(self.seconds[:, -1]) / (self.window * self.seconds.shape[1]))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return mean and half the width of the 95 % interval of a few values; infinite for one value."""
    n = len(values)
    if n < 2:
        return float(values.mean()), math.inf
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / n**0.5)


def read_races(paths: Iterable[Path]) -> list[Entry]:
    """Read race files, sorted by task and name, and the timings beside them.

    Raises:
        StoreError: a file is no race.
    """
    return [_entry(path) for path in sorted(paths)]


def _entry(path: Path) -> Entry:
    """Read one file; task and name are parts of its path."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "eigenloom.race":
        raise StoreError(f"{path}: is not a race of optimizers; delete it and run `race` again")
    timing = read_json(path.with_name(f"{path.stem}.timing.json"))
    runs = document["runs"]
    return Entry(
        task=path.parts[-2],
        name=path.stem,
        algorithm=document["spec"]["entry"]["algorithm"],
        rates=document["rates"],
        losses=np.array([run["loss"] for run in runs]),
        curves=np.array([run["curve"] for run in runs]),
        seconds=np.array(timing["optimizer_seconds"]),
        window=document["spec"]["window"],
        on_edge=any(not found["is_interior"] for found in document["sweeps"].values()),
        sweeps=document["sweeps"],
    )


def better(a: Entry, b: Entry) -> bool | None:
    """Say whether ``a`` has a lower loss than ``b``, paired by seed; None where the interval holds zero."""
    mean, half = interval(a.losses - b.losses)
    return None if not abs(mean) > half else mean < 0


def race_sentences(entries: Sequence[Entry]) -> Iterator[str]:
    """Say what the intervals support, the best first whoever it is."""
    for task in sorted({entry.task for entry in entries}):
        all_of = [entry for entry in entries if entry.task == task]
        fair = sorted((e for e in all_of if not e.on_edge), key=lambda e: e.interval[0])
        if len(fair) < 2:
            continue
        swept = "" if all(e.sweeps for e in fair) else " at learning rates that were not swept"
        yield f"Optimizers, {TASKS[task]}{swept}: {_order(fair)}"
        by_name = {entry.name: entry for entry in fair}
        ours = [e for e in fair if e.algorithm in ("spectra", "spectra_teon")]
        if baseline := by_name.get(BASELINE):
            yield from (f"{TASKS[task]}: {line}" for line in _against(ours, baseline))
        if edged := [entry.name for entry in all_of if entry.on_edge]:
            yield f"{TASKS[task]}: {', '.join(edged)} had its best learning rate on the edge and is left out of claims."


def _order(fair: Sequence[Entry]) -> str:
    """Name the lowest loss and those it cannot be told apart from, then the others."""
    first, *others = fair
    alike = [e.name for e in others if better(first, e) is None]
    worse = [e.name for e in others if better(first, e)]
    mean, half = first.interval
    tied = f", which {len(first.losses)} seeds do not tell apart from {', '.join(alike)}" if alike else ""
    rest = f"; higher for {', '.join(worse)}" if worse else ""
    return f"the lowest mean is {first.name}'s, {mean:.3f} ± {half:.3f}{tied}{rest}."


def _against(ours: Sequence[Entry], baseline: Entry) -> Iterator[str]:
    """Compare the shaped entries with AdamW: loss at equal steps, CPU time of a step."""
    for verdict, words in ((True, "lower than"), (None, "not told apart from"), (False, "higher than")):
        if names := [e.name for e in ours if better(e, baseline) is verdict]:
            yield f"at equal steps the loss of {', '.join(names)} is {words} AdamW's."
    for entry in ours:
        ratio = entry.step_seconds / baseline.step_seconds
        yield f"a step of {entry.name} takes {ratio:.1f} times the CPU time of AdamW's."


def race_table(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Return one row per task and entry, best first, as text."""
    rows = []
    for entry in sorted(entries, key=lambda e: (e.task, e.interval[0])):
        mean, half = entry.interval
        rows.append(
            {
                "task": entry.task,
                "optimizer": entry.name + (" (edge)" if entry.on_edge else ""),
                "loss": f"{mean:.4f}",
                "±": f"{half:.4f}",
                "seeds": str(len(entry.losses)),
                "lr": f"{entry.rates['lr']:g}",
                "adamw_lr": f"{entry.rates['adamw_lr']:g}",
                "ms per step": f"{1e3 * entry.step_seconds:.2f}",
            }
        )
    return rows


def draw_races(entries: Sequence[Entry]) -> str:
    """Draw training loss against steps and against CPU seconds of the optimizer, and the curves of the sweeps."""
    if not entries:
        return empty("No optimizers were raced in this run.")
    tasks = sorted({entry.task for entry in entries})
    names = sorted({entry.name for entry in entries})
    swept = any(entry.sweeps for entry in entries)
    per_task = 3 if swept else 2
    with styled():
        figure, axes = panels(per_task * len(tasks), per_task)
        for row, task in enumerate(tasks):
            own = axes[per_task * row : per_task * (row + 1)]
            for entry in (entry for entry in entries if entry.task == task):
                _draw_entry(entry, own, colour(names, entry.name), DASHES[names.index(entry.name) // 8 % 2])
            own[0].set(title=f"{task}: training loss", xlabel="step")
            own[1].set(title=f"{task}: training loss", xlabel="optimizer CPU seconds", xscale="log")
            plain_log(own[1].xaxis)
            if swept:
                own[2].set(title=f"{task}: validation loss", xlabel="learning rate swept", xscale="log")
                plain_log(own[2].xaxis)
        legend(figure, axes)
        return svg(figure, "Race of optimizers")


DASHES = ("solid", (0, (4, 1.5)))


def _draw_entry(entry: Entry, axes: Sequence[Any], color: str, dashes: Any) -> None:
    """Draw the mean curve with its interval, over steps and seconds, and the sweep."""
    bounds = np.array([interval(column) for column in entry.curves.T])
    mean, half = bounds[:, 0], np.where(np.isfinite(bounds[:, 1]), bounds[:, 1], 0.0)
    steps = entry.window * np.arange(1, len(mean) + 1)
    for ax, x in ((axes[0], steps), (axes[1], np.median(entry.seconds, axis=0))):
        ax.plot(x, mean, color=color, linestyle=dashes, label=entry.name, linewidth=1.2)
        ax.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    losses = (entry.sweeps.get("lr") or entry.sweeps.get("adamw_lr") or {}).get("losses", [])
    if losses and len(axes) > 2:
        axes[2].plot(*zip(*losses, strict=True), color=color, linestyle=dashes, marker="o", label=entry.name)
