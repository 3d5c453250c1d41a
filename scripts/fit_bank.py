"""Fit banks to the experts of every training of a network, at every size."""

import time
from pathlib import Path

from eigenloom.batches import resolve_device
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.checkpoint import ExpertCheckpoint
from eigenloom.experts.collection import save_banks
from eigenloom.experts.settings import SeedingConfig
from eigenloom.experts.trainer import AlternatingBankTrainer
from eigenloom.experts.warm_start import create_warm_start
from eigenloom.progress import Console
from job import Job, run


def main(job: Job) -> None:
    """Open every checkpoint, fit every size, write all banks; the time of a seeding alone goes to ``run.json``."""
    spec = job.spec
    console = Console(Path("logs", "fit_bank", f"{'-'.join(job.out.parent.parts[-2:])}.jsonl"))
    seeding = SeedingConfig(**spec["seeding"], seed=spec["seed"])
    banks: dict[str, ExpertBank] = {}
    seconds: dict[str, float] = {}
    for rank, num_bases in spec["sizes"]:
        size = f"r{rank:02d}-m{num_bases:02d}"
        for edge in job.lists["trainings"]:
            sources = ExpertCheckpoint.open(edge.parent).sources(spec["families"])
            if size not in seconds:
                started = time.perf_counter()
                for source in sources.values():
                    create_warm_start(source, rank, num_bases, seeding)
                seconds[size] = round(time.perf_counter() - started, 4)
            trainer = AlternatingBankTrainer(
                rank, num_bases, seeding_config=seeding, seed=spec["seed"], device=resolve_device(job.device),
                progress=console, resume=job.snapshot.with_stem(f"{size}-{edge.parent.name}"), **spec["trainer"],
            )  # fmt: skip
            fitted, _ = trainer.train(sources)
            banks |= {f"{size}.{edge.parent.name}.{family}": bank for family, bank in fitted.items()}
    facts = job.facts(**console.close(), seeding_seconds=seconds)
    save_banks(job.out.parent, banks, spec=spec, inputs=job.inputs, run=facts)


if __name__ == "__main__":
    run(main, "trainings")
