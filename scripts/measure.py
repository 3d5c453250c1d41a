"""Measure moments of the rows of some shards, every layer, one set of sums per shard: ``part-NNNNN.json``."""

import torch
from safetensors.torch import save

from eigenloom.batches import resolve_device
from eigenloom.moments import moments_of_rows
from eigenloom.progress import Console
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.atomic import write_bytes, write_json
from eigenloom.store.recording import open_store
from job import Job, run


def main(job: Job) -> None:
    """Walk each shard once per layer; stack the sums as ``[shard, layer, ...]``."""
    store, console = open_store(job["store"]), Console()
    device = resolve_device(job.device)
    layers = job.spec.get("layers", list(store.layers))
    measured = [
        [
            moments_of_rows(
                ActivationRows(store, layer, shards=[shard]),
                device=device,
                rows_per_example=store.tokens_per_example,
                progress=console,
            )
            for layer in layers
        ]
        for shard in job.spec["shards"]
    ]
    arrays = {
        name: torch.stack([torch.stack([moments.arrays()[name] for moments in sums]) for sums in measured])
        for name in ("mean", "scatter", "minimum", "maximum")
    }
    n_rows = [sums[0].n_rows for sums in measured]
    arrays["n_rows"] = torch.tensor(n_rows)
    path = job.out.with_suffix(".safetensors")
    digest = write_bytes(path, save(arrays))
    write_json(job.out.with_suffix(".run.json"), job.facts(**console.close()))
    edge = {
        "format": "eigenloom.moments-part",
        "version": 1,
        "part": job.spec["part"],
        "shards": job.spec["shards"],
        "layers": layers,
        "n_rows": sum(n_rows),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": digest}},
        "spec": job.spec,
        "inputs": job.inputs,
    }
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "store")
