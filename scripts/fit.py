"""Fit a basis to one layer of a recording, in the space its moments standardize."""

import os
from pathlib import Path

from eigenloom.bases.base import save_basis
from eigenloom.bases.registry import basis_class
from eigenloom.batches import resolve_device
from eigenloom.errors import MismatchError
from eigenloom.moments import Moments, Standardization, StandardizedRows
from eigenloom.progress import Console
from eigenloom.provenance import file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import Artifact, read_artifact
from eigenloom.store.recording import open_store
from job import Job, run


def check_moments(job: Job, artifact: Artifact) -> None:
    """Refuse moments of another recording or layer."""
    store_sha256 = file_digest(job["store"])
    for name, found, wanted in (
        ("store.json", artifact.parameters["store_sha256"][:8], store_sha256[:8]),
        ("layer", artifact.parameters["layer"], job.spec["layer"]),
    ):
        if found != wanted:
            raise MismatchError(
                f"{job['moments']}: measured on {name} {found}, but the rows to fit are of {wanted}; "
                f"run `snakemake --forcerun measure join_moments -- {job['moments']}`"
            )


def main(job: Job) -> None:
    """Standardize the rows, fit, save."""
    layer = job.spec["layer"]
    store, artifact = open_store(job["store"]), read_artifact(job["moments"], "moments")
    check_moments(job, artifact)
    moments = Moments.from_arrays(artifact.arrays, artifact.parameters)
    standardization = Standardization.from_moments(moments, job.spec["standardize"], layer)
    rows = ActivationRows(store, int(layer.removeprefix("layer-")))
    parameters = dict(job.spec["basis"])
    source, _, basis_name = job.out.parts[-5:-2]  # artifacts/{source}/bases/{basis}/{layer}/meta.json
    console = Console(
        lines=Path("logs", "fit", source, basis_name, f"{layer}.jsonl"),
        wandb_project=os.environ.get("EIGENLOOM_WANDB_PROJECT"),
        name=f"{source}/{basis_name}/{layer}",
    )
    basis = basis_class(parameters.pop("kind")).fit(
        StandardizedRows(rows, standardization, moments),
        seed=job.spec["seed"], device=resolve_device(job.device), resume=job.snapshot, progress=console, **parameters,
    )  # fmt: skip
    save_basis(
        basis, job.out.parent, spec=job.spec, inputs=job.inputs, run=job.facts(**console.close()),
        origin={"layer": layer, "signature": store.signature},
    )  # fmt: skip


if __name__ == "__main__":
    run(main, "store", "moments")
