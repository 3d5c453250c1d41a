"""Give every token of a split the label that the texts state for it."""

import numpy as np

from eigenloom.errors import DataError
from eigenloom.sources.texts import TextSet
from eigenloom.store.atomic import write_json
from eigenloom.store.writer import write_labels
from job import Job, run


def main(job: Job) -> None:
    """Write ``labels.bin`` and its edge."""
    texts = TextSet(job["examples"])
    if texts.labels is None or texts.classes is None:
        raise DataError(f"{job['examples']}: these texts have no labels; set classes")
    edge = {
        "format": "eigenloom.labels",
        "version": 1,
        **write_labels(job.out.parent, texts.labels),
        "classes": texts.classes,
        "void": 0,
        "rule": "label of the token",
        "counts": np.bincount(texts.labels.ravel(), minlength=len(texts.classes)).tolist(),
        "spec": job.spec,
        "inputs": job.inputs,
    }
    write_json(job.out.with_name("labels.run.json"), job.facts())
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "examples")
