"""The labelled rows of one split: walked as feature-major chunks, or gathered column by column."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from eigenloom.codes.stream import CodeBatch, CodeStream
from eigenloom.errors import ConfigError, DataError

logger = logging.getLogger("eigenloom")
MIB = 1 << 20
BYTES_PER_ENTRY = 24  # a gathered non-zero: row-major and column-major value and index, and its class


@dataclass(frozen=True, eq=False)
class Columns:
    """Codes of some features, column by column, with the class of every entry.

    Fields: ``features [f]`` their numbers; ``offsets [f + 1]``, ``values`` float32 flat; ``classes`` int16, either
    one per value or, for dense columns, one per row (shared); ``class_counts [c]`` of all labelled rows. Rows without
    a stored value have the code 0.
    """

    features: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32]
    classes: NDArray[np.int16]
    class_counts: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.features)

    @property
    def n_rows(self) -> int:
        """Labelled rows."""
        return int(self.class_counts.sum())

    @property
    def shared(self) -> bool:
        """Whether all columns hold every row, in the same order."""
        return len(self.values) == len(self) * self.n_rows and len(self.classes) == self.n_rows

    def column(self, position: int) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Return values and classes of the entries of one column."""
        first, last = self.offsets[position : position + 2]
        return self.values[first:last], self.classes if self.shared else self.classes[first:last]

    def zeros(self, position: int) -> NDArray[np.int64]:
        """Return how many rows of each class have no entry in one column, ``[c]``."""
        if self.shared:
            return np.zeros_like(self.class_counts)
        return self.class_counts - np.bincount(self.column(position)[1], minlength=len(self.class_counts))


class LabelledRows:
    """The rows of a code stream that have a class; void ones never leave it.

    Dense codes that fit half of the memory bound are kept after the first walk, so that later passes read no file
    and encode nothing; results do not depend on it. ``classes`` is -1 for void.
    """

    def __init__(self, stream: CodeStream, classes: NDArray[np.int16], n_classes: int, name: str, memory_mb: int):
        """Take ``classes [n_rows]`` int16 of the stream's rows; ``name`` of the split is for messages."""
        if len(classes) != stream.n_rows:
            raise DataError(f"{name}: {len(classes)} labels for {stream.n_rows} rows of codes; label the split again")
        self.stream, self.name, self._all = stream, name, classes
        self.classes = classes[classes >= 0]
        self.class_counts = np.bincount(self.classes, minlength=n_classes).astype(np.int64)
        self.n_rows = len(self.classes)
        self.n_features = stream.n_features
        self._bytes = memory_mb * MIB // 2
        self._cache: Columns | None = None
        column_bytes = 4 * self.n_rows
        if stream.layout != "label" and self._bytes < column_bytes:
            least = 2 * column_bytes // MIB + 1
            raise ConfigError(f"memory_mb: {memory_mb} does not hold one column of {name}; the least is {least}")

    def batches(self) -> Iterator[tuple[CodeBatch, NDArray[np.intp], NDArray[np.int16]]]:
        """Yield each batch of codes with the positions and classes of its labelled rows."""
        first = 0
        for batch in self.stream:
            classes = self._all[first : first + batch.n_rows]
            _check_finite(batch, self.name, first)
            kept = np.flatnonzero(classes >= 0)
            yield batch, kept, classes[kept]
            first += batch.n_rows
        if first != self.stream.n_rows:
            raise DataError(f"{self.name}: the codes end after {first} of {self.stream.n_rows} rows; encode again")

    def chunks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int16]]]:
        """Yield dense codes feature-major ``[k, b]`` with the classes ``[b]`` of their rows."""
        fits = 4 * self.n_rows * self.n_features <= self._bytes
        if self._cache is None and fits:
            self._cache = self._dense(np.arange(self.n_features))
        if self._cache is not None:
            yield self._cache.values.reshape(self.n_features, self.n_rows), self.classes
            return
        for batch, kept, classes in self.batches():
            values = batch.values[torch.from_numpy(kept)] if len(kept) < batch.n_rows else batch.values
            yield np.ascontiguousarray(values.cpu().numpy().T), classes

    def columns(self, features: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[Columns]:
        """Yield the columns of ``features`` (ascending; default all) in blocks that respect the memory bound."""
        chosen = np.arange(self.n_features) if features is None else np.asarray(features, dtype=np.int64)
        if not len(chosen):
            return
        if self.stream.layout == "dense":
            yield from self._dense_blocks(chosen)
        else:
            yield from self._sparse_blocks(chosen)

    def counts(self) -> NDArray[np.int64]:
        """Return ``[k, c]``: rows of each class whose code has a non-zero entry at each feature (sparse layouts)."""
        n_classes = len(self.class_counts)
        total = np.zeros(self.n_features * n_classes, dtype=np.int64)
        for batch, kept, classes in self.batches():
            entries = batch.values.cpu().numpy()[kept] != 0
            cells = batch.indices.cpu().numpy()[kept].astype(np.int64) * n_classes + classes[:, None]
            total += np.bincount(cells[entries], minlength=len(total))
        return total.reshape(self.n_features, n_classes)

    def _dense_blocks(self, chosen: NDArray[np.int64]) -> Iterator[Columns]:
        """Slice the kept matrix, or walk the stream once per block."""
        if self._cache is None and 4 * self.n_rows * self.n_features <= self._bytes:
            self._cache = self._dense(np.arange(self.n_features))
        size = max(1, self._bytes // (4 * max(self.n_rows, 1)))
        for first in range(0, len(chosen), size):
            block = chosen[first : first + size]
            if self._cache is None:
                yield self._dense(block)
            elif len(block) == self.n_features:
                yield self._cache
            else:
                values = self._cache.values.reshape(self.n_features, self.n_rows)[block]
                yield self._dense_columns(block, values)

    def _dense(self, block: NDArray[np.int64]) -> Columns:
        """Gather some dense columns in one walk."""
        matrix = np.empty((len(block), self.n_rows), dtype=np.float32)
        last = 0
        everything = len(block) == self.n_features
        for batch, kept, _ in self.batches():
            rows = batch.values.cpu().numpy()
            rows = rows[kept] if everything else rows[np.ix_(kept, block)]
            matrix[:, last : last + len(kept)] = rows.T
            last += len(kept)
        return self._dense_columns(block, matrix)

    def _dense_columns(self, block: NDArray[np.int64], matrix: NDArray[np.float32]) -> Columns:
        """Wrap a feature-major matrix."""
        offsets = np.arange(len(block) + 1, dtype=np.int64) * self.n_rows
        return Columns(block, offsets, matrix.reshape(-1), self.classes, self.class_counts)

    def _sparse_blocks(self, chosen: NDArray[np.int64]) -> Iterator[Columns]:
        """Gather everything at once where it fits, else count first and cut into blocks."""
        if self._cache is not None:
            yield _pick(self._cache, chosen)
            return
        width = next((batch.values.shape[1] for batch in self.stream), 0)
        fits = width * self.n_rows * BYTES_PER_ENTRY <= self._bytes
        nonzeros = np.zeros(0, dtype=np.int64) if fits else self.counts().sum(1)
        if fits or int(nonzeros.sum()) * BYTES_PER_ENTRY <= self._bytes:
            self._cache = self._sparse(np.arange(self.n_features))
            yield _pick(self._cache, chosen)
            return
        limit = max(self._bytes // BYTES_PER_ENTRY, int(nonzeros.max()))
        block_number = (np.cumsum(nonzeros[chosen]) - 1) // limit
        for number in np.unique(block_number):
            yield self._sparse(chosen[block_number == number])

    def _sparse(self, block: NDArray[np.int64]) -> Columns:
        """Gather some sparse columns in one walk: row-major pieces, turned to column-major by one counting sort."""
        position = np.full(self.n_features, -1, dtype=np.int32)
        position[block] = np.arange(len(block), dtype=np.int32)
        values, indices, lengths = [], [], []
        for batch, kept, _ in self.batches():
            entries = batch.values.cpu().numpy()[kept]
            columns = position[batch.indices.cpu().numpy()[kept]]
            wanted = (entries != 0) & (columns >= 0)
            values.append(entries[wanted])
            indices.append(columns[wanted])
            lengths.append(wanted.sum(1))
        starts = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))])
        rows = csr_matrix((_join(values, np.float32), _join(indices, np.int32), starts), (self.n_rows, len(block)))
        del values, indices
        by_column = rows.tocsc()
        classes = self.classes[by_column.indices]
        return Columns(block, by_column.indptr.astype(np.int64), by_column.data, classes, self.class_counts)


