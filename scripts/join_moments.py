"""Merge the moments of all shards of a split, in shard order, for one layer: the ``moments`` artifact."""

from pathlib import Path

from safetensors import safe_open

from eigenloom.errors import StoreError
from eigenloom.moments import Moments, merge
from eigenloom.provenance import file_digest
from eigenloom.store.artifact import write_artifact
from eigenloom.store.atomic import read_json
from eigenloom.store.listing import file_problems
from eigenloom.store.recording import open_store
from job import Job, run


def shards_of(path: Path, layer: int) -> list[tuple[int, Moments]]:
    """Read one layer of a part: shard numbers and their moments."""
    edge = read_json(path)
    if problems := file_problems(path.parent, edge["files"], verify=False):
        raise StoreError("; ".join(problems) + "; delete the part and run `measure` again")
    row = edge["layers"].index(layer)
    with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
        counts = file.get_tensor("n_rows").tolist()
        arrays = {name: file.get_slice(name)[:, row] for name in ("mean", "scatter", "minimum", "maximum")}
    return [
        (shard, Moments(n_rows=counts[i], **{name: array[i] for name, array in arrays.items()}))
        for i, shard in enumerate(edge["shards"])
    ]


def main(job: Job) -> None:
    """Merge from the left, so that every machine rounds alike."""
    store = open_store(job["store"])
    layer = int(job.spec["layer"].removeprefix("layer-"))
    store.layer_axis(layer)
    shards = dict(sorted(pair for path in job.lists["parts"] for pair in shards_of(path, layer)))
    if list(shards) != list(range(len(store.shards))):
        raise StoreError(f"{job['store']}: has {len(store.shards)} shards, the parts measure {list(shards)}")
    merged, *others = shards.values()
    for moments in others:
        merged = merge(merged, moments)
    sidecar = store.sidecar or {}
    parameters = {
        "layer": job.spec["layer"],
        "source": sidecar.get("source"),
        "split": sidecar.get("split"),
        "n_rows": merged.n_rows,
        "n_nonfinite": merged.n_nonfinite,
        "saev_hash": sidecar.get("saev_hash"),
        "store_sha256": file_digest(job["store"]),
        "signature": store.signature,
    }
    write_artifact(
        job.out.parent, kind="moments", parameters=parameters, arrays=merged.arrays(),
        spec=job.spec, inputs=job.inputs, run=job.facts(),
    )  # fmt: skip


if __name__ == "__main__":
    run(main, "store", "parts")
