"""How long-running work tells what it is doing: a bar, lines of JSON, optionally Weights & Biases.

Wall-clock figures go here and nowhere else, so that they never reach bytes that are compared.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

Sized = TypeVar("Sized")
logger = logging.getLogger("eigenloom")


class Progress:
    """The silent base: accepts everything, shows nothing."""

    def track(self, batches: Iterable[Sized], label: str, total: int, unit: str = "row") -> Iterator[Sized]:
        """Yield the batches unchanged while counting ``len(batch)`` of ``total`` rows (or ``unit``) under ``label``."""
        del label, total, unit
        yield from batches

    def log(self, phase: str, step: int, **values: float) -> None:
        """Record scalars of one step of one phase (``inertia=...``, ``lr=...``)."""


class Console(Progress):
    """A ``tqdm`` bar on stderr when it is a terminal, and one JSON line per logged step.

    Each line carries ``seconds`` since the start and ``rows_per_second`` of the phase so far. With
    ``wandb_project`` the same scalars go to Weights & Biases; mode and directory follow its environment
    variables, so ``WANDB_MODE=offline`` needs no network.
    """

    def __init__(self, lines: Path | None = None, wandb_project: str | None = None, name: str | None = None):
        """Append to ``lines`` when given; start a W&B run called ``name`` when a project is given."""
        self._started = time.perf_counter()
        self._rows = 0
        self._lines = lines
        self._run: Any = None
        if wandb_project:
            import wandb  # optional dependency, imported only when asked for

            self._run = wandb.init(project=wandb_project, name=name)

    def track(self, batches: Iterable[Sized], label: str, total: int, unit: str = "row") -> Iterator[Sized]:
        """Yield the batches and move a bar of rows."""
        with tqdm(total=total, desc=label, unit=unit, unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            for batch in batches:
                yield batch
                rows = len(batch)  # type: ignore[arg-type]
                self._rows += rows
                bar.update(rows)

    def log(self, phase: str, step: int, **values: float) -> None:
        """Write one JSON line, one log line, and the W&B step."""
        seconds = time.perf_counter() - self._started
        record = {"phase": phase, "step": step, **values, "seconds": round(seconds, 4), "rows": self._rows}
        record["rows_per_second"] = round(self._rows / seconds, 1) if seconds > 0 else 0.0
        text = json.dumps(record)
        logger.info("%s", text)
        if self._lines is not None:
            self._lines.parent.mkdir(parents=True, exist_ok=True)
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        if self._run is not None:
            self._run.log({f"{phase}/{key}": value for key, value in values.items()} | {"rows": self._rows})

    def close(self) -> dict[str, float]:
        """End the W&B run, if any, and return the totals for ``run.json``: seconds, rows, rows per second."""
        if self._run is not None:
            self._run.finish()
        seconds = time.perf_counter() - self._started
        return {"seconds": seconds, "rows": self._rows, "rows_per_second": self._rows / max(seconds, 1e-9)}
