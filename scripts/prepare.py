"""Fix which images a split consists of: draw the embedded scenes, or list a folder."""

from eigenloom.sources.images import prepare_images
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the images edge and its siblings."""
    keys = ("seed", "split", "first", "n_examples")
    arguments = {key: job.spec[key] for key in keys}
    prepare_images(job.out, job.spec["images"], **arguments, spec=job.spec, inputs=job.inputs)
    write_json(job.out.with_name("run.json"), job.facts())


if __name__ == "__main__":
    run(main)
