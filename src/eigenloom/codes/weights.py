"""Checkpoints to scores and back, on files: ``scores = W^T (x - mean)``, ``x_rec = mean + W scores``.

Both directions stream ranges of the flat vector, so that memory grows neither with the checkpoint nor with the basis.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.bases.base import load_basis
from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.sources.checkpoint_file import FLOATS, Checkpoint
from eigenloom.sources.checkpoint_layout import WeightLayout, layout_of
from eigenloom.sources.checkpoints import Checkpoints, agree
from eigenloom.store.atomic import HashingFile, atomic_file, write_bytes

BLOCK = 1 << 18
SCORES = "scores"


@dataclass(frozen=True)
class WeightBasis:
    """A basis of weights, the layout its vectors have, and the digest of its ``meta.json``."""

    basis: SRHTPCA
    layout: WeightLayout
    directory: Path
    digest: str

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an artifact that ``fit_weights`` wrote, from its directory or its ``meta.json``.

        Raises:
            StoreError: damaged, or a basis of something else.
        """
        directory = Path(path).parent if Path(path).name == "meta.json" else Path(path)
        basis = load_basis(directory)
        if not isinstance(basis, SRHTPCA) or not (directory / "layout.json").is_file():
            raise StoreError(f"{directory}: is not a basis of weights; fit one with fit_weights_pca.py")
        layout = WeightLayout.read(directory / "layout.json")
        if layout.n_features != basis.n_features:
            raise StoreError(f"{directory}: layout.json has {layout.n_features} numbers, the basis {basis.n_features};"
                             " fit it again")  # fmt: skip
        return cls(basis, layout, directory, file_digest(directory / "meta.json"))

    def open_like(self, paths: Iterable[str | Path], key: str | None = None) -> Checkpoints:
        """Open checkpoints by the layout's own ``include``, ``exclude`` and ``tied``.

        Raises:
            MismatchError: they are of another model; the first differences are named.
        """
        checkpoints = Checkpoints(paths, key=key, **self.layout.choice)
        agree(self.layout, str(self.directory), checkpoints.layout, checkpoints.labels[0])
        return checkpoints


def compress(weights: WeightBasis, checkpoints: Checkpoints) -> Tensor:
    """Return the scores ``[n, k]`` float32 of checkpoints: one read.

    Raises:
        DataError: NaN or Inf, with file, tensor and index.
    """
    basis, start = weights.basis, 0
    total = torch.zeros(checkpoints.n_rows, basis.n_elements, dtype=torch.float64)
    for block in checkpoints.column_blocks(BLOCK):
        stop = start + block.shape[1]
        total += (block - basis.mean[start:stop]) @ basis.components[start:stop]
        start = stop
    return total.float()


def write_scores(path: str | Path, weights: WeightBasis, scores: Tensor, labels: list[str]) -> str:
    """Write scores ``[n, k]`` as safetensors, with the basis they belong to; return the sha256.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    metadata = {"basis": weights.digest, "samples": json.dumps(labels, ensure_ascii=False)}
    return write_bytes(path, format_safetensors({SCORES: scores.float().contiguous()}, metadata=metadata))


def read_scores(path: str | Path, weights: WeightBasis) -> tuple[Tensor, list[str]]:
    """Read scores ``[n, k]`` and what their checkpoints were called.

    Raises:
        StoreError: not a file of scores.
        MismatchError: they belong to another basis.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata, scores = file.metadata() or {}, file.get_tensor(SCORES)
    except Exception as error:  # safetensors raises its own type
        raise StoreError(f"{path}: is not a file of scores ({error}); make one with compress_weights.py") from None
    if metadata.get("basis") != weights.digest or scores.shape[1:] != (weights.basis.n_elements,):
        raise MismatchError(f"{path}: these scores belong to another basis than {weights.directory}; compress again")
    return scores, json.loads(metadata["samples"])


def reconstruct(
    weights: WeightBasis, scores: Tensor, out: str | Path, template: Checkpoint, n_used: int | None = None
) -> str:
    """Write a checkpoint from its scores; return the sha256 of the file.

    Names, shapes, number formats, order and header texts are the template's, and so are the bytes of its tensors that
    the layout skips; tied weights are tied again.

    Args:
        weights: the basis.
        scores: ``[k]``.
        out: the safetensors file to write.
        template: any checkpoint of the same model.
        n_used: leading components to use; None for all, 0 for the mean.

    Raises:
        ConfigError: ``n_used`` is negative or more than the basis has.
        MismatchError: the template is of another model.
        StoreError: the disk is full, or the template cannot be read.
    """
    n_used = weights.basis.n_elements if n_used is None else n_used
    if not 0 <= n_used <= weights.basis.n_elements:
        raise ConfigError(f"k_used: {n_used}, but the basis has {weights.basis.n_elements} components")
    agree(weights.layout, str(weights.directory), layout_of(template, **weights.layout.choice), template.label)
    with atomic_file(out) as file:
        for name in _begin(file, template):
            entry = weights.layout.entry(name)
            if entry is None:
                for raw in template.raw(name):
                    file.write(raw)
                continue
            dtype = FLOATS[template.tensors[name].dtype]
            for piece in _decoded(weights.basis, scores, n_used, entry.offset, entry.offset + entry.n_numbers):
                file.write(piece.to(dtype).contiguous().view(torch.uint8).numpy().data)
    return file.sha256


def _begin(file: HashingFile, template: Checkpoint) -> list[str]:
    """Write the header; return the names whose bytes are to follow, in order."""
    header: dict[str, Any] = {}
    dropped = {name: kept for name, kept in template.aliases.items() if name in template.tensors}
    if metadata := {**template.metadata, **dropped}:
        header["__metadata__"] = metadata
    end, names = 0, [name for name in template.tensors if name not in dropped]
    for name in names:
        begin, end = end, end + template.stored_bytes(name)
        facts = template.tensors[name]
        header[name] = {"dtype": facts.dtype, "shape": list(facts.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return names


def _decoded(basis: SRHTPCA, scores: Tensor, n_used: int, start: int, stop: int) -> Iterator[Tensor]:
    """Yield a range of ``mean + W scores``, float32, in pieces."""
    used = scores[:n_used].float()
    for first in range(start, stop, BLOCK):
        part = slice(first, min(first + BLOCK, stop))
        yield torch.addmv(basis.mean[part], basis.components[part, :n_used], used)
