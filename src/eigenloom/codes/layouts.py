"""What a part of code files holds: the arrays of each layout, their dtypes, and how a batch of rows fills them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.codes.codings import Dense
from eigenloom.codes.distances import OneHot, SquaredDistance
from eigenloom.codes.manifest import LAYOUTS
from eigenloom.codes.residuals import Tails, row_errors
from eigenloom.codes.selection import largest
from eigenloom.codes.statistics import FeatureStatistics
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import ConfigError, DataError

logger = logging.getLogger("eigenloom")
DTYPES = {"<f2": torch.float16, "<f4": torch.float32, "<i4": torch.int32}


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """One batch ready to be written: ``arrays`` by name, ``errors [b, n]`` float32, the statistics."""

    arrays: dict[str, Tensor]
    errors: Tensor
    statistics: FeatureStatistics


@dataclass(frozen=True, eq=False)
class Layout(ABC):
    """One way to store the codes of one basis."""

    name: ClassVar[str]
    basis: Basis

    @abstractmethod
    def columns(self) -> dict[str, tuple[str, int | None]]:
        """Name of each array -> its dtype and its width; None for one number per row."""

    @property
    def stored_k(self) -> int:
        """Entries stored per row."""
        return self.basis.n_elements

    @property
    def values(self) -> str:
        """What the arrays hold: ``codes``, ``labels`` or ``squared-distance``."""
        return "codes"

    @property
    def error_ks(self) -> list[int]:
        """For how many kept entries the columns of the errors file hold ``|x - xhat|^2``."""
        return [self.stored_k]

    def header(self) -> dict[str, Any]:
        """What every part's edge says of the codes."""
        return {
            "layout": self.name,
            "values_kind": self.values,
            "k": self.basis.n_elements,
            "stored_k": self.stored_k,
            "standardization": self.basis.standardization.digest,
        }

    @abstractmethod
    def encode(self, x: Tensor) -> EncodedBatch:
        """Fill the arrays from rows ``[b, d]`` in the fitted space.

        Raises:
            DataError: a value does not fit the dtype.
        """


@dataclass(frozen=True, eq=False)
class LabelLayout(Layout):
    """Index of the nearest centre and the squared distance to it."""

    name = "label"

    def columns(self) -> dict[str, tuple[str, int | None]]:
        """Eight bytes a row."""
        return {"labels": ("<i4", None), "distances": ("<f4", None)}

    @property
    def stored_k(self) -> int:
        """One entry per row."""
        return 1

    @property
    def values(self) -> str:
        """Labels."""
        return "labels"

    def encode(self, x: Tensor) -> EncodedBatch:
        """The stored distance is the error."""
        arrays = OneHot().arrays(self.basis, x)
        batch = CodeBatch.label(arrays["labels"], self.basis.n_elements)
        return EncodedBatch(arrays, arrays["distances"][:, None], FeatureStatistics.of(batch))


@dataclass(frozen=True, eq=False)
class TopKLayout(Layout):
    """The ``kept`` largest entries by falling absolute value, so that every smaller K is a prefix."""

    kept: int
    tails: Tails | None
    ks: tuple[int, ...]
    name = "topk"

    def columns(self) -> dict[str, tuple[str, int | None]]:
        """Eight bytes an entry."""
        return {"values": ("<f4", self.kept), "indices": ("<i4", self.kept)}

    @property
    def stored_k(self) -> int:
        """Entries per row."""
        return self.kept

    @property
    def error_ks(self) -> list[int]:
        """The K asked for, the largest being the one stored."""
        return list(self.ks)

    def encode(self, x: Tensor) -> EncodedBatch:
        """All entries are made, the largest kept."""
        z = self.basis.encode(x)
        values, indices = largest(z, self.kept)
        statistics = FeatureStatistics.of(CodeBatch.sparse(values, indices, z.shape[1]))
        return EncodedBatch(
            {"values": values, "indices": indices}, row_errors(self.basis, self.tails, x, z, self.ks), statistics
        )


@dataclass(frozen=True, eq=False)
class DenseLayout(Layout):
    """Every entry of ``encode(x)``."""

    dtype: str
    tails: Tails | None
    name = "dense"

    def columns(self) -> dict[str, tuple[str, int | None]]:
        """Two or four bytes an entry."""
        return {"values": (self.dtype, self.basis.n_elements)}

    def encode(self, x: Tensor) -> EncodedBatch:
        """Statistics are those of the rounded values, errors those of the exact ones."""
        z = Dense().arrays(self.basis, x)["values"]
        stored = _rounded(z, self.dtype)
        errors = row_errors(self.basis, self.tails, x, z, [z.shape[1]])
        return EncodedBatch({"values": stored}, errors, FeatureStatistics.of(CodeBatch.dense(stored)))


