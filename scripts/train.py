"""Train the small vision transformer of a source on its fit_train images, and hold it against its bar on fit_val."""

from typing import Any

import numpy as np
import torch

from eigenloom.batches import resolve_device
from eigenloom.nn.training import Bar, LabeledPatches, TrainingSettings, score, train
from eigenloom.nn.vit import ARCHITECTURE, ViTConfig, patchify, save_vit
from eigenloom.progress import Console
from eigenloom.sources.images import ImageSet, open_images
from eigenloom.sources.patch_labels import patch_labels
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def labeled(images: ImageSet, preprocess: Preprocess, rule: str) -> LabeledPatches:
    """Cut all images of a set into patches and label them."""
    pixels = np.stack([preprocess.pixels(images.image(i)) for i in range(len(images))])
    masks = np.stack([preprocess.mask(images.mask(i)) for i in range(len(images))])
    labels = patch_labels(masks, preprocess.patch, images.void, rule)
    return LabeledPatches(patchify(preprocess.scaled(pixels), preprocess.patch), torch.from_numpy(labels).long())


def main(job: Job) -> None:
    """Write the model's edge, configuration, weights and history."""
    model = job.spec["model"]
    preprocess = Preprocess(model["patch"], **model["preprocess"])
    images = open_images(job["train"])
    rule = job.spec["labels"]
    data, val = (labeled(open_images(job[name]), preprocess, rule) for name in ("train", "val"))
    grid = preprocess.grid(*images.image(0).shape[:2])
    sizes = {name: model[name] for name in ("patch", "width", "depth", "heads")}
    config = ViTConfig(grid, **sizes, n_labels=len(images.classes))
    settings = TrainingSettings(**{k: model[k] for k in ("steps", "batch_size", "warmup", "void_weight")},
                                clip=model["optimizer"]["clip"])  # fmt: skip
    options: dict[str, Any] = {k: v for k, v in model["optimizer"].items() if k not in ("kind", "clip")}
    device = resolve_device(job.device)
    progress = Console()
    vit, history = train(
        config, data, lambda m: torch.optim.AdamW(m.parameters(), **options, fused=True), settings,
        void=images.void, seed=job.spec["seed"], device=device, resume=job.snapshot,
        identity={"spec": job.spec, "inputs": job.inputs}, progress=progress,
    )  # fmt: skip
    counts = torch.bincount(data.labels.flatten(), minlength=config.n_labels).double()
    scores = score(vit, val, counts / counts.sum(), images.void)
    print("fit_val:", {name: round(value, 4) for name, value in scores.items()}, "bar:", model["bar"])
    Bar(**model["bar"]).check(scores)
    directory = job.out.parent
    files = save_vit(vit, directory)
    files["history.csv"] = {"sha256": write_text(directory / "history.csv", history.csv())}
    files["history.csv"]["bytes"] = (directory / "history.csv").stat().st_size
    write_json(directory / "run.json", job.facts(**progress.close()))
    facts = {"metrics": scores, "bar": model["bar"], "files": files, "spec": job.spec, "inputs": job.inputs}
    write_json(job.out, {"format": "eigenloom.model", "version": 1, "architecture": ARCHITECTURE, **facts})


if __name__ == "__main__":
    run(main, "train", "val")
