"""Measure how well a basis reconstructs rows it was not fitted on, and how evenly it uses its features."""

from eigenloom.batches import resolve_device
from eigenloom.codes.checks import layer_number, matching_basis
from eigenloom.evaluation.reconstruction import reconstruct
from eigenloom.moments import Moments
from eigenloom.progress import Console
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import read_artifact
from eigenloom.store.atomic import write_json, write_text
from eigenloom.store.recording import open_store
from job import Job, run


def main(job: Job) -> None:
    """Walk the split once, shard by shard; write the curve, then the numbers."""
    spec = job.spec
    store = open_store(job["store"])
    basis = matching_basis(job["basis"], store, spec["layer"], spec.get("allow_shift", False))
    layer = layer_number(store, spec["layer"])
    moments, fitted = (
        Moments.from_arrays(artifact.arrays, artifact.parameters)
        for artifact in (read_artifact(job[name], kind="moments") for name in ("moments", "fit_moments"))
    )
    result = reconstruct(
        basis,
        (ActivationRows(store, layer, shards=[shard]) for shard in range(len(store.shards))),
        moments=moments,
        fit_mean=fitted.mean,
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
