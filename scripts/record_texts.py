"""Record the activations of one shard: run a slice of the sequences through the network, keep its blocks' outputs."""

from eigenloom.batches import resolve_device
from eigenloom.errors import DataError
from eigenloom.nn.checkpoint import read_model_edge
from eigenloom.sources.pretrained_text import TokenRecorder, extract_tokens, open_text_model
from eigenloom.sources.texts import TextSet
from eigenloom.store.atomic import write_json
from eigenloom.store.protocol import Layout
from eigenloom.store.writer import write_shard
from job import Job, run


def main(job: Job) -> None:
    """Write one ``acts*.bin`` and its edge."""
    spec, texts = job.spec, TextSet(job["examples"])
    if len(texts) != spec["n_examples"]:
        raise DataError(f"{job['examples']}: holds {len(texts)} sequences, but n_examples is {spec['n_examples']}")
    model = open_text_model(job["model"], read_model_edge(job["model"]))
    layers, dtype, bos = spec["layers"], spec["forward_dtype"], texts.has_bos
    recorder = TokenRecorder(model, layers, resolve_device(job.device), dtype)
    _, _, length, d_model = next(extract_tokens(recorder, texts.tokens[:1], bos, 1)).shape
    layout = Layout(len(texts), tuple(layers), length - bos, bos, d_model, spec["max_tokens_per_shard"])
    first, stop = layout.shard_range(spec["shard"])
    batches = extract_tokens(recorder, texts.tokens[first:stop], bos, spec["batch_size"])
    facts = write_shard(job.out.parent, layout, spec["shard"], batches)
    edge = {
        "format": "eigenloom.shard", "version": 1, "shard": spec["shard"], **facts,
        "d_model": d_model, "tokens_per_example": length - bos, "cls_token": bos, "layers": layers,
        "grid": [1, length - bos], "architecture": model.architecture,
        "signature": model.signature(dtype, length - bos, bos), "spec": spec, "inputs": job.inputs,
    }  # fmt: skip
    write_json(job.out.with_suffix(".run.json"), job.facts(examples=stop - first))
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "examples", "model")
