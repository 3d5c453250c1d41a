"""Write a recording: one job per shard, one for the labels, and a joining one whose ``store.json`` means complete."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.errors import DataError
from eigenloom.provenance import canonical_json
from eigenloom.store.atomic import atomic_file, explained, write_bytes, write_text
from eigenloom.store.protocol import Layout, Metadata, metadata_bytes, shard_name, shards_bytes
from eigenloom.store.sidecar import DIRECTORY, FORMAT, KEYS, LABEL_KEYS, SHARD_KEYS, VERSION, implied

MAX_EDGE_BYTES = 1_000_000
logger = logging.getLogger("eigenloom")


def write_shard(directory: str | Path, layout: Layout, shard: int, batches: Iterable[np.ndarray]) -> dict[str, Any]:
    """Write one ``acts*.bin`` at its full size, zeros past the last example; digest in the same pass.

    Args:
        directory: made if missing.
        layout: of the whole recording.
        shard: which one, from 0.
        batches: float32 arrays ``[b, L, T, D]``, any ``b``, together the examples of ``layout.shard_range(shard)``.

    Returns:
        ``{"name", "n_examples", "sha256", "bytes"}``.

    Raises:
        DataError: a batch has another shape or dtype, or there are more or fewer examples than the layout says;
            nothing is left under the final name.
        StoreError: the disk is full or the folder cannot be written.
    """
    first, stop = layout.shard_range(shard)
    path = Path(directory) / shard_name(shard)
    shape = (layout.n_layers, layout.tokens_per_example, layout.d_model)
    n_examples = 0
    with atomic_file(path) as file:
        for batch in batches:
            if batch.dtype.kind != "f" or batch.dtype.itemsize != 4 or batch.shape[1:] != shape:
                found = f"{batch.dtype} {list(batch.shape)}"
                raise DataError(f"{path}: a batch is {found}, where float32 [b, {', '.join(map(str, shape))}] is due")
            n_examples += len(batch)
            if n_examples > stop - first:
                raise DataError(f"{path}: more than the {stop - first} examples ({first} to {stop - 1}) were recorded")
            file.write(np.ascontiguousarray(batch, dtype="<f4"))
        if n_examples < stop - first:
            raise DataError(
                f"{path}: {n_examples} examples were recorded, but {stop - first} ({first} to {stop - 1}) are due;"
                " set n_examples to what the data hold"
            )
        file.pad_to(layout.shard_bytes)
    return {"name": path.name, "n_examples": n_examples, "sha256": file.sha256, "bytes": layout.shard_bytes}


def write_labels(directory: str | Path, labels: np.ndarray) -> dict[str, Any]:
    """Write ``labels.bin``: uint8 ``[n_examples, P]``, one label per content token, no CLS column.

    Returns:
        ``{"name", "sha256", "bytes", "n_examples", "tokens_per_example"}``.

    Raises:
        DataError: not a uint8 matrix.
        StoreError: the disk is full or the folder cannot be written.
    """
    path = Path(directory) / "labels.bin"
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise DataError(f"{path}: labels are {labels.dtype} {list(labels.shape)}, where a uint8 matrix is due")
    digest = write_bytes(path, labels.tobytes())
    n_examples, tokens = labels.shape
    return {
        "name": path.name,
        "sha256": digest,
        "bytes": labels.size,
        "n_examples": n_examples,
        "tokens_per_example": tokens,
    }


def write_store(
    directory: str | Path,
    metadata: Metadata,
    *,
    source: str,
    split: str,
    shards: Sequence[Mapping[str, Any]],
    signature: Mapping[str, Any],
    grid: Sequence[int] | None = None,
    labels: Mapping[str, Any] | None = None,
    files_sha256: str | None = None,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Write ``metadata.json``, ``shards.json``, then ``store.json`` beside shards that are already there.

    Args:
        directory: of the shards.
        metadata: the protocol's description.
        source: config key of the source.
        split: which of its splits.
        shards: per shard ``name``, ``n_examples``, ``sha256`` (further keys are not used), in order.
        signature: what must agree between recordings for a basis to move from one to another.
        grid: rows and columns of the content tokens, None where examples differ.
        labels: ``sha256``, ``classes``, ``void``, ``rule``, ``counts`` of ``labels.bin``, None without labels.
        files_sha256: of the list of examples, ``files.json``.
        spec: canonical parameters of the job.
        inputs: path of every input edge -> sha256 hex.

    Returns:
        sha256 hex digest of ``store.json``.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    directory = Path(directory)
    store_path = directory / "store.json"
    with explained(store_path):
        store_path.unlink(missing_ok=True)
    write_bytes(directory / "metadata.json", metadata_bytes(metadata))
    write_bytes(directory / "shards.json", shards_bytes(metadata.layout))
    return write_sidecar(
        store_path, metadata, source=source, split=split, shards=shards, signature=signature, grid=grid, labels=labels,
        files_sha256=files_sha256, spec=spec, inputs=inputs,
    )  # fmt: skip


def write_sidecar(
    store_path: str | Path,
    metadata: Metadata,
    *,
    source: str,
    split: str,
    shards: Sequence[Mapping[str, Any]],
    signature: Mapping[str, Any],
    grid: Sequence[int] | None = None,
    labels: Mapping[str, Any] | None = None,
    files_sha256: str | None = None,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    directory: str | None = None,
) -> str:
    """Write ``store.json`` alone (see ``write_store``); ``directory`` says where the shards lie if not beside it.

    Returns:
        sha256 hex digest of ``store.json``.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "split": split,
        **implied(metadata),
        "grid": None if grid is None else list(grid),
        "signature": dict(signature),
        "shards": [{key: shard[key] for key in SHARD_KEYS} for shard in shards],
        "files": None if files_sha256 is None else {"sha256": files_sha256},
        "labels": None if labels is None else {key: labels[key] for key in LABEL_KEYS},
        "spec": spec,
        "inputs": dict(sorted((inputs or {}).items())),
    }
    elsewhere = {} if directory is None else {DIRECTORY: directory}
    text = _lines({key: document[key] for key in KEYS} | elsewhere)
    if len(text) > MAX_EDGE_BYTES:
        logger.warning("%s: %d bytes; above %d Snakemake checks times only", store_path, len(text), MAX_EDGE_BYTES)
    return write_text(store_path, text)


def _lines(document: Mapping[str, Any]) -> str:
    """Format with one line per key, shard and input: thousands of shards stay below a megabyte."""
    parts = []
    for key, value in document.items():
        if key == "shards":
            text = "[\n  " + ",\n  ".join(map(canonical_json, value)) + "\n ]"
        elif key == "inputs" and value:
            text = "{\n  " + ",\n  ".join(f"{canonical_json(k)}:{canonical_json(v)}" for k, v in value.items()) + "\n }"
        else:
            text = canonical_json(value)
        parts.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
