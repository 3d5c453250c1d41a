"""Singular value thresholding of a matrix that is only seen block of rows by block of rows.

The matrix is a ``RowBlocks``: whoever has it forms the blocks anew at every walk, so that it need not exist as a whole.
``SVT_t(A) = U max(s - t, 0) V^T`` is the proximal operator of the nuclear norm (Cai, Candes & Shen 2010, theorem 2.1).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eigenloom.linalg.accumulate import BLOCK_ROWS

GRAM_SHARE = 0.4
"""Above this share of all columns a subspace costs more than the Gram matrix."""
GROWTH = 1.5
STRIDE = 16
"""Subspaces are widened to multiples of this: products with 15 columns took 2 to 3 times as long as those with 16."""
_LANCZOS_STEPS = 60


class RowBlocks(Protocol):
    """A matrix ``[n, m]`` with ``n >= m`` as a stream of its row blocks, walked as often as needed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the blocks: float32 or float64."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the blocks."""
        ...

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows and their block ``[b, m]``, valid until the next one is asked for."""
        ...


class Factors(NamedTuple):
    """A matrix of rank r as ``left @ right^T``: ``left [n, r]`` already scaled, ``right [m, r]`` orthonormal.

    ``values [r]`` float64 on the CPU are the singular values, descending; on columns of ``left`` they are the norms.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def head(self, rank: int) -> "Factors":
        """Keep the largest ``rank``."""
        return Factors(self.left[:, :rank], self.values[:rank], self.right[:, :rank])


