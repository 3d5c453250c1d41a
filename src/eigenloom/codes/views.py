"""Streams of code batches for any coding: from rows through the basis, or from files that hold enough.

Both go through the coding's ``of`` and give the same values. A view writes nothing and has no directory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eigenloom.bases.base import Basis
from eigenloom.batches import Batches
from eigenloom.codes.coding import Arrays, Coding, refuse_nonfinite
from eigenloom.codes.shards import CodeShards
from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import ConfigError, DataError


class RowCodes:
    """Codes made on the way: a ``CodeStream`` over raw rows.

    ``n_clipped`` is what the last complete walk had to clip.
    """

    def __init__(
        self,
        rows: Batches,
        basis: Basis,
        coding: Coding,
        *,
        device: torch.device | str = "cpu",
        where: str = "rows",
    ):
        """Standardize ``rows`` as the basis was fitted and encode them on ``device``.

        Args:
            rows: raw rows, in stored order.
            basis: fitted.
            coding: calibrated, fitting the basis.
            device: the batches stay there.
            where: the words for these rows in messages.

        Raises:
            ConfigError: the coding does not fit the basis.
            DataError: the rows are of another width.
        """
        coding.check(basis)
        if rows.n_features != basis.n_features:
            raise DataError(f"{where}: rows of {rows.n_features} features, but the basis takes {basis.n_features}")
        self._rows, self._basis, self._device, self._where = rows, basis, device, where
        self.coding = coding.effective(basis.n_elements)
        self.n_rows, self.n_features, self.layout = rows.n_rows, basis.n_elements, self.coding.layout
        self.n_clipped = 0

    def arrays(self) -> Iterator[Arrays]:
        """Walk the arrays that codes are made from."""
        first = 0
        for batch in self._rows:
            arrays = self.coding.arrays(self._basis, self._basis.standardization.apply(batch.to(self._device)))
            refuse_nonfinite(arrays, self._where, first)
            yield arrays
            first += len(batch)

    def __iter__(self) -> Iterator[CodeBatch]:
        """Yield code batches, one per batch of rows."""
        yield from _batches(self, self.arrays())


class StoredCodes:
    """Codes read back: a ``CodeStream`` over the files of one split.

    ``n_clipped`` is what the last complete walk had to clip.
    """

    def __init__(self, shards: CodeShards, coding: Coding, *, device: torch.device | str = "cpu"):
        """View ``shards`` through ``coding``, whose batches go to ``device``.

        Raises:
            ConfigError: the files do not hold what the coding needs.
        """
        self.coding = coding.effective(shards.k)
        geometry = "projection" if shards.values_kind == "codes" else "distance"
        enough = self.coding.can_view(shards.layout, shards.stored_k, shards.k)
        if coding.geometry != geometry or not enough:
            raise ConfigError(
                f"{shards.path}: {shards.layout!r} files of {shards.stored_k} {shards.values_kind} per row cannot "
                f"serve the coding {coding.name!r}; stream it from the store, or encode a layout that holds more"
            )
        self._shards, self._device = shards, device
        self.n_rows, self.n_features, self.layout = shards.n_rows, shards.k, self.coding.layout
        self.n_clipped = 0

    def arrays(self) -> Iterator[Arrays]:
        """Walk the stored arrays."""
        for block in self._shards:
            arrays = {name: values.to(self._device) for name, values in block.arrays.items()}
            refuse_nonfinite(arrays, f"{self._shards.path}, shard {block.shard}", block.first_row)
            yield arrays

    def __iter__(self) -> Iterator[CodeBatch]:
        """Yield code batches, one per stored block."""
        yield from _batches(self, self.arrays())

    def calibrated(self) -> "StoredCodes":
        """Return the view with the coding's data-dependent numbers taken from these very files."""
        return StoredCodes(self._shards, self.coding.resolve(_Rewalk(self)), device=self._device)


@dataclass(frozen=True)
class _Rewalk:
    """The arrays of stored codes as something that can be walked again."""

    codes: StoredCodes

    def __iter__(self) -> Iterator[Arrays]:
        """Begin a new walk."""
        return self.codes.arrays()


def _batches(codes: RowCodes | StoredCodes, walk: Iterator[Arrays]) -> Iterator[CodeBatch]:
    """Turn arrays into batches and count what is clipped."""
    clipped: torch.Tensor | int = 0
    for arrays in walk:
        clipped = clipped + codes.coding.n_clipped(arrays)
        yield codes.coding.of(arrays, codes.n_features)
    codes.n_clipped = int(clipped)
