"""Checkpoints that are already vectors: ``.npy`` files and HDF5, one sample or many to a file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources.checkpoint_file import PIECE_BYTES, Checkpoint, FlatCheckpoint, Place, Range, TensorFacts
from eigenloom.store.atomic import explained

VECTOR = "vector"
"""The name of the only tensor of a sample that is a bare vector."""
KINDS = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "|b1": "BOOL"}
KINDS |= {
    f"{'<' if size > 1 else '|'}{sign}{size}": f"{sign.upper()}{8 * size}" for sign in "iu" for size in (1, 2, 4, 8)
}


def open_npy(path: Path) -> list[Checkpoint]:
    """Describe a vector ``[D]``, or the rows of a matrix ``[N, D]``; the header is read and nothing else.

    Raises:
        StoreError: not a ``.npy`` file, truncated, or holding pickled objects.
        DataError: more than two dimensions, no numbers, Fortran order, or numbers that are not floating-point.
    """
    try:
        with explained(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise StoreError(f"{path}: is not a .npy file of plain numbers, or is truncated ({error})") from None
    if not isinstance(array, np.memmap):
        raise StoreError(f"{path}: is not a single .npy array")
    kind = _float_kind(str(path), array.dtype)
    if array.ndim not in (1, 2) or 0 in array.shape or not array.flags.c_contiguous:
        raise DataError(f"{path}: has shape {array.shape}; weights are one vector [D] or a matrix [N, D], in C order")
    n_bytes, width = array[0].nbytes if array.ndim == 2 else array.nbytes, array.shape[-1]
    labels = [f"{path}[{i}]" for i in range(len(array))] if array.ndim == 2 else [str(path)]
    facts = {VECTOR: TensorFacts((width,), kind)}
    return [
        FlatCheckpoint(label, n_bytes, facts, {VECTOR: Place(path, array.offset + i * n_bytes, n_bytes)})
        for i, label in enumerate(labels)
    ]  # fmt: skip


@dataclass(frozen=True)
class HDF5Checkpoint(Checkpoint):
    """The datasets of one group, or one row of a matrix."""

    label: str
    n_bytes: int
    tensors: Mapping[str, TensorFacts]
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]
    path: Path
    keys: Mapping[str, str]
    row: int | None

    def fill(self, ranges: Sequence[Range], out: Tensor) -> None:
        """Read by one open file; ranges of a tensor of more than one dimension by whole leading slices."""
        done = 0
        with _opened(self.path) as file:
            for name, start, stop in ranges:
                found = self._slice(file, name, start, stop)
                out[done : done + stop - start].copy_(torch.from_numpy(found.astype(np.float32, copy=False)))
                done += stop - start

    def raw(self, name: str) -> Iterable[bytes | memoryview]:
        """Yield pieces of about one MiB."""
        facts = self.tensors[name]
        step = PIECE_BYTES // 8
        with _opened(self.path) as file:
            for start in range(0, facts.n_numbers, step):
                yield self._slice(file, name, start, min(start + step, facts.n_numbers)).tobytes()

    def _slice(self, file: Any, name: str, start: int, stop: int) -> np.ndarray:
        """Read a flat range of a dataset."""
        dataset, shape = file[self.keys[name]], self.tensors[name].shape
        if self.row is not None:
            return dataset[self.row, start:stop]
        if not shape:
            return dataset[()].reshape(1)[start:stop]
        width = int(np.prod(shape[1:], dtype=np.int64))
        if width == 0 or stop == start:
            return np.empty(0, dataset.dtype)
        first = start // width
        return dataset[first : -(-stop // width)].reshape(-1)[start - first * width : stop - first * width]


def open_hdf5(path: Path, key: str | None = None) -> list[Checkpoint]:
    """Describe the samples of a file: one per group, or one per row of a matrix ``[N, D]``.

    Args:
        path: of the file.
        key: the matrix, or the group whose groups are the samples; None where the root leaves no choice.

    Raises:
        StoreError: not an HDF5 file.
        ConfigError: the key does not exist, or one is needed; the existing ones are listed.
        DataError: a matrix of another number of dimensions, or of numbers that are not floating-point.
    """
    import h5py

    with _opened(path) as file:
        if key is not None and key not in file:
            raise ConfigError(f"{path}: has no key {key!r}; there are {_listed(file)}")
        node = file if key is None else file[key]
        if isinstance(node, h5py.Group):
            groups = sorted((n for n, child in node.items() if isinstance(child, h5py.Group)), key=str.encode)
            matrices = [n for n, child in node.items() if isinstance(child, h5py.Dataset) and child.ndim == 2]
            if groups and not matrices:
                return [_group(path, node[name]) for name in groups]
            if len(matrices) != 1 or groups:
                raise ConfigError(
                    f"{path}: name the matrix, or the group of samples, by its key; there are {_listed(file)}"
                )
            node = node[matrices[0]]
        if node.ndim != 2 or 0 in node.shape:
            raise DataError(f"{path}: {node.name} has shape {node.shape}; weights are the rows of a matrix [N, D]")
        facts = {VECTOR: TensorFacts((node.shape[1],), _float_kind(f"{path}: {node.name}", node.dtype))}
        keys, n_bytes = {VECTOR: node.name}, node.shape[1] * node.dtype.itemsize
        return [
            HDF5Checkpoint(f"{path}:{node.name}[{i}]", n_bytes, facts, {}, {}, path, keys, i) for i in range(len(node))
        ]


def _group(path: Path, group: Any) -> HDF5Checkpoint:
    """Describe one group: its datasets by their path inside it."""
    import h5py

    tensors, keys, n_bytes = {}, {}, 0

    def visit(name: str, child: Any) -> None:
        nonlocal n_bytes
        if isinstance(child, h5py.Dataset):
            tensors[name] = TensorFacts(tuple(child.shape), KINDS.get(child.dtype.str, str(child.dtype)))
            keys[name] = child.name
            n_bytes += child.nbytes

    group.visititems(visit)
    return HDF5Checkpoint(f"{path}:{group.name}", n_bytes, tensors, {}, {}, path, keys, None)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        StoreError: missing, or not HDF5.
    """
    import h5py

    with explained(path):
        path.stat()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StoreError(f"{path}: is not an HDF5 file, or is truncated ({error})") from None
    with file:
        yield file


def _listed(file: Any) -> str:
    """List the keys of a file with their shapes, the first dozen."""
    found: list[str] = []
    file.visititems(lambda name, child: found.append(f"{name} {getattr(child, 'shape', '(group)')}"))
    return ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "") or "none"


def _float_kind(where: str, dtype: np.dtype) -> str:
    """Return the name of a floating-point format.

    Raises:
        DataError: integers, big-endian numbers, anything else.
    """
    kind = KINDS.get(dtype.str, "")
    if not kind.startswith("F"):
        raise DataError(f"{where}: holds {dtype}; weights are little-endian float16, float32 or float64")
    return kind
