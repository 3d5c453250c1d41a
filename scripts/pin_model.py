"""Fix which pretrained network a source records: its commit, and the digests of its configuration and its weights."""

import os

from eigenloom.nn.checkpoint import FORMAT, VERSION
from eigenloom.sources.pretrained import pin_model
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the edge of the network; nothing else is copied."""
    facts = pin_model(job.spec["model"], download=os.environ.get("EIGENLOOM_DOWNLOAD") == "true")
    edge = {"format": FORMAT, "version": VERSION, **facts, "files": {}, "spec": job.spec, "inputs": job.inputs}
    write_json(job.out.with_name("run.json"), job.facts())
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main)
