"""Checkpoints in safetensors: one file, or shards listed by an index; headers are read, tensors are not."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenloom.errors import StoreError
from eigenloom.sources.checkpoint_file import SIZES, FlatCheckpoint, Place, TensorFacts
from eigenloom.store.atomic import explained, read_json

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
INDEX_SUFFIX = ".safetensors.index.json"


def open_safetensors(path: Path) -> FlatCheckpoint:
    """Describe one file.

    Tied weights are taken from the header: writers that drop a tensor because another has its storage leave
    ``dropped name: kept name`` among the texts of ``__metadata__``.

    Raises:
        StoreError: missing, truncated, or not safetensors.
    """
    header, start, n_bytes = _header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise StoreError(f"{path}: is not a safetensors file: __metadata__ holds more than texts")
    tensors, places, end = {}, {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(path, *item)):
        facts, place = _entry(path, name, entry, start)
        if place.offset != start + end:
            raise StoreError(f"{path}: tensor {name!r} begins at byte {place.offset - start}, {end} expected;"
                             " the header is damaged; copy the file again")  # fmt: skip
        end += place.n_bytes
        tensors[name], places[name] = facts, place
    if start + end != n_bytes:
        raise StoreError(
            f"{path}: {n_bytes} bytes, but its header promises {start + end}; it is truncated or damaged; copy it again"
        )
    aliases = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return FlatCheckpoint(str(path), n_bytes, tensors, places, aliases, metadata)


def open_index(path: Path) -> FlatCheckpoint:
    """Describe shards by their index: ``{"weight_map": {tensor: file}}``.

    Raises:
        StoreError: the index is damaged, names a file outside its directory, or a tensor that its shard lacks.
    """
    index = read_json(path)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise StoreError(f"{path}: is not an index of safetensors shards: `weight_map` must map tensors to files")
    if unsafe := sorted({name for name in found.values() if Path(name).name != name or name in (".", "..")}):
        raise StoreError(f"{path}: names the shard {unsafe[0]!r}, which leaves its directory")
    shards = {name: open_safetensors(path.with_name(name)) for name in sorted(set(found.values()))}
    if lost := [f"{tensor} in {name}" for tensor, name in found.items() if tensor not in shards[name].tensors]:
        raise StoreError(f"{path}: promises {', '.join(lost[:3])}, which the shard lacks; copy all files again")
    tensors = {tensor: shards[name].tensors[tensor] for tensor, name in found.items()}
    places = {tensor: shards[name].places[tensor] for tensor, name in found.items()}
    metadata: dict[str, str] = {}
    for shard in shards.values():
        metadata |= shard.metadata
    aliases = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors}
    n_bytes = sum(shard.n_bytes for shard in shards.values())
    return FlatCheckpoint(str(path), n_bytes, tensors, places, aliases, metadata)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the parsed header, where data begin, and the size of the file."""
    with explained(path), path.open("rb") as file:
        n_bytes = path.stat().st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, n_bytes - 8):
            raise StoreError(f"{path}: is not a safetensors file, or is truncated: {n_bytes} bytes, and a header of"
                             f" {max(length, 0)} is announced; copy it again")  # fmt: skip
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: is not a safetensors file: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise StoreError(f"{path}: is not a safetensors file: its header is not a mapping")
    return header, 8 + length, n_bytes


def _begin(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return the offsets of an entry, which order it."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets):
        return offsets[0], offsets[1]
    raise StoreError(f"{path}: is not a safetensors file: tensor {name!r} has no data_offsets")


def _entry(path: Path, name: str, entry: Mapping[str, Any], start: int) -> tuple[TensorFacts, Place]:
    """Check one entry of a header against its own sizes."""
    shape, dtype, (begin, end) = entry.get("shape"), entry.get("dtype"), entry["data_offsets"]
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    ):
        raise StoreError(f"{path}: is not a safetensors file: tensor {name!r} has no dtype or no shape")
    facts = TensorFacts(tuple(shape), dtype)
    if end < begin or (dtype in SIZES and end - begin != facts.n_numbers * SIZES[dtype]):
        raise StoreError(f"{path}: tensor {name!r} is {dtype} {facts.shape} but has {end - begin} bytes; the header is"
                         " damaged; copy the file again")  # fmt: skip
    return facts, Place(path, start + begin, end - begin)
