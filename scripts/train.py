"""Train the small ViT on the patch labels of fit_train, keep checkpoints, and hold it against its bar on fit_val."""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eigenloom.batches import resolve_device
from eigenloom.nn.checkpoint import ARCHITECTURE, FORMAT, VERSION, describe, write_model
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.segmentation import check_bar, judge
from eigenloom.nn.training import MakeOptimizer, Schedule, adamw, train, write_history
from eigenloom.nn.trajectory import Trajectory, snapshot_steps
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.optim.spectra_teon import SpectraTEON
from eigenloom.progress import Console
from eigenloom.sources.images import open_images
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import explained, write_json
from job import Job, run


def spectra_teon(lr: float, **keys: Any) -> MakeOptimizer:
    """Return a factory of SpectraTEON, every parameter routed."""
    return lambda module: SpectraTEON.from_model(module, lr, **keys)


OPTIMIZERS: dict[str, Callable[..., MakeOptimizer]] = {"adamw": adamw, "spectra_teon": spectra_teon}


def main(job: Job) -> None:
    """Train, judge, write."""
    spec = job.spec["model"]
    device = resolve_device(job.device)
    preprocess = Preprocess(spec["patch"], **spec["preprocess"])
    splits = {name: LabelledPatches.from_images(open_images(job[name]), preprocess, device) for name in job.lists}
    data = splits["train"]
    optimizer = dict(spec["optimizer"])
    schedule = Schedule(spec["steps"], spec["batch_size"], spec["warmup"], optimizer.pop("clip"), spec["void_weight"])
    sizes = {key: spec[key] for key in ("patch", "width", "depth", "heads")}
    model = SmallViT(ViTConfig(data.grid, n_labels=len(data.classes), **sizes), job.spec["seed"]).to(device)
    # artifacts/{source}/model/meta.json, or artifacts/{source}/runs/{run}/meta.json
    name = "-".join(job.out.parent.parts[-3:]).removeprefix("artifacts-").removesuffix("-model")
    console = Console(Path("logs", "train", f"{name}.jsonl"), os.environ.get("EIGENLOOM_WANDB_PROJECT"), name)
    make_optimizer = OPTIMIZERS[optimizer.pop("kind")](**optimizer)
    identity = {"spec": job.spec, "inputs": job.inputs}
    steps = snapshot_steps(schedule.steps, job.spec["snapshots"])
    trajectory = Trajectory(job.snapshot.with_name("snapshots"), identity, steps)
    losses = train(
        model, data, schedule, make_optimizer, seed=job.spec["seed"], resume=job.snapshot, identity=identity,
        progress=console, on_step=trajectory,
    )  # fmt: skip
    metrics = judge(model, data, splits["val"], schedule.void_weight)
    logging.getLogger("eigenloom").info("fit_val: %s", metrics)
    check_bar(metrics, spec["bar"])
    with explained(job.out):
        job.out.unlink(missing_ok=True)
    files = write_model(job.out.parent, model, preprocess) | trajectory.publish(job.out.parent)
    files["history.csv"] = write_history(job.out.with_name("history.csv"), losses, schedule, optimizer["lr"])
    write_json(job.out.with_name("run.json"), job.facts(**console.close()))
    edge = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": ARCHITECTURE,
        "config": describe(model.config, preprocess),
        "snapshots": steps,
    }
    facts = {"metrics": asdict(metrics), "bar": spec["bar"], "files": files, "spec": job.spec, "inputs": job.inputs}
    write_json(job.out, {**edge, **facts})


if __name__ == "__main__":
    run(main, "train", "val")
