"""What ``pcp`` decomposes: a matrix read by blocks of rows, and how noisy each of its entries is.

Everything is *tall*: a matrix with more columns than rows is read transposed. The noise of an entry is its
``v = sigma^2 / sigma_rms (sqrt n + sqrt m)``; 0 is exact and infinity unobserved, so that one number carries error
bars, weights and masks.
"""

import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError

CACHED = 1 << 18
"""Entries of a block on the CPU: few enough for its buffers to stay in cache, many enough for products to be fast."""
_LEAST_ROWS = 128
_ALIGNED = 16
"""Blocks begin at multiples of so many rows, hence of 64 bytes: where BLAS sees them, they lie alike wherever kept."""
_ON_A_CARD = 1 << 24


class Source:
    """A matrix of the user's, tall, as blocks of rows: tensor, array, memory map, or whatever slices into arrays."""

    def __init__(self, array: Any, transposed: bool, dtype: torch.dtype, device: torch.device):
        """Take the matrix without reading it."""
        tensor = _as_tensor(array)
        self._array, self._transposed, self._dtype, self._device = array, transposed, dtype, device
        self._tensor = tensor.T if tensor is not None and transposed else tensor

    def read(self, rows: slice, buffer: Tensor) -> Tensor:
        """Return the block of these rows; a view where the matrix has the right type and place, else in ``buffer``."""
        if self._tensor is not None:
            block = self._tensor[rows]
            if block.dtype == self._dtype and block.device == self._device and block.is_contiguous():
                return block
            return buffer[: len(block)].copy_(block)
        read = np.asarray(self._array[:, rows] if self._transposed else self._array[rows])
        target = buffer[: rows.stop - rows.start]
        found = np.empty(target.shape, _numpy(self._dtype)) if target.is_cuda else target.numpy()
        np.copyto(found, read.T if self._transposed else read, casting="unsafe")
        _forget(self._array)
        return target.copy_(torch.from_numpy(found)) if target.is_cuda else target


