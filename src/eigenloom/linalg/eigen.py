"""Symmetric eigenproblems: float64 LAPACK on the CPU whatever the device, descending, signs fixed by ``orient``."""

import numpy as np
import scipy.linalg
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
    inner, size = vectors.double() @ mean.double(), mean.double().norm().item()
    return signs(inner, size, total_variance, vectors).to(vectors.dtype)[:, None] * vectors


def signs(inner: Tensor, mean_norm: float, total_variance: float, undecided: Tensor) -> Tensor:
    """Return the signs ``[k]`` float64 that ``orient`` gives, where the vectors themselves are not at hand.

    Args:
        inner: products ``[k]`` of the vectors with the uncentred mean.
        mean_norm: norm of that mean.
        total_variance: sum of all variances in the fitted space.
        undecided: ``[k, n]``, numbers whose largest in magnitude decides a tie: the vectors, or their scores.
    """
    floor = _TIE * max(mean_norm, max(total_variance, 0.0) ** 0.5)
    size = undecided.abs()
    first = (size >= size.amax(1, keepdim=True) * (1 - _EQUAL)).byte().argmax(1, keepdim=True)
    largest = undecided.gather(1, first).squeeze(1)
    decider = torch.where(inner.abs() <= floor, largest.double(), inner)
    return torch.where(decider < 0, -1.0, 1.0).double()


def leading_eigh(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest eigenvalues, descending, at least 0, and their vectors as rows ``[k, d]``; float64, CPU.

    Of a symmetric positive semidefinite matrix ``[d, d]``; a few of them cost less than half of what all do.
    """
    full = matrix.detach().cpu().double().numpy()
    values, columns = scipy.linalg.eigh(full, subset_by_index=[len(full) - k, len(full) - 1])
    return torch.from_numpy(values.copy()).flip(0).clamp_min(0), torch.from_numpy(columns.T.copy()).flip(0)
