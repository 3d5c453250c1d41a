"""Give every spectrum of a split a class: one of its labels, cut into ranges."""

import numpy as np

from eigenloom.sources.spectra_set import open_spectra
from eigenloom.sources.survey import classes_of
from eigenloom.store.atomic import write_json
from eigenloom.store.writer import write_labels
from job import Job, run


def main(job: Job) -> None:
    """Write ``labels.bin`` and its edge."""
    spectra = open_spectra(job["examples"])
    name, bins = job.spec["label"], job.spec["bins"]
    values, unit = spectra.survey.label(name)
    classes, numbers = classes_of(values, bins, name, unit)
    labels = numbers[spectra.rows][:, None]
    facts = write_labels(job.out.parent, labels)
    edge = {
        "format": "eigenloom.labels",
        "version": 1,
        **facts,
        "classes": classes,
        "void": 0,
        "rule": f"{name} in {bins} classes of equal size" if isinstance(bins, int) else f"{name} between edges",
        "counts": np.bincount(labels.ravel(), minlength=len(classes)).tolist(),
        "spec": job.spec,
        "inputs": job.inputs,
    }
    write_json(job.out.with_name("labels.run.json"), job.facts())
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "examples", "survey")
