"""Train the small mixture of experts on the digits, and write it as a checkpoint whose experts the loader reads."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from eigenloom.nn.checkpoint import FORMAT, VERSION
from eigenloom.nn.digits import Digits
from eigenloom.nn.moe import MoEConfig, SmallMoE
from eigenloom.nn.moe_checkpoint import ARCHITECTURE, write_moe
from eigenloom.nn.moe_training import MoETraining, judge_logits, train_moe
from eigenloom.nn.training import write_history
from eigenloom.progress import Console
from eigenloom.store.atomic import explained, write_json
from job import Job, run


def main(job: Job) -> None:
    """Split, train, judge, write."""
    spec = job.spec
    digits = Digits.split(spec["data"]["n_test"], spec["data"]["seed"])
    training = MoETraining(**spec["training"])
    module = SmallMoE(MoEConfig(**spec["model"]), spec["seed"])
    name = f"{job.out.parts[-4]}-{job.out.parent.name}"
    console = Console(Path("logs", "train_moe", f"{name}.jsonl"))
    losses = train_moe(module, digits.train_x, digits.train_y, training, seed=spec["seed"], progress=console)
    with torch.no_grad():
        logits = module(digits.test_x)
    metrics = asdict(judge_logits(logits, digits.test_y, logits))
    logging.getLogger("eigenloom").info("test: %s", metrics)
    with explained(job.out):
        job.out.unlink(missing_ok=True)
    files = write_moe(job.out.parent, module)
    files["history.csv"] = write_history(job.out.with_name("history.csv"), losses, training.schedule, training.lr)
    write_json(job.out.with_name("run.json"), job.facts(**console.close()))
    edge = {"format": FORMAT, "version": VERSION, "architecture": ARCHITECTURE, "config": spec["model"]}
    write_json(job.out, {**edge, "metrics": metrics, "files": files, "spec": spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main)
