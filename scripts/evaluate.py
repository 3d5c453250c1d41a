"""Measure how well a basis reconstructs rows it was not fitted on, and how evenly it uses its features."""

from eigenloom.batches import resolve_device
from eigenloom.codes.checks import layer_number, matching_basis
from eigenloom.errors import MismatchError
from eigenloom.evaluation.reconstruction import reconstruct
from eigenloom.moments import Moments
from eigenloom.progress import Console
from eigenloom.provenance import file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import Artifact, read_artifact
from eigenloom.store.atomic import write_json, write_text
from eigenloom.store.recording import open_store
from job import Job, run


def check_moments(job: Job, moments: Artifact, fitted: Artifact) -> None:
    """Refuse moments of other rows than those evaluated, or of another layer."""
    found = [moments.parameters["store_sha256"], moments.parameters["layer"], fitted.parameters["layer"]]
    wanted = [file_digest(job["store"]), job.spec["layer"], job.spec["layer"]]
    for one, other in zip(found, wanted, strict=True):
        if one != other:
            raise MismatchError(f"{job['moments']}: measured on {one}, but the rows are of {other}; measure them again")


def main(job: Job) -> None:
    """Walk the split once, shard by shard; write the curve, then the numbers."""
    spec = job.spec
    store = open_store(job["store"])
    basis = matching_basis(job["basis"], store, spec["layer"], spec.get("allow_shift", False))
    layer = layer_number(store, spec["layer"])
    moments, fitted = (read_artifact(job[name], kind="moments") for name in ("moments", "fit_moments"))
    check_moments(job, moments, fitted)
    result = reconstruct(
        basis,
        (ActivationRows(store, layer, shards=[shard]) for shard in range(len(store.shards))),
        moments=Moments.from_arrays(moments.arrays, moments.parameters),
        fit_mean=fitted.arrays["mean"],
        topk=spec.get("topk", ()),
        device=resolve_device(job.device),
        progress=Console(),
    )
    write_text(job.out.with_name("nmse_curve.csv"), result.curve_csv())
    document = {
        "format": "eigenloom.reconstruction",
        "version": 1,
        "source": (store.sidecar or {}).get("source"),
        "layer": spec["layer"],
        "basis": {"kind": basis.kind, "geometry": basis.geometry, "k": basis.n_elements},
        **result.document(),
        "spec": spec,
        "inputs": job.inputs,
    }
    write_json(job.out, document)


if __name__ == "__main__":
    run(main, "store", "basis", "moments", "fit_moments")
