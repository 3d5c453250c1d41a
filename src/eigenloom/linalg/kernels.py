"""Kernels between rows and landmarks: one GEMM per piece of rows, finished while the piece is in cache.

Everything a kernel adds to inner products (squared norms, a constant) rides in two more columns of the GEMM, so that
what is left to do per entry is ``exp`` or a power. Rows and landmarks are shifted by the mean landmark first where that
changes no kernel value: without it, distances far from the origin lose every digit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError

PIECE_NUMBERS = 1 << 20
"""Kernel values made and finished at a time."""
_ROUNDING = 2.0**-40
"""Squared distances in float64 below this share of the squared norms are rounding, and count as zero."""


@dataclass(frozen=True)
class Kernel(ABC):
    """A positive semidefinite ``k(x, y)``, told by what it does to the entries of ``x.y``."""

    shift_invariant: ClassVar[bool] = False
    """Whether moving both arguments alike changes nothing."""

    @abstractmethod
    def factors(self, norms: Tensor) -> tuple[float, float, Tensor]:
        """Return what is to multiply ``x.y`` and ``|x|^2`` and what to add for each landmark ``[m]``.

        ``norms [m]`` holds the squared norms of the landmarks.
        """

    @abstractmethod
    def finish(self, values: Tensor) -> Tensor:
        """Turn that combination into kernel values, in place."""

    @abstractmethod
    def diagonal(self, norms: Tensor) -> Tensor:
        """Return ``k(x, x) [b]`` float64 from squared norms ``|x|^2 [b]``."""


@dataclass(frozen=True)
class Rbf(Kernel):
    """``exp(-gamma |x - y|^2)``."""

    gamma: float
    shift_invariant: ClassVar[bool] = True

    def factors(self, norms: Tensor) -> tuple[float, float, Tensor]:
        """``-gamma |x - y|^2 = 2 gamma x.y - gamma |x|^2 - gamma |y|^2``."""
        return 2 * self.gamma, -self.gamma, -self.gamma * norms

    def finish(self, values: Tensor) -> Tensor:
        """A distance below 0 is rounding."""
        return values.clamp_(max=0).exp_()

    def diagonal(self, norms: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(norms, dtype=torch.float64)


@dataclass(frozen=True)
class Poly(Kernel):
    """``(gamma x.y + coef0)^degree``."""

    gamma: float
    degree: int
    coef0: float

    def factors(self, norms: Tensor) -> tuple[float, float, Tensor]:
        """``gamma x.y + coef0``."""
        return self.gamma, 0.0, torch.full_like(norms, self.coef0)

    def finish(self, values: Tensor) -> Tensor:
        """The power."""
        return values.pow_(self.degree)

    def diagonal(self, norms: Tensor) -> Tensor:
        """``(gamma |x|^2 + coef0)^degree``."""
        return (self.gamma * norms.double() + self.coef0).pow_(self.degree)


@dataclass(frozen=True)
class Linear(Kernel):
    """``x.y``: kernel PCA with it is PCA."""

    def factors(self, norms: Tensor) -> tuple[float, float, Tensor]:
        """``x.y`` itself."""
        return 1.0, 0.0, torch.zeros_like(norms)

    def finish(self, values: Tensor) -> Tensor:
        """Nothing to do."""
        return values

    def diagonal(self, norms: Tensor) -> Tensor:
        """``|x|^2``."""
        return norms.double()


KERNELS = ("rbf", "poly", "linear")


def kernel_of(name: str, gamma: float = 1.0, degree: int = 3, coef0: float = 1.0) -> Kernel:
    """Return the kernel of that name; what it does not use is ignored.

    Raises:
        ConfigError: the name is unknown.
    """
    if name == "rbf":
        return Rbf(gamma)
    if name == "poly":
        return Poly(gamma, degree, coef0)
    if name == "linear":
        return Linear()
    raise ConfigError(f"kernel: {name!r} is unknown; use one of {', '.join(KERNELS)}")


class KernelRows:
    """``k(x, z_j)`` of rows against fixed landmarks; holds what is computed once per set of landmarks.

    Each value depends on its row and landmark alone, never on the other rows of a batch, but for the rounding of GEMMs
    of different shapes.
    """

    def __init__(self, kernel: Kernel, landmarks: Tensor, shift: Tensor):
        """Lay out ``landmarks [m, d]``, from which ``shift [d]`` has been subtracted, for the GEMM.

        Their dtype, float32 or float64, is that of the arithmetic and of the values; their device that of the rows.
        """
        self._kernel, self._shift = kernel, shift
        norms = landmarks.double().square().sum(1)
        product, square, constant = kernel.factors(norms)
        # Columns d and d + 1 of the table meet |x|^2 and a constant 1 beside each row.
        last = torch.stack([torch.full_like(norms, square), constant], 1)
        self._table = torch.cat([product * landmarks.double(), last], 1).T.to(landmarks.dtype)
        self._with_norms = square != 0
        self._piece = max(256, min(2048, PIECE_NUMBERS // len(landmarks)))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values ``[b, m]`` of rows ``[b, d]``, in the landmarks' dtype."""
        values = self._table.new_empty(len(x), self._table.shape[1])
        scratch = self._scratch(len(x))
        for rows, out in zip(x.split(self._piece), values.split(self._piece), strict=True):
            self._fill(rows, scratch[: len(rows)], out)
        return values

    def pieces(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the values ``[p, m]`` of a few rows at a time, in one buffer that is filled anew each time."""
        scratch = self._scratch(len(x))
        values = self._table.new_empty(len(scratch), self._table.shape[1])
        for rows in x.split(self._piece):
            self._fill(rows, scratch[: len(rows)], values[: len(rows)])
            yield values[: len(rows)]

    def _scratch(self, n_rows: int) -> Tensor:
        """Return room for the shifted rows of one piece, their squared norms and a column of ones."""
        scratch = self._table.new_empty(min(n_rows, self._piece), len(self._table))
        scratch[:, -2] = 0.0
        scratch[:, -1] = 1.0
        return scratch

    def _fill(self, x: Tensor, scratch: Tensor, out: Tensor) -> None:
        """Compute one piece."""
        rows = scratch[:, :-2]
        torch.sub(x, self._shift, out=rows)
        if self._with_norms:
            scratch[:, -2] = torch.linalg.vecdot(rows, rows)
        if x.is_cpu:  # numpy's BLAS is as fast as torch's on Intel processors and faster on AMD's
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are found and named by whoever sums them
                np.matmul(scratch.numpy(), self._table.numpy(), out=out.numpy())
        else:
            torch.mm(scratch, self._table, out=out)
        self._kernel.finish(out)


def kernel_reference(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """Return ``k(x_i, y_j) [b, m]`` float64 by definition: differences, then norms."""
    x, y = x.double(), y.double()
    if isinstance(kernel, Rbf):
        distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-kernel.gamma * distances.square())
    inner = x @ y.T
    return (kernel.gamma * inner + kernel.coef0) ** kernel.degree if isinstance(kernel, Poly) else inner


def median_gamma(rows: Tensor) -> float:
    """Return one over the median squared distance between different rows of ``[n, d]``: a scale for ``rbf``.

    Where more than half of the pairs coincide, one over the mean of the positive squared distances.

    Raises:
        DataError: all rows are equal.
    """
    shifted = rows.double() - rows.double().mean(0)
    norms = shifted.square().sum(1)
    sums = norms[:, None] + norms
    distances = torch.addmm(sums, shifted, shifted.T, alpha=-2)
    distances *= distances > _ROUNDING * sums
    pairs = distances.cpu().numpy()[np.tril_indices(len(rows), -1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    if median > 0:
        return 1 / median
    positive = pairs[pairs > 0]
    if not len(positive):
        raise DataError(
            f"gamma: no scale can be taken from {len(rows)} sampled rows that are all equal; if the features are not "
            "constant, give gamma as a number"
        )
    return 1 / float(positive.mean())
