"""Codes as a stream of batches: what probes and statistics consume, whatever the codes come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

LAYOUTS = ("label", "sparse", "dense")


@dataclass(frozen=True, eq=False)
class CodeBatch:
    """The codes of ``b`` consecutive rows in one of three layouts; build it with ``label``, ``sparse`` or ``dense``.

    - ``label``: the value 1 at one element per row. ``indices [b, 1]`` int32, ``values [b, 1]`` ones.
    - ``sparse``: at most ``m`` non-zero entries per row. ``indices [b, m]`` int32, distinct within a row;
      ``values [b, m]`` float32, a stored 0 being as good as an entry left out.
    - ``dense``: every entry. ``values [b, k]`` float32, ``indices [b, 0]``.

    A label batch is therefore a valid sparse batch with ``m = 1``.
    """

    layout: str
    n_features: int
    values: Tensor
    indices: Tensor

    @classmethod
    def label(cls, labels: Tensor, n_features: int) -> "CodeBatch":
        """One-hot codes from ``labels [b]``, integers below ``n_features``."""
        ones = torch.ones((), dtype=torch.float32, device=labels.device).expand(labels.shape[0], 1)
        return cls("label", n_features, ones, labels.to(torch.int32)[:, None])

    @classmethod
    def sparse(cls, values: Tensor, indices: Tensor, n_features: int) -> "CodeBatch":
        """Sparse codes from ``values [b, m]`` and ``indices [b, m]``."""
        return cls("sparse", n_features, values.to(torch.float32), indices.to(torch.int32))

    @classmethod
    def dense(cls, values: Tensor) -> "CodeBatch":
        """Dense codes from ``values [b, k]``."""
        nothing = torch.empty((values.shape[0], 0), dtype=torch.int32, device=values.device)
        return cls("dense", values.shape[1], values.to(torch.float32), nothing)

    @property
    def n_rows(self) -> int:
        """Number of rows ``b``."""
        return self.values.shape[0]

    @property
    def labels(self) -> Tensor:
        """``[b]`` int32: the element of each row of a ``label`` batch."""
        return self.indices[:, 0]

    def __len__(self) -> int:
        """Number of rows, so that a progress bar can count them."""
        return self.n_rows

    def to_dense(self) -> Tensor:
        """Return the codes as ``[b, k]`` float32, whatever the layout."""
        if self.layout == "dense":
            return self.values
        codes = torch.zeros((self.n_rows, self.n_features), dtype=torch.float32, device=self.values.device)
        return codes.scatter_(1, self.indices.to(torch.int64), self.values)


@runtime_checkable
class CodeStream(Protocol):
    """Codes of ``n_rows`` rows, void ones included, in stored order; can be walked again with the same result.

    All batches have the stream's ``layout`` and its ``n_features`` (``k``), and are finite.
    """

    @property
    def n_rows(self) -> int:
        """Number of rows of all batches together."""
        ...

    @property
    def n_features(self) -> int:
        """Width ``k`` of a code."""
        ...

    @property
    def layout(self) -> str:
        """One of ``LAYOUTS``."""
        ...

    def __iter__(self) -> Iterator[CodeBatch]:
        """Yield batches whose concatenation is the code matrix."""
        ...
