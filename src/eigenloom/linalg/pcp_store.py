"""Where ``pcp`` keeps its one dense array between iterations: in memory, or in two files that take turns."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.provenance import canonical_json

logger = logging.getLogger("eigenloom")


class Checkpoint(Protocol):
    """What carries unfinished work from one process to the next; ``store.snapshots.Snapshots`` is one."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return ``(tensors, position)`` of the last save, or None."""
        ...

    def due(self) -> bool:
        """Say whether ``tick`` would save now."""
        ...

    def tick(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save, if it is time."""
        ...


class Panel(Protocol):
    """Where T is kept."""

    def read(self, rows: slice) -> Tensor:
        """Return a block of T, which may be overwritten; valid until the next."""
        ...

    def write(self, rows: slice, block: Tensor) -> None:
        """Replace a block of T."""
        ...

    def turn(self) -> None:
        """End a walk that wrote every block."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must carry."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo ``tensors``."""
        ...

    def close(self, done: bool) -> None:
        """Let go of it; where the work is done, leave nothing behind."""
        ...


class InMemory:
    """The array as a tensor, overwritten block by block."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device):
        """Allocate it."""
        self.whole = torch.empty(shape, dtype=dtype, device=device)

    def read(self, rows: slice) -> Tensor:
        """Return the block, which may be overwritten."""
        return self.whole[rows]

    def write(self, rows: slice, block: Tensor) -> None:
        """Take the new block, unless it is the same memory."""
        if block.data_ptr() != self.whole[rows].data_ptr():
            self.whole[rows] = block

    def turn(self) -> None:
        """End an iteration."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the array."""
        return {"T": self.whole}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo ``tensors``."""
        self.whole.copy_(tensors["T"])

    def close(self, done: bool) -> None:
        """Nothing to do."""


class OnDisk:
    """The array in files ``T.0`` and ``T.1`` of a folder: an iteration reads one and writes the other.

    It is its own checkpoint: ``state.safetensors``, replaced after each iteration, says which file is whole. So a
    killed process loses the iteration it was in and nothing else.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype, block_rows: int, identity: Any):
        """Open or make the files.

        Raises:
            StoreError: the folder cannot be written, or the disk is full.
        """
        self._folder, self._identity = folder, canonical_json(identity)
        self._row_bytes = shape[1] * dtype.itemsize
        self._room = torch.empty(block_rows, shape[1], dtype=dtype)
        self._valid = 0
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            paths, size = [folder / "T.0", folder / "T.1"], shape[0] * self._row_bytes
            self._continues = all(path.is_file() and path.stat().st_size == size for path in paths)
            self._files = [_opened(path, size) for path in paths]

    def read(self, rows: slice) -> Tensor:
        """Return the block in a buffer, which may be overwritten."""
        block = self._room[: rows.stop - rows.start]
        view, at = _bytes(block), rows.start * self._row_bytes
        while len(view):
            count = os.preadv(self._files[self._valid].fileno(), [view], at)
            view, at = view[count:], at + count
        return block

    def write(self, rows: slice, block: Tensor) -> None:
        """Write the block to the other file."""
        view, at = _bytes(block.contiguous()), rows.start * self._row_bytes
        with _explained(self._folder):
            while len(view):
                count = os.pwrite(self._files[1 - self._valid].fileno(), view, at)
                view, at = view[count:], at + count

    def turn(self) -> None:
        """End an iteration: what was written is now what is read."""
        self._valid = 1 - self._valid

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the array is on disk already."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to undo."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state of the last whole iteration; None without one of the same identity."""
        path = self._folder / "state.safetensors"
        if not (self._continues and path.is_file()):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:  # safetensors raises its own type
            logger.warning("%s: cannot be read (%s); starting over", path, error)
            return None
        if header.get("identity") != self._identity:
            logger.warning("%s: belongs to %s, not to %s; starting over", path, header.get("identity"), self._identity)
            return None
        self._valid, position = int(header["valid"]), json.loads(header["position"])
        logger.info("resuming from %s at %s", path, position)
        return tensors, position

    def due(self) -> bool:
        """Always: little has to be written."""
        return True

    def tick(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Replace the state."""
        header = {"identity": self._identity, "position": canonical_json(position), "valid": str(self._valid)}
        path = self._folder / "state.safetensors"
        with _explained(path):
            save_file({name: t.contiguous() for name, t in tensors.items()}, path.with_suffix(".partial"), header)
            os.replace(path.with_suffix(".partial"), path)

    def close(self, done: bool) -> None:
        """Close the files, and remove them where the work is done."""
        for file in self._files:
            file.close()
        if done:
            for name in ("state.safetensors", "T.0", "T.1"):
                (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies there
                self._folder.rmdir()


def _opened(path: Path, size: int) -> BinaryIO:
    """Open a file for reading and writing in place, ``size`` bytes long; new parts are holes."""
    file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115 (closed by ``close``)
    file.truncate(size)
    return file


def _bytes(block: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    array: Any = block.numpy()
    return memoryview(array).cast("B")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}; two arrays of the size of X are kept there. Make room, or name another folder"
        ) from error


class NpyRows:
    """A ``.npy`` file of a problem's matrix, in the user's orientation, written by blocks of rows of the tall one."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype, transposed: bool):
        """Begin ``.NAME.partial`` beside the path."""
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        name = {torch.float32: "<f4", torch.float64: "<f8"}[dtype]
        described = {"descr": name, "fortran_order": transposed, "shape": shape[::-1] if transposed else shape}
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # noqa: SIM115 (closed on exit)
            np.lib.format.write_array_header_1_0(self._file, described)

    def append(self, block: Tensor) -> None:
        """Write the next rows."""
        with _explained(self._path):
            self._file.write(_bytes(block.contiguous()))

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Publish the file, or leave nothing."""
        with _explained(self._path):
            self._file.close()
            if kind is None:
                os.replace(self._partial, self._path)
            else:
                self._partial.unlink(missing_ok=True)
