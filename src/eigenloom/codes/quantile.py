"""The exact quantile of numbers too many to hold: two counting passes over the halves of their bits."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from eigenloom.errors import DataError

_HALF = 1 << 16


def exact_quantile(batches: Iterable[Tensor], quantile: float) -> float:
    """Return the entry of rank ``ceil(quantile * n) - 1`` (from 0) among all entries of all batches.

    A float32 that is not negative sorts like its bits: one pass counts the upper 16, a second the lower 16 within
    the bin that holds the rank. Order of rows and cut into batches do not matter.

    Args:
        batches: float32 tensors of any shape, none negative; walked twice.
        quantile: in (0, 1].

    Raises:
        DataError: there is no entry.
    """
    upper = torch.zeros(_HALF, dtype=torch.int64)
    for batch in batches:
        upper += torch.bincount(_bits(batch) >> 16, minlength=_HALF).cpu()
    n = int(upper.sum())
    if n == 0:
        raise DataError("a quantile of no numbers was asked for")
    rank = max(math.ceil(quantile * n) - 1, 0)
    coarse, rank = _locate(upper, rank)
    lower = torch.zeros(_HALF, dtype=torch.int64)
    for batch in batches:
        bits = _bits(batch)
        lower += torch.bincount(bits[bits >> 16 == coarse] & (_HALF - 1), minlength=_HALF).cpu()
    fine, _ = _locate(lower, rank)
    return float(torch.tensor([(coarse << 16) | fine], dtype=torch.int32).view(torch.float32))


def _bits(batch: Tensor) -> Tensor:
    """The bit patterns as int64, flat; the sign of a negative zero is dropped."""
    return batch.to(torch.float32).abs().contiguous().view(torch.int32).to(torch.int64).ravel()


def _locate(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin of a rank and the rank within it."""
    ends = counts.cumsum(0)
    index = int(torch.searchsorted(ends, rank, right=True))
    return index, rank - int(ends[index] - counts[index])
