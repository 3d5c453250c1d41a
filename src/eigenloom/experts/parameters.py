"""Codes as functions of free numbers, so that a descent without constraints keeps them where they belong.

Signed codes are the numbers themselves, nonnegative ones their squares, those on the simplex squares over their sum,
and sparse ones the numbers where a mask allows them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-2
"""Zeros of constrained codes begin as this share of the largest root: at zero itself a square has no slope."""


@dataclass(frozen=True)
class CodeParameters:
    """``kind``: ``signed``, ``nonneg``, ``simplex`` or ``sparse``; ``mask [E, m]`` says which may move."""

    kind: str
    mask: Tensor | None = None

    def free(self, codes: Tensor) -> Tensor:
        """Return numbers ``[E, m]`` that make these codes, or nearly so where they are zero."""
        if self.kind in ("signed", "sparse"):
            return codes.clone()
        roots = codes.clamp_min(0).sqrt()
        return roots.clamp_min(_LEAST * roots.amax(1, keepdim=True))

    def codes(self, free: Tensor) -> Tensor:
        """Return codes ``[E, m]``."""
        if self.kind == "signed":
            return free
        if self.kind == "sparse":
            return free if self.mask is None else free * self.mask
        squares = self._squares(free)
        return squares if self.kind == "nonneg" else squares / squares.sum(1, keepdim=True)

    def pull_back(self, free: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient in the free numbers of one in the codes."""
        if self.kind == "signed":
            return gradient
        if self.kind == "sparse":
            return gradient if self.mask is None else gradient * self.mask
        if self.kind == "nonneg":
            return 2 * free * gradient
        squares = self._squares(free)
        total = squares.sum(1, keepdim=True)
        mean = (squares * gradient).sum(1, keepdim=True) / total
        pulled = 2 * free * (gradient - mean) / total
        return pulled if self.mask is None else pulled * self.mask

    def jacobian(self, free: Tensor) -> Tensor:
        """Return ``d codes / d free`` ``[E, m, m]``."""
        if self.kind in ("signed", "sparse"):
            return torch.diag_embed(torch.ones_like(free) if self.mask is None else self.mask.to(free.dtype))
        if self.kind == "nonneg":
            return torch.diag_embed(2 * free)
        squares = self._squares(free)
        moving = free if self.mask is None else free * self.mask
        total = squares.sum(1)[:, None, None]
        return (torch.diag_embed(2 * moving) - 2 * squares[:, :, None] * moving[:, None, :] / total) / total

    def _squares(self, free: Tensor) -> Tensor:
        squares = free.square()
        return squares if self.mask is None else squares * self.mask
