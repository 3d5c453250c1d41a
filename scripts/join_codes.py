"""Gather the parts of one split's codes into their manifest."""

from eigenloom.codes.manifest import write_manifest
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Check that the parts belong together and follow each other, then list them."""
    write_json(job.out.with_name("run.json"), job.facts())
    write_manifest(job.out, job.lists["parts"], spec=job.spec, inputs=job.inputs)


if __name__ == "__main__":
    run(main, "parts")
