"""Decompose the checkpoints of some trainings, those left out excepted."""

from pathlib import Path

from eigenloom.bases.weights import fit_weights
from eigenloom.batches import resolve_device
from eigenloom.nn.checkpoint import read_model_edge
from eigenloom.nn.rebuilt import snapshots_of
from eigenloom.progress import Console
from eigenloom.sources.checkpoints import Checkpoints
from job import Job, run


def main(job: Job) -> None:
    """Choose, fit, write."""
    spec = job.spec
    chosen: list[Path] = []
    for edge in job.lists["trainings"]:
        found = snapshots_of(read_model_edge(edge), edge)
        chosen += [path for place, path in enumerate(found) if place not in spec["held_out"]]
    console = Console(lines=Path("logs", "decompose", f"{spec['collection']}.jsonl"))
    fit_weights(
        Checkpoints(chosen, ledger=job.snapshot.with_suffix(".digests")), job.out.parent,
        seed=spec["seed"], device=resolve_device(job.device), resume=job.snapshot, progress=console,
        spec=spec, inputs=job.inputs, run=lambda: job.facts(**console.close()),
        **{name: spec[name] for name in ("n_components", "method", "block_size")},
    )  # fmt: skip


if __name__ == "__main__":
    run(main, "trainings")