@dataclass(frozen=True, eq=False)
class DistanceLayout(Layout):
    """Every squared distance, and what ``LabelLayout`` holds: rounded distances do not keep the argmin."""

    dtype: str
    name = "dense"

    def columns(self) -> dict[str, tuple[str, int | None]]:
        """As ``DenseLayout`` and ``LabelLayout`` together."""
        return {"values": (self.dtype, self.basis.n_elements), "labels": ("<i4", None), "distances": ("<f4", None)}

    @property
    def values(self) -> str:
        """Squared distances."""
        return "squared-distance"

    @property
    def error_ks(self) -> list[int]:
        """The reconstruction is the nearest centre."""
        return [1]

    def encode(self, x: Tensor) -> EncodedBatch:
        """Statistics are those of the rounded distances, with rows assigned in place of non-zeros."""
        arrays = SquaredDistance().arrays(self.basis, x)
        arrays["values"] = _rounded(arrays["values"], self.dtype)
        found = FeatureStatistics.of(CodeBatch.dense(arrays["values"]))
        assigned = torch.bincount(arrays["labels"].to(torch.int64), minlength=self.basis.n_elements).cpu()
        statistics = FeatureStatistics(
            found.n_rows, assigned, found.minimum, found.maximum, found.mean, found.m2, found.n_nonfinite
        )
        return EncodedBatch(arrays, arrays["distances"][:, None], statistics)


def layout_for(basis: Basis, spec: Mapping[str, Any], device: torch.device | str = "cpu") -> Layout:
    """Choose the layout that ``spec`` asks for.

    Args:
        basis: the codes' basis.
        spec: ``layout`` (``label``, ``topk``, ``dense``); for ``topk`` ``stored_k``, and ``errors_k`` (further K for
            which errors are stored); for ``dense`` ``dtype`` (``float16`` or ``float32``).
        device: where the orthonormality of the basis is checked.

    Raises:
        ConfigError: an unknown layout or dtype, a layout for another geometry, ``stored_k`` below 1.
    """
    name = spec.get("layout")
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r} is unknown; known: {', '.join(LAYOUTS)}")
    distance = basis.geometry == "distance"
    if name == ("topk" if distance else "label"):
        usable = "label or dense" if distance else "topk or dense"
        raise ConfigError(f"layout {name!r} does not fit a basis of geometry {basis.geometry!r}; use {usable}")
    if name == "label":
        return LabelLayout(basis)
    if name == "topk":
        return _topk_layout(basis, spec.get("stored_k"), spec.get("errors_k", ()), device)
    dtypes = {"float16": "<f2", "<f2": "<f2", "float32": "<f4", "<f4": "<f4", None: "<f4"}
    if spec.get("dtype") not in dtypes:
        raise ConfigError(f"dtype {spec.get('dtype')!r} of dense codes is unknown; use float16 or float32")
    dtype = dtypes[spec.get("dtype")]
    return DistanceLayout(basis, dtype) if distance else DenseLayout(basis, dtype, Tails.of(basis, device))


def _topk_layout(basis: Basis, stored_k: Any, errors_k: Sequence[int], device: torch.device | str) -> TopKLayout:
    """Check the counts and cut them to the width of the basis."""
    if not isinstance(stored_k, int) or stored_k < 1 or any(k < 1 for k in errors_k):
        raise ConfigError(f"stored_k {stored_k!r} and errors_k {list(errors_k)} must be integers of at least 1")
    k = basis.n_elements
    if stored_k > k:
        logger.info("stored_k %d is more than the %d elements of the basis; all are stored", stored_k, k)
    ks = sorted({min(count, k) for count in (*errors_k, stored_k)})
    return TopKLayout(basis, min(stored_k, k), Tails.of(basis, device), tuple(ks))


def _rounded(values: Tensor, dtype: str) -> Tensor:
    """Convert, refusing what overflows."""
    stored = values.to(DTYPES[dtype])
    if stored.dtype == values.dtype:
        return stored
    limit = torch.finfo(DTYPES[dtype]).max
    largest_value = values.abs().max()
    if limit < largest_value < torch.inf:
        raise DataError(
            f"a code of {float(largest_value):.6g} does not fit float16, whose largest number is {limit:.0f}; "
            "use float32 for these codes"
        )
    return stored