def svt_reference(matrix: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return ``SVT`` of a matrix in memory and its positive singular values, by a full decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values - threshold
    rank = int((values > 0).sum())
    return left[:, :rank] * values[:rank] @ right[:rank], values[:rank]


def products(blocks: RowBlocks, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``A right`` ``[n, k]`` and ``A^T (A right)`` ``[m, k]`` float64 from one walk.

    Sums over rows are formed in the blocks' dtype over at most ``BLOCK_ROWS`` rows and added in float64.
    """
    (n, m), k = blocks.shape, right.shape[1]
    left = torch.empty(n, k, dtype=blocks.dtype, device=blocks.device)
    total = torch.zeros(m, k, dtype=torch.float64, device=blocks.device)
    part = torch.zeros(m, k, dtype=blocks.dtype, device=blocks.device)
    pending = 0
    for rows, block in blocks:
        torch.mm(block, right, out=left[rows])
        part.addmm_(block.T, left[rows])
        pending += len(block)
        if pending >= BLOCK_ROWS:
            total += part
            part.zero_()
            pending = 0
    return left, total.add_(part)


def gram(blocks: RowBlocks) -> Tensor:
    """Return ``A^T A`` ``[m, m]``, formed in float64: in float32 it loses what lies below ``sqrt(eps) s_1``."""
    m = blocks.shape[1]
    total = torch.zeros(m, m, dtype=torch.float64, device=blocks.device)
    for _, block in blocks:
        block = block.double()
        total.addmm_(block.T, block)
    return total


def full_svt(blocks: RowBlocks, threshold: float) -> Factors:
    """Threshold through a decomposition of the whole matrix, which is put together in memory, in float64.

    LAPACK's rounding in float32 is as large as the tolerance of the loop, which then never ends.
    """
    whole = torch.empty(blocks.shape, dtype=torch.float64, device=blocks.device)
    for rows, block in blocks:
        whole[rows] = block
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    values = values.cpu()
    left, right = left.to(blocks.dtype), right.T.to(blocks.dtype)
    return _scaled(left, values, right, _kept(values, threshold), threshold)


def gram_svt(blocks: RowBlocks, threshold: float) -> Factors:
    """Threshold through the eigenvectors of the Gram matrix: one walk for it, one for the left side."""
    squares, vectors = torch.linalg.eigh(gram(blocks).cpu())
    values = squares.flip(0).clamp_min(0).sqrt()
    rank = _kept(values, threshold)
    right = vectors.flip(1)[:, :rank].to(blocks.device, blocks.dtype)
    left = torch.empty(blocks.shape[0], rank, dtype=blocks.dtype, device=blocks.device)
    for rows, block in blocks:
        torch.mm(block, right, out=left[rows])
    return Factors(left * ((values[:rank] - threshold) / values[:rank]).to(left), values[:rank] - threshold, right)


class WarmSVT:
    """Thresholding by one subspace that is carried from call to call and grows until it holds all that is kept.

    One walk forms ``W = A V`` and ``Z = A^T W``. The left vectors of W that exceed the threshold are kept, A is
    projected on them (``U U^T A``, from Z), and Z spans the next V: block subspace iteration with a projection that
    is half a step ahead. The walk is repeated while V moves by more than ``drift``, at most ``n_walks`` times, and
    always until some computed singular value lies below the threshold, with half as many columns again.
    """

    def __init__(self, draw: Callable[[int, int], Tensor], n_columns: int, n_walks: int, drift: float, extra: int = 5):
        """Start from ``n_columns`` random directions.

        Args:
            draw: returns Gaussian numbers ``[m, count]`` given the number of columns already there, and ``count``.
            n_columns: width of the first subspace.
            n_walks: most walks for one thresholding that needs no more columns.
            drift: sine of the angle by which kept directions may still move.
            extra: columns carried beyond the rank, at least.
        """
        self._draw, self._n_columns, self._extra = draw, _in_strides(n_columns), extra
        self._n_walks, self._drift = n_walks, drift
        self.basis: Tensor | None = None

    def __call__(self, blocks: RowBlocks, threshold: float, max_rank: int | None = None) -> Factors:
        """Return ``SVT`` of the matrix, its ``max_rank`` largest values if given."""
        m = blocks.shape[1]
        basis = self._wide(blocks, self._n_columns) if self.basis is None else self.basis
        walks = 0
        while True:
            if basis.shape[1] > GRAM_SHARE * m:
                factors = gram_svt(blocks, threshold)
                self.basis = factors.right
                return self._narrowed(blocks, factors)
            walks += 1
            left, image = products(blocks, basis)
            values, rotation = _descending(left)
            rank = _kept(values, threshold)
            enough = rank < basis.shape[1] or (max_rank is not None and rank > max_rank)
            image = image @ rotation.to(image.device)
            following = torch.linalg.qr(image / image.norm(dim=0).clamp_min(torch.finfo(image.dtype).tiny)).Q
            if not enough:
                wanted = _in_strides(int(GROWTH * basis.shape[1]) + 1)
                basis = self._wide(blocks, wanted, following.to(blocks.dtype))
                continue
            right = image[:, :rank] / values[:rank].to(image)
            if walks < self._n_walks and _moved(right, basis) > self._drift:
                basis = following.to(blocks.dtype)
                continue
            self.basis = following.to(blocks.dtype)
            kept = (rotation[:, :rank] / values[:rank]).to(left)
            return self._narrowed(blocks, _projected(left @ kept, right, threshold))

    def _narrowed(self, blocks: RowBlocks, factors: Factors) -> Factors:
        """Keep as many columns as the next call needs."""
        assert self.basis is not None
        wanted = _in_strides(len(factors.values) + self._extra)
        kept = self.basis[:, :wanted] if wanted <= self.basis.shape[1] else self._wide(blocks, wanted, self.basis)
        # BLAS rounds by layout, so a basis that comes back from a file must have the layout of one that never left.
        self.basis = kept.contiguous()
        return factors

    def _wide(self, blocks: RowBlocks, wanted: int, start: Tensor | None = None) -> Tensor:
        """Return ``wanted`` orthonormal columns, at most all, the first of them those of ``start``."""
        m = blocks.shape[1]
        have = 0 if start is None else start.shape[1]
        fresh = self._draw(have, max(min(wanted, m) - have, 0)).to(blocks.device, torch.float64)
        columns = fresh if start is None else torch.cat([start.double(), fresh], dim=1)
        return torch.linalg.qr(columns).Q.to(blocks.dtype)


def spectral_norm(blocks: RowBlocks, start: Tensor, tolerance: float) -> float:
    """Estimate the largest singular value by Lanczos on ``A^T A``, fully reorthogonalised, from ``start [m]``.

    Stops when a step changes it by less than ``tolerance``, relatively, or after 60 walks. The norm of the residual,
    which bounds the distance to some singular value, is added, so that the estimate errs upward where it is loose.
    """
    m = blocks.shape[1]
    vectors = [start.double().to(blocks.device) / start.double().norm().item()]
    diagonal: list[float] = []
    beside: list[float] = []
    estimate = 0.0
    for step in range(min(m, _LANCZOS_STEPS)):
        image = products(blocks, vectors[-1][:, None].to(blocks.dtype))[1][:, 0]
        known = torch.stack(vectors, dim=1)
        diagonal.append(float(vectors[-1] @ image))
        for _ in range(2):
            image = image - known @ (known.T @ image)
        size = float(image.norm())
        squares, ritz = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        largest = max(float(squares[-1]), 0.0)
        before, estimate = estimate, (largest + size * abs(float(ritz[-1, -1]))) ** 0.5
        if (step and abs(estimate - before) <= tolerance * estimate) or size <= 1e-12 * largest:
            break
        beside.append(size)
        vectors.append(image / size)
    return estimate


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    """Return the symmetric matrix with these entries, float64."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    return matrix + torch.diag(off, 1) + torch.diag(off, -1) if beside else matrix


def _descending(left: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values ``[k]`` and right singular vectors ``[k, k]`` of ``[n, k]``, float64 on the CPU."""
    if left.dtype == torch.float64:
        _, values, rotation = torch.linalg.svd(left, full_matrices=False)
        return values.cpu(), rotation.T.cpu()
    doubled = left.double()
    squares, rotation = torch.linalg.eigh((doubled.T @ doubled).cpu())
    return squares.flip(0).clamp_min(0).sqrt(), rotation.flip(1)


def _in_strides(n_columns: int) -> int:
    """Return the next multiple of ``STRIDE``."""
    return -(-n_columns // STRIDE) * STRIDE


def _kept(values: Tensor, threshold: float) -> int:
    """Return how many descending values lie above the threshold."""
    return int((values > threshold).sum())


def _moved(right: Tensor, basis: Tensor) -> float:
    """Return the largest share of a column of ``right [m, r]`` that lies outside the span of ``basis``."""
    if not right.shape[1]:
        return 0.0
    spanned = basis.to(right.dtype)
    outside = right - spanned @ (spanned.T @ right)
    return float((outside.norm(dim=0) / right.norm(dim=0).clamp_min(torch.finfo(right.dtype).tiny)).max())


def _projected(left: Tensor, image: Tensor, threshold: float) -> Factors:
    """Threshold ``left @ image^T``, ``left [n, r]`` orthonormal, ``image [m, r]`` float64."""
    right, values, rotation = torch.linalg.svd(image, full_matrices=False)
    return _scaled(left @ rotation.T.to(left), values.cpu(), right.to(left), _kept(values, threshold), threshold)


def _scaled(left: Tensor, values: Tensor, right: Tensor, rank: int, threshold: float) -> Factors:
    """Keep ``rank`` directions, their values lowered by the threshold."""
    values = values[:rank] - threshold
    return Factors(left[:, :rank] * values.to(left), values, right[:, :rank].contiguous())
