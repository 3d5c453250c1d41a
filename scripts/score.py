"""Score one basis, layer and coding: reconstruction, probe and floors in one metrics.json."""

from eigenloom.report import scores
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def main(job: Job) -> None:
    """Merge the edges; write the tables of classes and features, then metrics.json, which names them."""
    reconstruction = scores.read_reconstruction(job["reconstruction"])
    probe = scores.read_edge(job["probe"], "probe")
    floor_reconstruction = floor_probe = None
    if "floor_probe" in job:
        floor_reconstruction = scores.read_reconstruction(job["floor_reconstruction"])
        floor_probe = scores.read_edge(job["floor_probe"], "probe")
    basis = scores.read_edge(job["basis"]) if "basis" in job else None
    document = scores.merge(job.spec, job.inputs, reconstruction, probe, floor_reconstruction, floor_probe, basis)
    texts = {
        "per_class.csv": scores.csv_text(scores.class_rows(probe, floor_probe), scores.PER_CLASS),
        "features.csv": scores.csv_text(scores.feature_rows(probe)),
    }
    document["files"] = {
        name: {"bytes": len(text.encode()), "sha256": write_text(job.out.with_name(name), text)}
        for name, text in texts.items()
    }
    write_json(job.out, document)


if __name__ == "__main__":
    run(main, "reconstruction", "probe", "floor_reconstruction", "floor_probe", "basis")
