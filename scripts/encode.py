"""Write the codes of some whole activation shards: one part of one split."""

from eigenloom.batches import resolve_device
from eigenloom.codes.checks import layer_number, matching_basis, signature_digest
from eigenloom.codes.layouts import layout_for
from eigenloom.codes.manifest import write_part_edge
from eigenloom.codes.writing import ShardRows, write_part
from eigenloom.progress import Console
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.atomic import write_json
from eigenloom.store.recording import open_store
from job import Job, run


def main(job: Job) -> None:
    """Check that store and basis belong together, encode shard by shard, and write the edge last."""
    spec, device, progress = job.spec, resolve_device(job.device), Console()
    store = open_store(job["store"])
    basis = matching_basis(job["basis"], store, spec["layer"], spec.get("allow_shift", False))
    layer = layer_number(store, spec["layer"])
    layout = layout_for(basis, spec, device)
    split = (store.sidecar or {}).get("split", "")
    shards = [
        ShardRows(shard, ActivationRows(store, layer, shards=[shard]), f"{split} shard {shard}")
        for shard in spec["shards"]
    ]
    entries = write_part(job.out.parent, spec["part"], shards, layout, device=device, progress=progress)
    inputs = job.inputs
    header = {
        "split": split,
        "layer": spec["layer"],
        "basis": inputs[str(job["basis"])],
        "signature": signature_digest(store),
        **layout.header(),
        "part": spec["part"],
        "first_row": store.shards[spec["shards"][0]].first_example * store.tokens_per_example,
        "spec": spec,
        "inputs": inputs,
    }
    write_json(job.out.with_suffix(".run.json"), job.facts(**progress.close()))
    write_part_edge(job.out, header, entries)


if __name__ == "__main__":
    run(main, "store", "basis")
