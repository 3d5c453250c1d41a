"""From the sums of a pass to kernel principal components and their decoder: small problems in float64 on the CPU."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from eigenloom.bases.kernel_pca_fit import KernelSums, Start
from eigenloom.bases.kernel_pca_settings import Settings
from eigenloom.bases.random_directions import random_frame
from eigenloom.linalg.eigen import descending_eigh, leading_eigh, signs
from eigenloom.linalg.kernels import Kernel, KernelRows

logger = logging.getLogger("eigenloom")


class Solution(NamedTuple):
    """What the sums become (see ``KernelPCA`` for the fields); all float64 on the CPU."""

    projection: Tensor
    offset: Tensor
    explained_variance: Tensor
    preimage: Tensor
    mean: Tensor
    total_variance: float
    landmark_residual: float
    rank: int


def solve(begin: Start, sums: KernelSums, kernel: Kernel, settings: Settings, seed: int) -> Solution:
    """Turn the sums into components: whiten by the landmarks' kernel matrix, diagonalise the covariance, map back.

    With ``W^T K_mm W = I`` (see ``Whitener``) and ``C`` the covariance of kernel rows: ``W^T C W = U lambda U^T`` and
    ``A = W U``, the principal components of all rows within the span of the landmarks' features (Sterge and
    Sriperumbudur 2022).
    """
    n, landmarks = sums.n_rows, begin.landmarks.double()
    matrix = KernelRows(kernel, landmarks, torch.zeros_like(landmarks[0]))(landmarks)
    whitener = Whitener((matrix + matrix.T) / 2, settings.cut)
    kernel_mean, scatter = sums.gram.mean_and_scatter()
    covariance = whitener.whiten(whitener.whiten(scatter).T) / (n - 1)
    covariance = (covariance + covariance.T) / 2
    variances, turns = leading_eigh(covariance, min(settings.n_components, len(covariance)))
    rank = int((variances > settings.cut * variances[0]).sum())
    turns = turns[:rank] if settings.directions == "principal" else random_frame(rank, len(covariance), seed)
    if rank < settings.n_components:
        logger.warning("n_components: %d were asked for, the data have rank %d", settings.n_components, rank)
    projection, mean_feature = whitener.back(turns.T), whitener.whiten(kernel_mean[:, None])[:, 0]
    total = covariance.trace().item()
    flips = signs(projection.T @ kernel_mean, mean_feature.norm().item(), total, projection.T)
    projection, turns = projection * flips, turns * flips[:, None]
    code_covariance = turns @ covariance @ turns.T
    inside = total * (n - 1) / n + float(mean_feature.square().sum())
    shift = sums.sums.cpu() / n
    mean = sums.origin.cpu().double() + shift
    if settings.preimage == "all":
        cross = sums.cross.cpu() - n * torch.outer(sums.gram.sums.cpu() / n, shift)
        preimage = ridge_map(code_covariance, projection.T @ cross / (n - 1), settings.ridge * variances[0].item())
    else:
        codes, rows = (matrix - kernel_mean) @ projection, landmarks + begin.shift - mean
        preimage = ridge_map(codes.T @ codes, codes.T @ rows, len(codes) * settings.ridge * variances[0].item())
    return Solution(
        projection=projection,
        offset=projection.T @ kernel_mean,
        explained_variance=code_covariance.diagonal().clone(),
        preimage=preimage,
        mean=mean,
        total_variance=total,
        landmark_residual=max(0.0, 1 - inside * n / float(sums.diagonal)),
        rank=rank,
    )


class Whitener:
    """Coordinates in which the features of landmarks with kernel matrix ``K [m, m]`` (float64) are orthonormal.

    ``W^T K W = I``, with directions of eigenvalue at most ``cut`` times the largest left out. Where a bound on ``K^-1``
    proves that there are none, ``W`` is the inverse transpose of the Cholesky factor, at a third of the cost; else ``V
    D^-1/2`` of ``K = V D V^T``. Both span the same features, and components do not depend on which it was.
    """

    def __init__(self, matrix: Tensor, cut: float):
        """Factor the matrix."""
        lower, failed = torch.linalg.cholesky_ex(matrix)
        self._lower: Tensor | None = None
        if not failed:
            inverse = torch.linalg.solve_triangular(lower, torch.eye(len(matrix), dtype=torch.float64), upper=False)
            # |K^-1| = |L^-1|^2 is at most the largest row sum times the largest column sum, |K| its Frobenius norm.
            if cut * inverse.abs().sum(0).max() * inverse.abs().sum(1).max() * matrix.norm() < 1:
                self._lower = lower
                return
        spectrum, vectors = descending_eigh(matrix)
        kept = int((spectrum > cut * spectrum[0]).sum())
        vectors = vectors[:kept] * signs(torch.zeros(kept), 0.0, 0.0, vectors[:kept])[:, None]
        self._inverse_root = vectors.T / spectrum[:kept].sqrt()

    @property
    def is_triangular(self) -> bool:
        """Whether ``W`` is the inverse of a Cholesky factor."""
        return self._lower is not None

    def whiten(self, x: Tensor) -> Tensor:
        """Return ``W^T x`` of ``[m, c]``."""
        if self._lower is None:
            return self._inverse_root.T @ x
        return torch.linalg.solve_triangular(self._lower, x, upper=False)

    def back(self, u: Tensor) -> Tensor:
        """Return ``W u``, coefficients of the landmarks ``[m, c]``."""
        if self._lower is None:
            return self._inverse_root @ u
        return torch.linalg.solve_triangular(self._lower.T, u, upper=True)


def ridge_map(codes: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return the linear map ``[r, d]`` that best gives rows from codes: ``(cov(z) + ridge)^-1 cov(z, x)``, float64."""
    return torch.linalg.solve(codes + ridge * torch.eye(len(codes), dtype=torch.float64), cross)
