"""Fix which text transformer a source records: its commit, and the digests of its files."""

import os

from eigenloom.nn.checkpoint import FORMAT, VERSION
from eigenloom.sources.pretrained_text import pin_text_model
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the edge of the network; nothing else is copied."""
    facts = pin_text_model(job.spec["model"], download=os.environ.get("EIGENLOOM_DOWNLOAD") == "true")
    edge = {"format": FORMAT, "version": VERSION, **facts, "files": {}, "spec": job.spec, "inputs": job.inputs}
    write_json(job.out.with_name("run.json"), job.facts())
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main)
