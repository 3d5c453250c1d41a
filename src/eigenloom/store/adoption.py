"""Take a recording of somebody else's as it is: a ``store.json`` of ours that names its directory, nothing in there."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.provenance import file_digest
from eigenloom.store.recording import ActivationStore, open_store
from eigenloom.store.writer import write_sidecar

logger = logging.getLogger("eigenloom")


def adopt_recording(
    store_path: str | Path,
    directory: str,
    *,
    source: str,
    split: str,
    classes: Sequence[str] | int | None = None,
    void: int | None = None,
    checksums: bool = True,
    spec: Any = None,
) -> str:
    """Check a saev recording and write the ``store.json`` by which it goes from now on; it is read where it lies.

    Args:
        store_path: ``artifacts/{source}/saev/shards/{split}/store.json``.
        directory: of the shards, relative to the repository.
        source: config key of the source.
        split: which of its splits.
        classes: names of its labels by number, or how many there are; None where it has none, or none are wanted.
        void: the label to be masked.
        checksums: digest every shard, which reads all of it once; else ``verify`` can say nothing of them.
        spec: parameters of the job.

    Returns:
        sha256 hex digest of ``store.json``.

    Raises:
        StoreError: the recording is incomplete, damaged or of another protocol; all problems are listed.
        DataError: a label that no class has.
        ConfigError: ``void`` is no class.
        MismatchError: classes for a recording without labels.
    """
    store = open_store(directory)
    own = store.sidecar or {}
    if own.get("directory"):
        raise MismatchError(f"{directory}: is itself a name for {own['directory']}; adopt that")
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    if names is not None and not (store.directory / "labels.bin").exists():
        raise MismatchError(f"{directory}: has no labels.bin, but {len(names)} classes are configured; drop `classes`")
    if store.sidecar is None:
        logger.warning("%s: a foreign recording; of its origin only family and ckpt can be compared", directory)
    shards = []
    for shard in tqdm(store.shards, desc="adopt", unit="shard", disable=not sys.stderr.isatty()):
        digest = file_digest(store.directory / shard.name) if checksums else None
        shards.append({"name": shard.name, "n_examples": shard.n_examples, "sha256": digest})
    return write_sidecar(
        store_path,
        store.metadata,
        source=source,
        split=split,
        shards=shards,
        signature=store.signature,
        grid=store.grid,
        labels=_labels(store, names, void),
        spec=spec,
        directory=directory,
    )


def _labels(store: ActivationStore, names: Sequence[str] | None, void: int | None) -> dict[str, Any] | None:
    """Describe ``labels.bin``; where a recording says itself what its labels mean, that holds unless told otherwise."""
    if names is None:
        return (store.sidecar or {}).get("labels")
    path = store.directory / "labels.bin"
    if void is not None and not 0 <= void < len(names):
        raise ConfigError(f"void: {void}, but there are {len(names)} classes, counted from 0")
    labels = store.labels()
    assert labels is not None
    counts = np.bincount(labels.numpy(), minlength=len(names))
    if len(counts) > len(names):
        row = int((labels >= len(names)).to(labels.dtype).argmax())
        example, token = divmod(row, store.tokens_per_example)
        raise DataError(
            f"{path}: label {int(labels[row])} at example {example}, token {token}, but {len(names)} classes are"
            " configured; list them all in `classes`"
        )
    rule = store.metadata.pixel_agg
    return {"sha256": file_digest(path), "classes": list(names), "void": void, "rule": rule, "counts": counts.tolist()}
