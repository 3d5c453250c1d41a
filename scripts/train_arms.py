"""Train a small transformer on spectra once per arm: the same spectra, order and steps, other queries and keys."""

from pathlib import Path

import torch

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.evaluation.arms import BASELINE, FORMAT, VERSION, epochs_to
from eigenloom.nn.spectrum_vit import SpectrumShape
from eigenloom.nn.warm_arms import Ingredients, build_arm, entropy_and_deviation, n_trainable
from eigenloom.nn.warm_training import Course, LabelledSpectra, judge_arm, train_arm
from eigenloom.progress import Console
from eigenloom.sources.patches import PatchRows
from eigenloom.store.atomic import write_json
from job import Job, run
from surveys import survey_of


def main(job: Job) -> None:
    """Train and judge every arm; write one result each, the baseline's last."""
    spec, survey = job.spec, survey_of(job)
    sizes = {"train": (0, spec["n_train"]), "val": (spec["n_most"], spec["n_val"])}
    sizes["test"] = (spec["n_most"] + spec["n_val"], spec["n_test"])
    rows = {name: survey.split(spec["seed"], *size) for name, size in sizes.items()}
    treated = {"bad_pixels": spec["bad_pixels"], "normalise": spec["normalise"]}
    data = {name: LabelledSpectra.read(survey, r, spec["labels"], **treated) for name, r in rows.items()}
    cut = {"patch_size": spec["patch"], "patches_per_spectrum": spec["patches_per_spectrum"], "seed": spec["seed"]}
    patches = torch.cat([batch.clone() for batch in PatchRows(survey, rows["train"], **cut, **treated)])
    widths = {key: spec[key] for key in ("patch", "stride", "dim", "depth", "heads")}
    shape = SpectrumShape(n_pixels=survey.n_pixels, n_labels=len(spec["labels"]), **widths)
    batch = data["train"].flux[: spec["batch_size"]]
    made_of = Ingredients(shape, KernelPCA.load(job["basis"]), patches, batch, spec["target_logit_std"], spec["repeat"])
    course = Course(*(spec[key] for key in ("epochs", "freeze_qk_epochs", "batch_size", "lr", "weight_decay")))
    console = Console(lines=Path("logs", "train_arms", *job.out.parts[-5:-1]).with_suffix(".jsonl"))
    found = {}
    for arm in spec["arms"]:
        model = build_arm(arm, made_of)
        entropy, deviation = entropy_and_deviation(model, batch)
        history = train_arm(arm, model, data["train"], data["val"], course, spec["repeat"])
        means = [sum(values) / len(values) for values in history]
        found[arm] = {
            "format": FORMAT, "version": VERSION, "arm": arm, "seed": spec["repeat"], "n_train": spec["n_train"],
            "labels": spec["labels"], "parameters": n_trainable(model), "entropy": entropy, "logit_std": deviation,
            "val_nmse": means, "val_nmse_by_label": history,
            "test": judge_arm(model, data["train"], data["test"], spec["noise"], spec["repeat"]),
        }  # fmt: skip
        console.log(f"train {arm}", course.epochs, nmse=means[-1])
    assert len({result["parameters"] for result in found.values()}) == 1
    goal = found[BASELINE]["val_nmse"][-1]
    for arm in reversed(spec["arms"]):
        result = {**found[arm], "epochs_to_cold": epochs_to(found[arm]["val_nmse"], goal)}
        write_json(job.out.with_name(f"{arm}.json"), {**result, "spec": spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "survey", "basis")
