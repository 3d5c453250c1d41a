"""A checkpoint with reconstructed experts: same files, keys, shapes and number formats, all else byte for byte.

It is as large as the original: the bank itself is what is small. FP8 checkpoints leave as bfloat16.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.checkpoint import CONFIG, INDEX, SINGLE_FILE, ExpertCheckpoint, Shards, dequantised
from eigenloom.experts.layouts import FP8, SCALE_SUFFIX, Stored
from eigenloom.sources.checkpoint_file import FLOATS, SIZES
from eigenloom.store.atomic import HashingFile, atomic_file, atomic_path, explained, read_json, write_json

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""Endings of files that hold or list weights; other files of a checkpoint are carried over."""
QUANTISATION = "quantization_config"


@dataclass(frozen=True)
class Replacement:
    """A bank, and which of its experts stands for a stored one."""

    stored: Stored
    bank: ExpertBank
    number: int

    def matrix(self) -> Tensor:
        """Return the reconstruction, oriented as the tensor in the file is."""
        matrix = self.bank.expert(self.number)
        return matrix.T if self.stored.transposed else matrix


def export_dense(checkpoint: ExpertCheckpoint, banks: Mapping[str, ExpertBank], out: str | Path) -> list[str]:
    """Write a checkpoint in which the experts of some banks are replaced by their reconstructions.

    Args:
        checkpoint: the original, which is only read.
        banks: family -> bank; experts are found by their names, those of no bank stay as they are.
        out: a directory for the new checkpoint.

    Returns:
        Sentences about what differs from the original beside the experts; none but for FP8.

    Raises:
        ConfigError: ``out`` is the original's directory, or holds a checkpoint.
        MismatchError: a bank of another model: unknown names or other shapes.
        StoreError: the disk is full or a file cannot be read.
    """
    out = Path(out)
    if out.resolve() == checkpoint.directory.resolve() or any((out / name).exists() for name in (INDEX, SINGLE_FILE)):
        raise ConfigError(f"{out}: holds a checkpoint already; name another directory")
    replaced = _replacements(checkpoint, banks)
    facts, places = checkpoint.tensors.tensors, checkpoint.tensors.places
    files: dict[str, list[str]] = {}
    for key in facts:
        files.setdefault(places[key].path.name, []).append(key)
    is_fp8 = any(entry.dtype == FP8 for entry in facts.values())
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(checkpoint.directory.iterdir()):
            if path.is_file() and not path.name.endswith(WEIGHT_FILES) and not (is_fp8 and path.name == CONFIG):
                shutil.copyfile(path, out / path.name)
    sizes: dict[str, int] = {}
    for name, keys in files.items():
        if is_fp8:
            sizes |= _rewrite(checkpoint, keys, replaced, out / name)
        else:
            _patch(checkpoint, keys, replaced, out / name)
    index = checkpoint.directory / INDEX
    if not is_fp8:
        if index.is_file():
            with explained(out / INDEX):
                shutil.copyfile(index, out / INDEX)
        return []
    config = {key: value for key, value in checkpoint.config.items() if key != QUANTISATION}
    write_json(out / CONFIG, config | {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in config})
    if index.is_file():
        document = read_json(index)
        document["weight_map"] = {key: name for key, name in document["weight_map"].items() if key in sizes}
        document["metadata"] = {**document.get("metadata", {}), "total_size": sum(sizes.values())}
        write_json(out / INDEX, document)
    return [f"FP8 weights were written as bfloat16, without their scales, and {QUANTISATION} left {CONFIG}"]


def _replacements(checkpoint: ExpertCheckpoint, banks: Mapping[str, ExpertBank]) -> dict[str, list[Replacement]]:
    """Find the stored experts that banks stand for: tensor -> replacements."""
    known = {stored.name: stored for experts in checkpoint.layout.families.values() for stored in experts}
    found: dict[str, list[Replacement]] = {}
    for family, bank in banks.items():
        for number, name in enumerate(bank.expert_names):
            stored = known.get(name)
            if stored is None or stored.shape != bank.shape:
                what = f"no expert {name}" if stored is None else f"{name} of {stored.shape[0]} x {stored.shape[1]}"
                raise MismatchError(
                    f"{checkpoint.directory}: has {what}, where the bank of family {family!r} has one of"
                    f" {bank.shape[0]} x {bank.shape[1]}; export into the model it was fitted to"
                )
            found.setdefault(stored.key, []).append(Replacement(stored, bank, number))
    return found


