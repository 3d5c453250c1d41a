"""Race one optimizer on one task: sweep its learning rates where asked to, then train from several fresh seeds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from eigenloom.nn.char_gpt import Characters
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.race import Outcome, PatchTask, Task, TextTask, sweep
from eigenloom.nn.training import Schedule
from eigenloom.nn.vit import ViTConfig
from eigenloom.optim.contestants import contestant
from eigenloom.sources.images import open_images
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import write_json
from job import Job, run

SWEEP_SEED = 1000
"""Rates are chosen on this seed and judged on others."""
MOST_RATES = 9


def main(job: Job) -> None:
    """Sweep, train, write the losses, and the CPU seconds beside them."""
    spec, facts = job.spec, dict[str, Any]()
    task = make_task(job, facts)

    def trained(seed: int, lr: float, adamw_lr: float) -> Outcome:
        return task.run(contestant(spec["entry"], lr, adamw_lr, spec["weight_decay"]), seed)

    rates, sweeps = sweep_rates(spec, trained) if spec["sweep"] else (spec["rates"], {})
    outcomes = [trained(seed, **rates) for seed in range(spec["seeds"])]
    window = spec["window"]
    timing = [windows(outcome.seconds, window).mul(window).cumsum(0).tolist() for outcome in outcomes]
    write_json(job.out.with_name(f"{job.out.stem}.timing.json"), job.facts(optimizer_seconds=timing))
    curves = [[round(float(x), 5) for x in windows(outcome.losses, window)] for outcome in outcomes]
    runs = [
        {"seed": seed, "loss": outcome.loss, "curve": curve}
        for seed, (outcome, curve) in enumerate(zip(outcomes, curves, strict=True))
    ]
    document = {"format": "eigenloom.race", "version": 1, "rates": rates, "sweeps": sweeps, "runs": runs, **facts}
    write_json(job.out, {**document, "spec": spec, "inputs": job.inputs})


def make_task(job: Job, facts: dict[str, Any]) -> Task:
    """Make the task of a specification; ``facts`` gets what its data are known by."""
    spec, shape = job.spec, job.spec["shape"]
    schedule = Schedule(spec["steps"], shape["batch_size"], spec["warmup"], void_weight=shape.get("void_weight", 0.0))
    sizes = {key: shape[key] for key in ("width", "depth", "heads")}
    if spec["task"] == "text":
        text = Characters.of_python_topics()
        facts["text"] = {"sha256": text.sha256, "characters": len(text.train) + len(text.val)}
        return TextTask(text, context=shape["context"], schedule=schedule, **sizes)
    preprocess = Preprocess(shape["patch"], **shape["preprocess"])
    splits = [
        LabelledPatches.from_images(open_images(job[n]), preprocess, torch.device("cpu")) for n in ("train", "val")
    ]
    config = ViTConfig(splits[0].grid, shape["patch"], n_labels=len(splits[0].classes), **sizes)
    return PatchTask(splits[0], splits[1], config, schedule)


def sweep_rates(spec: dict[str, Any], trained: Callable[..., Outcome]) -> tuple[dict[str, float], dict[str, Any]]:
    """Choose the rate of the matrices, then that of AdamW's part; AdamW itself has one rate."""
    rates, sweeps = dict(spec["rates"]), {}
    for name in ("adamw_lr",) if spec["entry"]["algorithm"] == "adamw" else ("lr", "adamw_lr"):

        def loss(name: str, rate: float) -> float:
            return trained(SWEEP_SEED, **{**rates, name: rate}).loss

        found = sweep(partial(loss, name), rates[name], MOST_RATES)
        rates[name] = found.best
        sweeps[name] = {"losses": sorted(found.losses.items()), "is_interior": found.is_interior}
    return rates, sweeps


def windows(values: torch.Tensor, window: int) -> torch.Tensor:
    """Average ``[steps]`` over consecutive windows, a rest at the end left out."""
    return values[: len(values) // window * window].view(-1, window).double().mean(1)


if __name__ == "__main__":
    run(main, "train", "val")
