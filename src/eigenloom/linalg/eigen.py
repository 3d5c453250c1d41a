"""Symmetric eigenproblems: float64 LAPACK on the CPU whatever the device, descending, signs fixed by ``orient``."""

import numpy as np
import torch
from torch import Tensor

_TIE = 1e-5
_EQUAL = 1e-9


def descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose a symmetric positive semidefinite matrix ``[d, d]``.

    Features without any variance or covariance (rows of exact zeros) are taken out first and come back as unit
    vectors of eigenvalue zero, so that no rounding mixes them into the others.

    Returns:
        Eigenvalues ``[d]`` descending, clamped at 0, and eigenvectors as the rows of ``[d, d]``; float64 on the CPU.
    """
    full = matrix.detach().cpu().double().numpy()
    live = np.flatnonzero(full.any(axis=0))
    dead = np.setdiff1d(np.arange(len(full)), live)
    values, columns = np.linalg.eigh(full[np.ix_(live, live)])
    vectors = np.zeros_like(full)
    vectors[: len(live), live] = columns.T[::-1]
    vectors[np.arange(len(live), len(full)), dead] = 1.0
    spectrum = np.concatenate([np.maximum(values[::-1], 0.0), np.zeros(len(dead))])
    return torch.from_numpy(spectrum), torch.from_numpy(vectors)


def orient(vectors: Tensor, mean: Tensor, total_variance: float) -> Tensor:
    """Fix the sign of eigenvectors: the inner product with the uncentred mean becomes non-negative.

    Where ``|u.m| <= 1e-5 max(||m||, sqrt(total_variance))`` the mean decides nothing but rounding, and the entry of
    largest magnitude becomes positive; the first of those that agree to 1e-9.

    Args:
        vectors: unit rows ``[k, d]``.
        mean: uncentred training mean ``[d]`` in the fitted scale.
        total_variance: sum of all variances in the fitted space.

    Returns:
        ``[k, d]``, dtype of ``vectors``.
    """
    inner = vectors.double() @ mean.double()
    floor = _TIE * max(mean.double().norm().item(), max(total_variance, 0.0) ** 0.5)
    size = vectors.abs()
    first = (size >= size.amax(1, keepdim=True) * (1 - _EQUAL)).byte().argmax(1, keepdim=True)
    largest = vectors.gather(1, first).squeeze(1)
    decider = torch.where(inner.abs() <= floor, largest.double(), inner)
    return torch.where(decider < 0, -1.0, 1.0).to(vectors.dtype)[:, None] * vectors
