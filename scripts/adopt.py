"""Adopt a recording that exists already: check it, digest its shards, and write the ``store.json`` that names it."""

from eigenloom.store.adoption import adopt_recording
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write ``run.json``, then ``store.json``; nothing where the recording lies."""
    spec = job.spec
    write_json(job.out.with_name("run.json"), job.facts())
    adopt_recording(
        job.out,
        spec["path"],
        source=spec["source"],
        split=spec["split"],
        classes=spec["classes"],
        void=spec["void"],
        checksums=spec["checksums"],
        spec=spec,
    )


if __name__ == "__main__":
    run(main)