def _patch(checkpoint: ExpertCheckpoint, keys: list[str], replaced: Mapping[str, list[Replacement]], out: Path) -> None:
    """Copy a file, then overwrite the numbers of replaced experts where they stand."""
    facts, places = checkpoint.tensors.tensors, checkpoint.tensors.places
    with atomic_path(out) as partial:
        shutil.copyfile(places[keys[0]].path, partial)
        with partial.open("r+b") as file:
            for key in keys:
                for replacement in replaced.get(key, []):
                    _overwrite(file, places[key].offset, facts[key].shape, facts[key].dtype, replacement)


def _overwrite(file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: str, replacement: Replacement) -> None:
    """Replace one expert in an open file; of a fused tensor its neighbours' numbers are written as they were read."""
    rows, columns = shape[-2:]
    n_bytes = rows * columns * SIZES[dtype]
    at = offset + (replacement.stored.index or 0) * n_bytes
    file.seek(at)
    buffer = bytearray(file.read(n_bytes))
    _put(torch.frombuffer(buffer, dtype=FLOATS[dtype]).view(rows, columns), replacement)
    file.seek(at)
    file.write(buffer)


def _put(slab: Tensor, replacement: Replacement) -> None:
    """Write a reconstruction into the matrix, or the rows of the matrix, that it stands for."""
    slab[replacement.stored.place[-2:]] = replacement.matrix().to(slab.dtype)


def _rewrite(
    checkpoint: ExpertCheckpoint, keys: list[str], replaced: Mapping[str, list[Replacement]], out: Path
) -> dict[str, int]:
    """Write a file anew, FP8 as bfloat16 and without scales; return name -> bytes of what was written."""
    facts = checkpoint.tensors.tensors
    kept = [key for key in keys if not _is_scale(checkpoint, key)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes, end = {}, 0
    for key in kept:
        dtype = "BF16" if facts[key].dtype == FP8 else facts[key].dtype
        sizes[key] = facts[key].n_numbers * 2 if dtype == "BF16" else checkpoint.tensors.stored_bytes(key)
        header[key] = {"dtype": dtype, "shape": list(facts[key].shape), "data_offsets": [end, end + sizes[key]]}
        end += sizes[key]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    fp8 = [key for key in kept if facts[key].dtype == FP8]
    reads = Counter({key: facts[key].shape[0] if len(facts[key].shape) == 3 else 1 for key in fp8})
    planned = reads + Counter({key + SCALE_SUFFIX: n for key, n in reads.items()})
    with atomic_file(out) as file, Shards(checkpoint.tensors, planned) as shards:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in kept:
            if facts[key].dtype == FP8:
                for slab in _slabs(checkpoint, shards, key, replaced.get(key, [])):
                    _write(file, slab)
            elif key in replaced:
                _write_replaced(file, checkpoint, key, replaced[key])
            else:
                for piece in checkpoint.tensors.raw(key):
                    file.write(piece)
    return sizes


def _slabs(checkpoint: ExpertCheckpoint, shards: Shards, key: str, replacements: list[Replacement]) -> Iterator[Tensor]:
    """Yield the matrices of an FP8 tensor as bfloat16, those of replaced experts with their reconstructions."""
    shape, whole = checkpoint.tensors.tensors[key].shape, (slice(None), slice(None))
    if key + SCALE_SUFFIX not in checkpoint.tensors.tensors or len(shape) not in (2, 3):
        raise DataError(
            f"{checkpoint.directory}: tensor {key!r} is FP8 {shape} without scales of blocks; dequantise it"
        )
    for index in range(shape[0]) if len(shape) == 3 else [None]:
        place = whole if index is None else (index, *whole)
        slab = dequantised(shards.read(key, place), shards.read(key + SCALE_SUFFIX, place), checkpoint.fp8_block).to(
            torch.bfloat16
        )
        for replacement in replacements:
            if replacement.stored.index == index:
                _put(slab, replacement)
        yield slab


def _write_replaced(file: HashingFile, checkpoint: ExpertCheckpoint, key: str, replacements: list[Replacement]) -> None:
    """Write a tensor of experts that is not FP8 though others are."""
    facts = checkpoint.tensors.tensors[key]
    stored = bytearray(b"".join(checkpoint.tensors.raw(key)))
    slabs = torch.frombuffer(stored, dtype=FLOATS[facts.dtype]).view(-1, *facts.shape[-2:])
    for replacement in replacements:
        _put(slabs[replacement.stored.index or 0], replacement)
    file.write(stored)


def _write(file: HashingFile, tensor: Tensor) -> None:
    """Write the numbers of a tensor in C order."""
    file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _is_scale(checkpoint: ExpertCheckpoint, key: str) -> bool:
    """Say whether a tensor holds the scales of another."""
    facts = checkpoint.tensors.tensors.get(key.removesuffix(SCALE_SUFFIX))
    return key.endswith(SCALE_SUFFIX) and facts is not None and facts.dtype == FP8
