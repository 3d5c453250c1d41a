"""What is known of each feature after one pass over its codes; mergeable."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.codes.selection import cache_blocks
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained, write_bytes


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Sums over ``n_rows`` rows for each of ``k`` features.

    Fields ``[k]``: ``n_nonzero`` int64 (for a basis of centres: rows assigned, whatever the coding), ``minimum`` and
    ``maximum`` float32, ``mean`` float64, ``m2`` float64 ``= sum (z - mean)^2``, ``n_nonfinite`` int64.
    """

    n_rows: int
    n_nonzero: Tensor
    minimum: Tensor
    maximum: Tensor
    mean: Tensor
    m2: Tensor
    n_nonfinite: Tensor

    @classmethod
    def of(cls, batch: CodeBatch) -> "FeatureStatistics":
        """Count one batch of codes."""
        if batch.layout == "dense":
            return cls._of_dense(batch.values)
        n, k = batch.n_rows, batch.n_features
        ids, values = batch.indices.reshape(-1).to(torch.int64), batch.values.reshape(-1)
        if torch.count_nonzero(values) < len(values):
            ids, values = ids[values != 0], values[values != 0]
        n_nonzero, wide = torch.bincount(ids, minlength=k), values.to(torch.float64)
        total = torch.bincount(ids, weights=wide, minlength=k)
        # Squares of float32 are exact in float64, so the difference loses nothing that the codes had.
        m2 = (torch.bincount(ids, weights=wide * wide, minlength=k) - total.square() / n).clamp_min(0)
        # A feature that is 0 in some row has 0 in its range.
        start = torch.where(n_nonzero < n, 0.0, torch.inf)
        minimum = start.to(torch.float32).scatter_reduce(0, ids, values, "amin")
        maximum = (-start).to(torch.float32).scatter_reduce(0, ids, values, "amax")
        n_nonfinite = torch.zeros_like(n_nonzero)
        if not torch.isfinite(total).all():
            n_nonfinite = torch.bincount(ids[~torch.isfinite(values)], minlength=k)
        return cls(n, n_nonzero.cpu(), minimum.cpu(), maximum.cpu(), (total / n).cpu(), m2.cpu(), n_nonfinite.cpu())

    @classmethod
    def _of_dense(cls, values: Tensor) -> "FeatureStatistics":
        """Count dense codes ``[b, k]``."""
        # Squares around a row of the data: they do not cancel, and a constant feature has no spread at all.
        origin = values[0].nan_to_num(0.0, 0.0, 0.0)
        minimum, maximum, n_nonzero = values[0], values[0], torch.zeros_like(origin, dtype=torch.int64)
        total, moved, squares = (torch.zeros_like(origin, dtype=torch.float64) for _ in range(3))
        for block in cache_blocks(values):
            minimum = torch.minimum(minimum, block.amin(0))
            maximum = torch.maximum(maximum, block.amax(0))
            n_nonzero += (block != 0).sum(0)
            total += block.sum(0, dtype=torch.float64)
            difference = block - origin
            moved += difference.sum(0, dtype=torch.float64)
            squares += difference.square_().sum(0, dtype=torch.float64)
        n_nonfinite = torch.zeros_like(n_nonzero)
        if not (torch.isfinite(minimum) & torch.isfinite(maximum)).all():
            n_nonfinite = (~torch.isfinite(values)).sum(0)
        n = len(values)
        mean, m2 = total / n, (squares - moved.square() / n).clamp_min(0)
        return cls(n, n_nonzero.cpu(), minimum.cpu(), maximum.cpu(), mean.cpu(), m2.cpu(), n_nonfinite.cpu())

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of both sets of rows (Chan, Golub & LeVeque 1983); always merge from the left."""
        n = self.n_rows + other.n_rows
        delta = other.mean - self.mean
        return FeatureStatistics(
            n,
            self.n_nonzero + other.n_nonzero,
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.maximum, other.maximum),
            self.mean + delta * (other.n_rows / n),
            self.m2 + other.m2 + delta.square() * (self.n_rows * other.n_rows / n),
            self.n_nonfinite + other.n_nonfinite,
        )

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.mean.shape[0]

    @property
    def std(self) -> Tensor:
        """Population standard deviation ``[k]`` float64."""
        return (self.m2 / self.n_rows).sqrt()

    def save(self, path: Path) -> str:
        """Write a safetensors file; return its sha256."""
        tensors = {name: getattr(self, name).contiguous() for name in _FIELDS}
        return write_bytes(path, format_safetensors({"n_rows": torch.tensor([self.n_rows]), **tensors}))

    @classmethod
    def load(cls, path: Path) -> "FeatureStatistics":
        """Read what ``save`` wrote.

        Raises:
            StoreError: the file is missing or holds something else.
        """
        with explained(path):
            data = path.read_bytes()
        try:
            tensors = parse_safetensors(data)
            return cls(int(tensors["n_rows"]), *(tensors[name] for name in _FIELDS))
        except Exception as error:  # safetensors raises its own type
            raise StoreError(f"{path}: is not a file of code statistics ({error}); run encode again") from None


_FIELDS = ("n_nonzero", "minimum", "maximum", "mean", "m2", "n_nonfinite")
