"""Rebuild networks from few numbers and judge them, beside the mean network, random directions and random walks."""

from eigenloom.batches import resolve_device
from eigenloom.codes.weights import WeightBasis
from eigenloom.nn.checkpoint import read_model_edge
from eigenloom.nn.rebuilt import Judge, snapshots_of
from eigenloom.nn.weights import Collection, csv_text, measure
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def main(job: Job) -> None:
    """Open the basis and every checkpoint, measure, judge, write the curve, then the metrics."""
    spec, trainings = job.spec, job.lists["trainings"]
    edges = {path: read_model_edge(path) for path in trainings}
    collection = Collection.open(
        WeightBasis.open(job["basis"]),
        {path.parent.name: (edge, snapshots_of(edge, path)) for path, edge in edges.items()},
        spec["held_out"],
    )
    judge = Judge(trainings[0], job["val"], spec["n_images"], resolve_device(job.device))
    document = measure(collection, judge, spec["k"], spec["judged"], spec["seed"])
    text = csv_text(document["curve"])
    files = {"curve.csv": {"bytes": len(text.encode()), "sha256": write_text(job.out.with_name("curve.csv"), text)}}
    write_json(job.out, {**document, "files": files, "spec": spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "basis", "trainings", "val")
