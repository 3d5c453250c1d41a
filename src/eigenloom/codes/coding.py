"""The contract of a coding: what number a feature shows for a row, given a fitted basis.

Each coding is a small frozen object. Codes made from rows (``encode``) and codes read back from files go through
the same ``of``, so they cannot differ. Distances are Euclidean, in the fitted space.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.batches import Batches
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import ConfigError, DataError

logger = logging.getLogger("eigenloom")
Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Coding(ABC):
    """The contract: which bases it fits, what arrays it is made from, what batches it yields."""

    kind: ClassVar[str]
    geometry: ClassVar[str]
    """Of the bases it fits: ``distance`` or ``projection``."""
    layout: ClassVar[str]
    """Of the batches it yields: one of ``stream.LAYOUTS``."""

    @property
    def name(self) -> str:
        """The word that paths and tables use."""
        return self.kind

    def fits(self, basis: Basis) -> bool:
        """Say whether codes of this kind can be made with the basis."""
        return basis.geometry == self.geometry

    def check(self, basis: Basis) -> None:
        """Refuse a basis that this coding does not fit.

        Raises:
            ConfigError: it needs the other geometry.
        """
        if not self.fits(basis):
            raise ConfigError(
                f"coding {self.name!r} needs a basis of geometry {self.geometry!r}, but {basis.kind!r} is a "
                f"{basis.geometry!r}; choose another coding for it"
            )

    def calibrate(self, basis: Basis, rows: Batches, device: torch.device | str = "cpu") -> Self:
        """Return the coding with its data-dependent numbers taken from ``rows``: raw rows of ``probe_train``."""
        self.check(basis)
        return self.resolve(ArraysOfRows(self, basis, rows, device))

    def resolve(self, walk: Iterable[Arrays]) -> Self:
        """The same from arrays of codes made or stored earlier; ``walk`` may be walked more than once."""
        del walk
        return self

    def effective(self, k: int) -> "Coding":
        """Return the coding that this one amounts to for ``k`` elements (a Top-K with K >= k is dense)."""
        del k
        return self

    def n_clipped(self, arrays: Arrays) -> Tensor | int:
        """Count the entries that the coding had to clip into its range."""
        del arrays
        return 0

    @abstractmethod
    def nominal_l0(self, k: int) -> int | None:
        """The number of non-zero entries that the definition allows per row; None where the data decide."""

    @abstractmethod
    def arrays(self, basis: Basis, x: Tensor) -> dict[str, Tensor]:
        """Return what a file of the coding's preferred layout would hold for rows ``[b, d]`` in the fitted space."""

    @abstractmethod
    def can_view(self, layout: str, stored_k: int, k: int) -> bool:
        """Say whether code files of this layout (``label``, ``topk``, ``dense``) hold all that the coding needs."""

    @abstractmethod
    def of(self, arrays: Arrays, k: int) -> CodeBatch:
        """Make codes for ``k`` elements from arrays of a file (or ``arrays``)."""

    def encode(self, basis: Basis, x: Tensor) -> CodeBatch:
        """Make the codes of rows ``[b, d]`` in the fitted space."""
        return self.of(self.arrays(basis, x), basis.n_elements)

    def parameters(self) -> dict[str, Any]:
        """The configuration entry, resolved numbers included."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ArraysOfRows:
    """What a coding is made from, batch by batch, straight from raw rows; can be walked again."""

    coding: Coding
    basis: Basis
    rows: Batches
    device: torch.device | str = "cpu"

    def __iter__(self) -> Iterator[Arrays]:
        """Standardize as the basis was fitted, and encode."""
        for batch in self.rows:
            yield self.coding.arrays(self.basis, self.basis.standardization.apply(batch.to(self.device)))


def dense_instead(coding: Coding, dense: Coding, k: int) -> Coding:
    """Say that a coding leaves nothing out of ``k`` elements, and return the dense one."""
    logger.info("%s of %d elements leaves nothing out: it is %s", coding.name, k, dense.name)
    return dense


def at_least_one(k: object, kind: str) -> None:
    """Refuse a count that is not a positive integer.

    Raises:
        ConfigError: with the value.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ConfigError(f"coding {kind}: k is {k!r}, but must be an integer of at least 1")


def refuse_nonfinite(arrays: Arrays, where: str, first_row: int) -> None:
    """Stop at codes that are not numbers.

    Raises:
        DataError: names the place, the row counted from the shard's first, and the feature.
    """
    for name in ("values", "distances"):
        values = arrays.get(name)
        # A sum is not finite when an entry is not; only then is it worth searching, and it may have overflown.
        if values is None or torch.isfinite(values.sum()) or torch.isfinite(values).all():
            continue
        place = (~torch.isfinite(values)).nonzero()[0].tolist()
        row, entry = place[0], place[-1] if len(place) > 1 else None
        value = float(values[tuple(place)])
        feature = entry
        if entry is not None and "indices" in arrays:
            feature = int(arrays["indices"][row, entry])
        column = "distance to the nearest centre" if feature is None else f"feature {feature}"
        raise DataError(
            f"{where}, row {first_row + row}, {column}: the code is {value}; the basis or its input is broken"
        )
