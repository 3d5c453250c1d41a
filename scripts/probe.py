"""Fit the one-dimensional logistic probe of every feature and class, and measure the best feature of each class."""

from eigenloom.batches import resolve_device
from eigenloom.errors import ConfigError
from eigenloom.probes.fit import fit_probe
from eigenloom.probes.inputs import open_inputs
from eigenloom.progress import Console
from eigenloom.store.artifact import write_artifact
from job import Job, run


def main(job: Job) -> None:
    """Open recordings, basis and codes, fit, write the artifact."""
    spec, settings = job.spec, dict(job.spec["probe"])
    if ("train_codes" in job) != ("val_codes" in job):
        raise ConfigError("--train-codes and --val-codes go together: give both manifests, or neither to stream")
    void = settings.pop("void", "masked")
    inputs = open_inputs(
        (job["train"], job["val"]),
        job["basis"],
        layer=spec["layer"],
        coding=spec["coding"],
        codes=(job["train_codes"], job["val_codes"]) if "train_codes" in job else None,
        void=void,
        allow_shift=spec.get("allow_shift", False),
        device=resolve_device(job.device),
    )
    progress = Console()
    result = fit_probe(
        inputs.codes[0],
        inputs.labels[0],
        inputs.codes[1],
        inputs.labels[1],
        classes=inputs.classes,
        void=inputs.void,
        device=str(resolve_device(job.device)),
        **settings,
    )
    scalars = {name: value for name, value in result.metrics.scalars.items() if value is not None}
    progress.log("probe", result.metrics.counts["max_steps"], **scalars)
    write_artifact(
        job.out.parent,
        kind="probe",
        parameters={**result.document(), **inputs.facts(), "layer": spec["layer"], "void": void},
        arrays=result.arrays(),
        spec=spec,
        inputs=job.inputs,
        run=job.facts(**progress.close()),
    )


if __name__ == "__main__":
    run(main, "train", "val", "basis", "train_codes", "val_codes")
