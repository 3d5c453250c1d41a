"""Small recordings of known numbers, as ours and as saev directories, for the tests of stores and readers."""

import hashlib
import json

import numpy as np

from eigenloom.store.protocol import Layout, Metadata, encode_data
from eigenloom.store.writer import write_labels, write_shard, write_store

SIGNATURE = {"architecture": "eigenloom.vit", "weights_sha256": "ab" * 32, "preprocess": {"resize": "none", "patch": 8}}


def numbers(layout, seed=0):
    """Activations ``[n_examples, L, T, D]``, no two alike."""
    shape = (layout.n_examples, layout.n_layers, layout.tokens_per_example, layout.d_model)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def metadata_of(layout, **changes):
    facts = {
        "family": "fake-clip", "ckpt": "tiny", "layers": layout.layers,
        "content_tokens_per_example": layout.content_tokens_per_example, "cls_token": layout.cls_token,
        "d_model": layout.d_model, "n_examples": layout.n_examples,
        "max_tokens_per_shard": layout.max_tokens_per_shard, "data": encode_data({"kind": "numbers"}),
        "dataset": "numbers",
    }  # fmt: skip
    return Metadata(**{**facts, **changes})


def write_shards(directory, layout, acts):
    ranges = [layout.shard_range(shard) for shard in range(layout.n_shards)]
    return [write_shard(directory, layout, s, [acts[a:b]]) for s, (a, b) in enumerate(ranges)]


def record(directory, layout=None, labels=None, classes=("void", "a", "b"), **changes):
    """Write one of our stores; return its activations."""
    layout = layout or Layout(11, (1, 3), 4, True, 3, 40)
    acts = numbers(layout)
    facts = None
    if labels is not None:
        written = write_labels(directory, labels)
        counts = np.bincount(labels.ravel(), minlength=len(classes)).tolist()
        facts = {**written, "classes": list(classes), "void": 0, "rule": "majority-prefer-nonvoid", "counts": counts}
    arguments = {
        "source": "numbers", "split": "fit_train", "shards": write_shards(directory, layout, acts),
        "signature": SIGNATURE, "grid": [2, 2], "labels": facts, "spec": {"layers": list(layout.layers)}, "inputs": {},
    }  # fmt: skip
    write_store(directory, metadata_of(layout), **{**arguments, **changes})
    return acts


def saev_record(directory, acts, layers, cls, max_tokens, labels=None, phantom=False, **changes):
    """Write a directory the way saev's protocol says, by other code than the library's; return the metadata."""
    n_examples, n_layers, n_tokens, width = acts.shape
    metadata = {
        "family": "dinov3", "ckpt": "dinov3_vits16", "layers": list(layers),
        "content_tokens_per_example": n_tokens - cls,
        "cls_token": bool(cls), "d_model": width, "n_examples": n_examples, "max_tokens_per_shard": max_tokens,
        "data": "gASVBQAAAAAAAABLAS4=", "dataset": "/data/images", "pixel_agg": "majority", "dtype": "float32",
        "protocol": "2.1",
    }  # fmt: skip
    metadata.update(changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metadata.json").write_text(json.dumps(metadata, indent=2))
    per_shard = max_tokens // (n_layers * n_tokens)
    listed = []
    for shard, first in enumerate(range(0, n_examples + (n_examples if phantom else 0), per_shard)):
        if first > n_examples or (first == n_examples and not phantom):
            break
        block = np.zeros((per_shard, *acts.shape[1:]), "<f4")
        part = acts[first : first + per_shard]
        block[: len(part)] = part
        name = f"acts{shard:06}.bin"
        (directory / name).write_bytes(block.tobytes())
        listed.append({"name": name, "n_examples": len(part)})
    (directory / "shards.json").write_text(json.dumps(listed, indent=2))
    if labels is not None:
        (directory / "labels.bin").write_bytes(labels.tobytes())
    return metadata


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit_json(path, **changes):
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            document.pop(key)
        else:
            document[key] = value
    path.write_text(json.dumps(document))
