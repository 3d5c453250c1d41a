"""Record the spectra of one shard, normalised: an example is a spectrum, a spectrum one token of the only layer."""

from eigenloom.errors import DataError
from eigenloom.sources.spectra import ARCHITECTURE, signature
from eigenloom.sources.spectra_set import open_spectra
from eigenloom.store.atomic import write_json
from eigenloom.store.protocol import Layout
from eigenloom.store.writer import write_shard
from job import Job, run


def main(job: Job) -> None:
    """Write one ``acts*.bin`` and its edge."""
    spec, spectra = job.spec, open_spectra(job["examples"])
    if len(spectra) != spec["n_examples"]:
        raise DataError(f"{job['examples']}: holds {len(spectra)} spectra, but n_examples is {spec['n_examples']}")
    layers = tuple(spec["layers"])
    layout = Layout(len(spectra), layers, 1, False, spectra.survey.n_pixels, spec["max_tokens_per_shard"])
    first, stop = layout.shard_range(spec["shard"])
    rows = (batch.numpy()[:, None, None] for batch in spectra.batches(first, stop))
    facts = write_shard(job.out.parent, layout, spec["shard"], rows)
    edge = {
        "format": "eigenloom.shard", "version": 1, "shard": spec["shard"], **facts,
        "d_model": layout.d_model, "tokens_per_example": 1, "cls_token": False, "layers": list(layers),
        "grid": [1, 1], "architecture": ARCHITECTURE,
        "signature": signature(spectra.survey, spectra.bad_pixels, spectra.normalise),
        "spec": spec, "inputs": job.inputs,
    }  # fmt: skip
    write_json(job.out.with_suffix(".run.json"), job.facts(examples=stop - first))
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "examples", "survey")
