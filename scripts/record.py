"""Record the activations of one shard: run a slice of the images through the network and keep its blocks' outputs."""

from eigenloom.batches import resolve_device
from eigenloom.errors import DataError, StoreError
from eigenloom.nn.checkpoint import ARCHITECTURE, open_vit, read_model_edge
from eigenloom.sources.extraction import BlockRecorder, extract
from eigenloom.sources.images import open_images
from eigenloom.sources.pretrained import LIBRARY, open_pretrained
from eigenloom.store.atomic import write_json
from eigenloom.store.protocol import Layout
from eigenloom.store.writer import write_shard
from job import Job, run

OPEN = {ARCHITECTURE: open_vit, LIBRARY: open_pretrained}
"""What opens a network, by its architecture or the library that the architecture's name begins with."""


def main(job: Job) -> None:
    """Write one ``acts*.bin`` and its edge."""
    spec, images, model_edge = job.spec, open_images(job["images"]), read_model_edge(job["model"])
    if len(images) != spec["n_examples"]:
        raise DataError(f"{job['images']}: holds {len(images)} images, but n_examples is {spec['n_examples']}")
    architecture = model_edge["architecture"]
    opener = OPEN.get(architecture) or OPEN.get(architecture.partition(".")[0])
    if opener is None:
        raise StoreError(f"{job['model']}: architecture {architecture!r} is unknown; known: {', '.join(OPEN)}")
    model = opener(job["model"], model_edge)
    layers, dtype = spec["layers"], spec["forward_dtype"]
    recorder = BlockRecorder(model, layers, resolve_device(job.device), dtype)
    _, _, n_tokens, d_model = recorder.record(model.preprocess.image(images.image(0))[None]).shape
    cls_token = recorder.has_cls
    layout = Layout(
        spec["n_examples"], tuple(layers), n_tokens - cls_token, cls_token, d_model, spec["max_tokens_per_shard"]
    )
    first, stop = layout.shard_range(spec["shard"])
    recorder.grids.clear()
    batches = extract(recorder, images, range(first, stop), spec["batch_size"], max(job.threads, 1))
    facts = write_shard(job.out.parent, layout, spec["shard"], batches)
    edge = {
        "format": "eigenloom.shard", "version": 1, "shard": spec["shard"], **facts,
        "d_model": d_model, "tokens_per_example": layout.content_tokens_per_example, "cls_token": cls_token,
        "layers": layers, "grid": list(*recorder.grids) if len(recorder.grids) == 1 else None,
        "architecture": model.architecture, "signature": model.signature(dtype),
        "spec": spec, "inputs": job.inputs,
    }  # fmt: skip
    write_json(job.out.with_suffix(".run.json"), job.facts(examples=stop - first))
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "images", "model")
