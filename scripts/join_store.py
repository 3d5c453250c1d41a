"""Join the shards of one split into a recording: ``metadata.json``, ``shards.json``, ``store.json``."""

from eigenloom.store.atomic import write_json
from eigenloom.store.joining import join_store
from job import Job, run


def main(job: Job) -> None:
    """Check the edges against each other and write the descriptions; ``store.json`` comes last."""
    write_json(job.out.with_name("run.json"), job.facts())
    join_store(
        job.out.parent,
        job.spec,
        examples=job["examples"],
        shards=job.lists["shards"],
        labels=job.lists.get("labels", [None])[0],
        inputs=job.inputs,
    )


if __name__ == "__main__":
    run(main, "examples", "model", "shards", "labels")
