"""The subsampled randomized Hadamard transform of long vectors, block by block, from a seed alone.

Tropp, *Improved analysis of the subsampled randomized Hadamard transform* (2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.linalg.fwht import fwht

_HELD = 1 << 22


@dataclass(frozen=True)
class SRHT:
    """The linear map ``R`` from ``n_features`` to ``width`` numbers, ``E ||R x||^2 = ||x||^2``.

    The vector is cut into blocks of ``block_size``; the last is padded with zeros to a power of two. Block ``b`` of
    length ``m`` contributes ``sqrt(m / width) P H D x_b``, with ``D`` random signs, ``H`` the orthogonal Hadamard
    matrix and ``P`` a choice of ``width`` of its ``m`` rows without replacement; the contributions are *added*. Signs
    and choice are a function of ``(seed, "sketch", b)``: every vector in every process meets the same map, and none
    of it is stored.
    """

    seed: int
    n_features: int
    width: int
    block_size: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.width < 1 or self.block_size & (self.block_size - 1) or self.block_size < self.width:
            raise ConfigError(
                f"block_size: {self.block_size} must be a power of two and hold the {self.width} numbers of the sketch"
            )

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_features // self.block_size)

    def length(self, block: int) -> int:
        """Return the length ``m`` of a block, padding included."""
        used = min(self.block_size, self.n_features - block * self.block_size)
        return 1 << (max(used, self.width) - 1).bit_length()

    def operator(self, block: int) -> tuple[Tensor, Tensor]:
        """Return the signs ``[m]`` float32 and the chosen rows ``[width]`` int64 of a block."""
        source, length = generator(self.seed, "sketch", block), self.length(block)
        signs = torch.randint(2, (length,), generator=source, dtype=torch.int8).float().mul_(2).sub_(1)
        return signs, torch.randperm(length, generator=source)[: self.width]

    def apply_block(self, block: int, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """Return what a block adds to ``R (x - shift)``.

        Args:
            block: its number.
            x: the block's columns of some vectors, ``[n, c]``.
            shift: subtracted from each, ``[c]``.

        Returns:
            ``[n, width]`` float32 on the vectors' device.
        """
        signs, chosen = (part.to(x.device) for part in self.operator(block))
        used = x.shape[1]
        rows = max(1, _HELD // len(signs))
        buffer = torch.zeros(min(rows, len(x)), len(signs), device=x.device)
        found = torch.empty(len(x), self.width, device=x.device)
        for first in range(0, len(x), rows):
            part = x[first : first + rows]
            work = buffer[: len(part)]
            torch.sub(part, shift, out=work[:, :used]).mul_(signs[:used])
            work[:, used:] = 0.0
            found[first : first + rows] = fwht(work, out=work)[:, chosen]
        return found.mul_(self.width**-0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``R x`` ``[n, width]`` float64 of vectors ``[n, n_features]``."""
        total = torch.zeros(len(x), self.width, dtype=torch.float64, device=x.device)
        for block, columns in enumerate(x.float().split(self.block_size, dim=1)):
            total += self.apply_block(block, columns)
        return total
