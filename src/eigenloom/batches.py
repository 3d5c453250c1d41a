"""Rows, or columns, of a matrix as a stream that can be walked again: the contract between data and fits.

Also the two decisions every consumer of rows shares: which device to use and where randomness comes from.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from eigenloom.errors import ConfigError


@runtime_checkable
class Batches(Protocol):
    """``n_rows`` rows of ``n_features`` numbers, delivered as float32 tensors ``[b, d]`` on the CPU.

    Walking twice gives the same rows in the same order; nothing about the values depends on how they are cut
    into batches.
    """

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def n_features(self) -> int:
        """Length of a row."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches ``[b, d]`` in stored order; their concatenation is the matrix."""
        ...

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield batches in a block-shuffled order that is a function of the generator's state alone.

        Each row comes once. ``skip_rows`` rows of that order are left out at the front, which is how a resumed
        fit continues in the middle of a pass.
        """
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct rows ``[n, d]``, uniform, in random order (each prefix is a sample)."""
        ...


@runtime_checkable
class ColumnBlocks(Protocol):
    """``n_rows`` long rows of ``n_features`` numbers, delivered a range of columns of all rows at a time.

    For rows that are too long to hold even a few of, such as the flattened weights of a model. Walking twice gives
    the same numbers. A source may also offer ``locate(row, feature) -> str``, which names a place for a message.
    """

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def n_features(self) -> int:
        """Length of a row."""
        ...

    def column_blocks(self, size: int) -> Iterator[Tensor]:
        """Yield ``[n_rows, c]`` float32 on the CPU: consecutive ranges of ``size`` columns, the last one shorter."""
        ...


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return the CPU generator of ``(seed, purpose, index)``.

    Every use of randomness has a purpose of its own (``reservoir``, ``seeding``, ``shuffle``, ...) and an index
    (pass, part, ...), so that adding a draw in one place never moves another, and a resumed fit derives its
    generators again instead of restoring them.
    """
    text = f"{seed}\x00{purpose}\x00{index}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
    return torch.Generator(device="cpu").manual_seed(number)


def first_nonfinite(batch: Tensor) -> tuple[int, int, int] | None:
    """Return row and feature of the first NaN or infinity in ``[b, d]`` and how many there are; None without one."""
    finite = torch.isfinite(batch)
    if finite.all():
        return None
    places = (~finite).nonzero()
    return int(places[0, 0]), int(places[0, 1]), len(places)


def resolve_device(name: str) -> torch.device:
    """Turn ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``auto`` into a device that exists.

    ``auto`` is CUDA where a card is visible, else the CPU.

    Raises:
        ConfigError: the name is unknown, or asks for hardware this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise ConfigError(f"device: {name!r} is not available on this machine; use device: auto or cpu")
    return device
