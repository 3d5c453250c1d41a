"""Fix which tokens a split consists of: texts in a seeded order, cut into sequences."""

from eigenloom.nn.checkpoint import read_model_edge
from eigenloom.sources.pretrained import unchanged
from eigenloom.sources.texts import open_tokenizer, prepare_texts
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the edge of the texts and its siblings."""
    folder = unchanged(job["model"], read_model_edge(job["model"]))
    keys = ("classes", "n_tokens", "bos", "seed", "first", "n_examples")
    own = {key: job.spec[key] for key in keys}
    prepare_texts(job.out, job.spec["texts"], open_tokenizer(folder), **own, spec=job.spec, inputs=job.inputs)
    write_json(job.out.with_name("run.json"), job.facts())


if __name__ == "__main__":
    run(main, "model")
