"""Record the activations of one shard of a split: one slice of examples, all layers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eigenloom.batches import resolve_device
from eigenloom.errors import DataError
from eigenloom.nn.vit import ARCHITECTURE, load_vit
from eigenloom.provenance import file_digest
from eigenloom.sources.extraction import check_layers, extract
from eigenloom.sources.images import open_images
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import read_json, write_json
from eigenloom.store.protocol import Layout
from eigenloom.store.writer import write_shard
from job import Job, run


def main(job: Job) -> None:
    """Write ``acts*.bin`` and the shard's edge."""
    spec = job.spec
    trained = read_json(job["model"])["spec"]["model"]
    vit = load_vit(job["model"].parent)
    check_layers(spec["layers"], vit.config.depth)
    preprocess = Preprocess(trained["patch"], **trained["preprocess"])
    images = open_images(job["images"])
    sizes = {"d_model": vit.config.width, "max_tokens_per_shard": spec["max_tokens_per_shard"]}
    layout = Layout(spec["n_examples"], tuple(spec["layers"]), vit.config.n_patches, True, **sizes)
    if len(images) != layout.n_examples:
        raise DataError(f"{job['images']}: {len(images)} images, but the configuration states {layout.n_examples}")
    first, stop = layout.shard_range(spec["shard"])

    def inputs() -> Iterator[Tensor]:
        for start in range(first, stop, spec["batch_size"]):
            arrays = [images.image(i) for i in range(start, min(start + spec["batch_size"], stop))]
            wrong = [a.shape[:2] for a in arrays if preprocess.grid(*a.shape[:2]) != vit.config.grid]
            if wrong:
                raise DataError(f"{job['images']}: an image of {wrong[0]} pixels does not give the network's grid of"
                                f" {vit.config.grid} patches; set preprocess.resize")  # fmt: skip
            yield torch.stack([preprocess.image(array) for array in arrays])

    dtype = getattr(torch, spec["forward_dtype"])
    batches = extract(vit, inputs(), layout.layers, n_patches=vit.config.n_patches,
                      device=resolve_device(job.device), dtype=dtype)  # fmt: skip
    written = write_shard(job.out.parent, layout, spec["shard"], batches)
    signature = {"architecture": ARCHITECTURE, "weights_sha256": file_digest(job["model"].parent / "model.safetensors"),
                 "tokens": "patch", "forward_dtype": spec["forward_dtype"],
                 "preprocess": {"patch": trained["patch"], **trained["preprocess"]}}  # fmt: skip
    write_json(job.out.with_suffix(".run.json"), job.facts())
    edge = {"format": "eigenloom.shard", "version": 1, "shard": spec["shard"], **written, "d_model": layout.d_model,
            "tokens_per_example": vit.config.n_patches, "cls_token": True, "layers": spec["layers"],
            "grid": list(vit.config.grid), "architecture": ARCHITECTURE, "signature": signature}  # fmt: skip
    write_json(job.out, {**edge, "spec": spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "images", "model")