class Problem:
    """The tall matrix, its noise and the weight ``lambda_`` of the sparse part.

    Fields: ``shape`` (n, m) with n >= m, ``transposed``, ``dtype``, ``device``, ``lambda_``; after ``measure``:
    ``norm`` (Frobenius, observed entries), ``largest`` (absolute value), ``n_observed``, ``scale`` (of v).
    """

    def __init__(
        self, array: Any, *, mask: Any, weights: Any, noise_std: Any, dtype: torch.dtype, lambda_: float | None
    ):
        """Check shapes and types; nothing is read yet.

        Raises:
            DataError: not a matrix of numbers, empty, or companions of another shape.
            ConfigError: a number out of range, or both ``weights`` and ``noise_std``.
        """
        shape = _shape_of(array, "X")
        self.transposed = shape[0] < shape[1]
        self.shape = (max(shape), min(shape))
        self.dtype = dtype
        self.device = array.device if isinstance(array, Tensor) else torch.device("cpu")
        self.lambda_ = 1 / math.sqrt(max(shape)) if lambda_ is None else lambda_
        if not (math.isfinite(self.lambda_) and self.lambda_ > 0):
            raise ConfigError(f"lambda_: {self.lambda_} is not a positive number")
        self.x = self._source(array)
        self.mask = None if mask is None else self._companion(mask, "mask", shape)
        self.weights = None if weights is None else self._companion(weights, "weights", shape)
        self.deviation: Source | None = None
        self.noise = 0.0
        if isinstance(noise_std, int | float):
            if not (math.isfinite(noise_std) and noise_std >= 0):
                raise ConfigError(f"noise_std: {noise_std} is not a number of at least 0")
            self.noise = float(noise_std)
        elif not isinstance(noise_std, str):
            self.deviation = self._companion(noise_std, "noise_std", shape)
        elif noise_std != "auto":
            raise ConfigError(f"noise_std: {noise_std!r} is unknown; give a number, an array or 'auto'")
        self.automatic = isinstance(noise_std, str)
        if weights is not None and (self.noise or self.automatic or self.deviation is not None):
            raise ConfigError("weights are inverse variances, so noise_std says the same again; give one of them")
        size = CACHED if self.device.type == "cpu" else _ON_A_CARD
        self.block_rows = min(self.shape[0], max(_LEAST_ROWS, size // self.shape[1] // _ALIGNED * _ALIGNED))
        self.norm = self.largest = 0.0
        self.n_observed = 0
        self.scale = 1.0
        self.positions = math.sqrt(self.shape[0]) + math.sqrt(self.shape[1])

    @property
    def uniform(self) -> bool:
        """Whether all entries are observed and equally noisy, so that v is one number."""
        return self.mask is None and self.weights is None and self.deviation is None

    def buffer(self) -> Tensor:
        """Return room for one block."""
        return torch.empty(self.block_rows, self.shape[1], dtype=self.dtype, device=self.device)

    def rows(self) -> Iterator[slice]:
        """Yield the blocks' rows."""
        n = self.shape[0]
        return (slice(i, min(i + self.block_rows, n)) for i in range(0, n, self.block_rows))

    def blocks(self) -> Iterator[tuple[slice, Tensor, float | Tensor]]:
        """Yield rows, ``x [b, m]`` (0 where unobserved) and v (a number, or ``[b, m]``), valid until the next."""
        room, others = self.buffer(), [] if self.uniform else [self.buffer(), self.buffer()]
        for rows in self.rows():
            x = self.x.read(rows, room)
            if self.uniform:
                yield rows, x, self.noise * self.positions
            else:
                v = self._noise(rows, x, others)
                yield rows, torch.where(torch.isinf(v), 0.0, x), v

    def measure(self) -> None:
        """Read everything once: check it, and set what the class promises.

        Raises:
            DataError: NaN or Inf where nothing says that the entry is unobserved, values whose squares leave the
                range of the dtype, nothing observed, or weights, mask or ``noise_std`` that make no sense.
        """
        squares = variances = 0.0
        for rows, x, v in self.blocks():
            finite = torch.isfinite(x)
            if not finite.all():
                self._refuse(rows, ~finite, x, "X")
            squares += float(torch.linalg.vector_norm(x)) ** 2
            self.largest = max(self.largest, float(x.abs().max()))
            if isinstance(v, Tensor):
                wrong = torch.isnan(v) | (v < 0)
                if wrong.any():
                    self._refuse(rows, wrong, v, "weights" if self.weights is not None else "noise_std")
                observed = ~torch.isinf(v)
                self.n_observed += int(observed.sum())
                variances += float(torch.where(observed, v, 0.0).double().sum())
            else:
                self.n_observed += x.numel()
        self.norm = math.sqrt(squares)
        if not self.n_observed:
            raise DataError("X has no observed entry: mask, weights and NaN leave nothing to decompose")
        if not math.isfinite(self.norm) or (self.largest > 0 and self.norm == 0):
            raise DataError(
                f"values up to {self.largest:.3g} leave the range of {self.dtype} when squared; multiply X by a number"
            )
        if self.weights is not None or self.deviation is not None:
            root = math.sqrt(variances / self.n_observed)
            self.scale = self.positions / root if root > 0 else 1.0

    def _noise(self, rows: slice, x: Tensor, room: list[Tensor]) -> Tensor:
        """Return v of one block."""
        if self.weights is not None:
            given = self.weights.read(rows, room[0])
            v = torch.where(given < 0, torch.nan, self.scale / given)
        elif self.deviation is not None:
            given = self.deviation.read(rows, room[0])
            v = torch.where(given < 0, torch.nan, self.scale * given.square())
        else:
            v = torch.full_like(x, self.noise * self.positions)
        if self.weights is not None:
            v = torch.where(torch.isnan(x), torch.inf, v)
        return v if self.mask is None else torch.where(self.mask.read(rows, room[1]) > 0, v, torch.inf)

    def _source(self, array: Any) -> Source:
        return Source(array, self.transposed, self.dtype, self.device)

    def _companion(self, array: Any, name: str, shape: tuple[int, int]) -> Source:
        """Take an array that must have the shape of X."""
        found = _shape_of(array, name)
        if found != shape:
            raise DataError(f"{name} has shape {found}, X has {shape}; they describe the same entries")
        return self._source(array)

    def _refuse(self, rows: slice, wrong: Tensor, values: Tensor, name: str) -> None:
        """Name the first offending entry of a block, in the user's orientation."""
        row, column = wrong.nonzero()[0].tolist()
        value = float(values[row, column])
        place = (column, rows.start + row) if self.transposed else (rows.start + row, column)
        if name != "X":
            raise DataError(f"{name}: the entry at row {place[0]}, column {place[1]} is negative or no number")
        shown = "NaN" if math.isnan(value) else "Inf"
        hint = "the mask calls it observed" if self.mask is not None else "pass mask=numpy.isfinite(X), or repair it"
        raise DataError(f"X: row {place[0]}, column {place[1]} is {shown}; {hint}")


def _shape_of(array: Any, name: str) -> tuple[int, int]:
    """Return the shape of a matrix of real numbers.

    Raises:
        DataError: anything else.
    """
    shape = tuple(getattr(array, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"{name} must be a matrix with at least one row and one column, not of shape {shape}")
    kind = "c" if isinstance(array, Tensor) and array.is_complex() else getattr(array.dtype, "kind", "f")
    if kind not in "fiub":
        raise DataError(f"{name} holds {array.dtype}, which are not real numbers")
    return int(shape[0]), int(shape[1])


def _as_tensor(array: Any) -> Tensor | None:
    """Return a tensor of the same memory, where there is one that may be kept: not of a map, nor of read-only pages."""
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray) or isinstance(array, np.memmap) or not array.flags.writeable:
        return None
    native = array.dtype.isnative and array.dtype != np.float16 and array.dtype.kind in "fib"
    return torch.from_numpy(array) if native and min(array.strides) >= 0 else None


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float32 if dtype == torch.float32 else np.float64


def _forget(array: Any) -> None:
    """Let the system reclaim the pages of a memory map that has been read; a private copy is left alone."""
    pages = getattr(array, "_mmap", None)
    if pages is not None and array.mode != "c":
        pages.madvise(mmap.MADV_DONTNEED)
