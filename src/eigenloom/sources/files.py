"""Rows of one matrix in a file of its own: HDF5, ``.npy``, ``.npz``, ``.pt``."""

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.errors import DataError, StoreError
from eigenloom.sources.arrays import ArrayRows
from eigenloom.sources.hdf5 import Hdf5Rows
from eigenloom.store.atomic import explained
from eigenloom.store.plain_tensors import load_plain_tensors

logger = logging.getLogger("eigenloom")
USUAL_KEY = "flux"
"""Taken where no key is given and there are several."""


def open_rows(path: str | Path, key: str = "") -> Batches:
    """Return the rows of the matrix that a file holds, to be streamed from it.

    Args:
        path: ``.h5``, ``.hdf5``, ``.hdf``, ``.npy``, ``.npz`` or ``.pt``, told by its suffix.
        key: which data set of an HDF5 file (nested ones as ``group/name``), array of an ``.npz`` file or entry of a
            ``.pt`` dictionary; left out it is ``flux`` or, except in HDF5, the only one. A single array needs none.

    Arrays of an ``.npz`` file that was compressed are unpacked into memory; everything else is read as it is needed.

    Raises:
        StoreError: the file is missing, damaged, or of another kind.
        DataError: no such key (those there are, are listed), or not a matrix of real numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise StoreError(f"{path}: rows are read from {', '.join(READERS)}; convert it")
    with explained(path):
        path.open("rb").close()
    return READERS[path.suffix.lower()](path, key)


def _npy(path: Path, key: str) -> Batches:
    """Map the array copy-on-write, so that torch may take it for its own."""
    del key
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StoreError(f"{path}: is damaged or no .npy file of numbers ({error}); save it again") from None
    return matrix_rows(array, str(path))


def _npz(path: Path, key: str) -> Batches:
    """Map an array that lies uncompressed in the archive; unpack another one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            name = chosen_key(key, list(names), str(path))
            entry = archive.getinfo(names[name])
            where = f"{path}: `{name}`"
            if entry.compress_type == zipfile.ZIP_STORED:
                with archive.open(entry) as member, path.open("rb") as raw:
                    major = np.lib.format.read_magic(member)
                    header = (
                        np.lib.format.read_array_header_1_0 if major == (1, 0) else np.lib.format.read_array_header_2_0
                    )
                    shape, fortran, dtype = header(member)
                    raw.seek(entry.header_offset + 26)
                    name_length, extra_length = np.frombuffer(raw.read(4), "<u2").tolist()
                    start = entry.header_offset + 30 + name_length + extra_length + member.tell()
                if dtype.hasobject:
                    raise DataError(f"{where}: holds Python objects, not numbers")
                order: Any = "F" if fortran else "C"
                return matrix_rows(np.memmap(path, dtype, "c", start, shape, order), where)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise StoreError(f"{path}: is damaged or no .npz file of numbers ({error}); save it again") from None
    with np.load(path, allow_pickle=False) as arrays:
        logger.info("%s: is compressed, and %d bytes of it are unpacked into memory", where, entry.file_size)
        return matrix_rows(arrays[name], where)


def _pt(path: Path, key: str) -> Batches:
    """Take a tensor, or an entry of a dictionary of them."""
    loaded = load_plain_tensors(path)
    if isinstance(loaded, Tensor):
        return matrix_rows(loaded, str(path))
    if not isinstance(loaded, Mapping):
        raise DataError(f"{path}: holds a {type(loaded).__name__}, where a tensor or a dictionary of them is needed")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    name = chosen_key(key, list(tensors), str(path))
    return matrix_rows(tensors[name], f"{path}: `{name}`")


def _hdf5(path: Path, key: str) -> Batches:
    """Leave everything to ``Hdf5Rows``."""
    return Hdf5Rows(path, key or USUAL_KEY)


READERS: dict[str, Callable[[Path, str], Batches]] = {
    ".h5": _hdf5, ".hdf5": _hdf5, ".hdf": _hdf5, ".npy": _npy, ".npz": _npz, ".pt": _pt,
}  # fmt: skip


def chosen_key(key: str, found: list[str], where: str) -> str:
    """Return the key; left out, the only one there is, or the usual one.

    Raises:
        DataError: there is none of that name; those there are, are listed.
    """
    if not key and len(found) == 1:
        return found[0]
    key = key or USUAL_KEY
    if key in found:
        return key
    listed = ", ".join(sorted(found)) or "none"
    raise DataError(f"{where}: no array is called `{key}`; --dataset-key may be: {listed}")


def matrix_rows(array: np.ndarray | Tensor, where: str) -> ArrayRows:
    """Return the rows of a matrix of real numbers in native byte order.

    Raises:
        DataError: another number of dimensions, no row, or entries that are not real numbers.
    """
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{where}: has the shape {list(array.shape)}; rows are a matrix [n, d], so reshape it first")
    if isinstance(array, Tensor):
        if array.is_complex() or array.is_quantized or array.layout != torch.strided:
            raise DataError(f"{where}: is {array.dtype}, {array.layout}; rows must be dense real numbers")
        return ArrayRows(array)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8 or not array.dtype.isnative:
        raise DataError(f"{where}: has the dtype {array.dtype.str}; convert it to native float or integer numbers")
    return ArrayRows(array)