def _pick(columns: Columns, chosen: NDArray[np.int64]) -> Columns:
    """Select columns of a complete set."""
    if len(chosen) == len(columns):
        return columns
    lengths = np.diff(columns.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    at = np.repeat(columns.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Columns(chosen, offsets, columns.values[at], columns.classes[at], columns.class_counts)


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    """Concatenate, also nothing."""
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype, copy=False)


def _check_finite(batch: CodeBatch, name: str, first: int) -> None:
    """Refuse NaN and infinities, naming the first."""
    if not batch.values.numel():
        return
    largest = float(batch.values.abs().max())
    logger.debug("%s: rows from %d, largest code %.4g", name, first, largest)
    if not np.isfinite(largest):
        row, entry = (int(i) for i in torch.nonzero(~torch.isfinite(batch.values))[0])
        feature = entry if batch.layout == "dense" else int(batch.indices[row, entry])
        raise DataError(
            f"{name}: the code of row {first + row} at feature {feature} is {float(batch.values[row, entry])}; "
            "the basis or its input is broken: measure the store, then fit and encode again"
        )


def encode_classes(labels: Tensor | NDArray, classes: Sequence[str], void: int | None, name: str) -> NDArray[np.int16]:
    """Turn patch labels into class numbers, -1 for void; those after void move up one place.

    Raises:
        DataError: a label is not in the list of classes.
    """
    ids = np.asarray(labels).reshape(-1)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(classes):
        row = int(np.flatnonzero((ids < 0) | (ids >= len(classes)))[0])
        raise DataError(f"{name}: row {row} has label {int(ids[row])}, but there are {len(classes)} classes")
    numbers = np.arange(len(classes), dtype=np.int16)
    if void is not None:
        numbers[void:] -= 1
        numbers[void] = -1
    return numbers[ids]
