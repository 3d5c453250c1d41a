"""Give every patch of a split a label, by majority over its pixels' labels."""

import numpy as np

from eigenloom.errors import DataError
from eigenloom.sources.images import open_images
from eigenloom.sources.patch_labels import patch_labels
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import write_json
from eigenloom.store.writer import write_labels
from job import Job, run


def main(job: Job) -> None:
    """Write ``labels.bin`` and its edge."""
    images = open_images(job["images"])
    if not images.has_masks:
        raise DataError(
            f"{job['images']}: these images have no masks; patch labels need scenes, segmentation_folder or ade20k"
        )
    preprocess = Preprocess(job.spec["patch"], **job.spec.get("preprocess", {}))
    rule = job.spec["rule"]
    rows = [
        patch_labels(preprocess.mask(images.mask(i)), preprocess.patch, images.void, rule) for i in range(len(images))
    ]
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{job['images']}: images differ in their number of patches; set preprocess.resize")
    labels = np.stack(rows)
    facts = write_labels(job.out.parent, labels)
    edge = {
        "format": "eigenloom.labels",
        "version": 1,
        **facts,
        "classes": list(images.classes),
        "void": images.void,
        "rule": rule,
        "counts": np.bincount(labels.ravel(), minlength=len(images.classes)).tolist(),
        "spec": job.spec,
        "inputs": job.inputs,
    }
    write_json(job.out.with_name("labels.run.json"), job.facts())
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "images")
