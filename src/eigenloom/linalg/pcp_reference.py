"""Principal component pursuit as a textbook has it: four arrays, full decompositions, float64. An oracle."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eigenloom.linalg.svt import svt_reference


def pcp_reference(
    X: Tensor,
    lambda_: float | None = None,
    *,
    v: float | Tensor = 0.0,
    tol: float = 1e-7,
    max_iter: int = 1000,
    growth: float = 1.5,
    settled: float = 0.015,
    watch: Callable[[dict[str, float]], None] = lambda line: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, S and N of ``X [n, m]``, float64, by inexact augmented Lagrangians (Lin, Chen & Ma 2010, algorithm 5).

    The penalty starts at ``1.25 / sigma_1`` and grows whenever ``mu ||change of S + N|| < settled ||Y||``; infinite
    ``settled`` is the published schedule, which always grows. No certificate: it stops at the primal residual.

    Args:
        X: observed entries; 0 elsewhere.
        lambda_: weight of the sparse part.
        v: noise per entry (``sigma^2 / sigma_rms (sqrt n + sqrt m)``), infinite where X is not observed.
        tol: on ``||X - L - S - N|| / ||X||``.
        max_iter: most iterations.
        growth: of the penalty.
        settled: see above.
        watch: called with ``primal_resid, dual_resid, rank, nnz, mu`` of each iteration.
    """
    X, v = X.double(), torch.as_tensor(v, dtype=torch.float64).expand(X.shape)
    lam = 1 / math.sqrt(max(X.shape)) if lambda_ is None else lambda_
    sigma1, unobserved = float(torch.linalg.matrix_norm(X, 2)), torch.isinf(v)
    mu = 1.25 / sigma1
    Y = X / max(sigma1, float(X.abs().max()) / lam) / (1 + mu * v)
    L, S = torch.zeros_like(X), torch.zeros_like(X)
    N = torch.where(unobserved, 0.0, v * Y)
    for _ in range(max_iter):
        before = S + N
        L, values = svt_reference(X - S - N + Y / mu, 1 / mu)
        R = X - L + Y / mu
        S = R - R.clamp(-lam / mu - lam * v, lam / mu + lam * v)
        S = torch.where(unobserved, 0.0, S)
        Y_new = torch.where(unobserved, 0.0, mu * (R - S) / (1 + mu * v))
        N = torch.where(unobserved, R, v * Y_new)
        primal = float((Y_new - Y).norm()) / mu / float(X.norm())
        Y = Y_new
        dual = mu * float((S + N - before).norm()) / max(float(Y.norm()), 1e-300)
        line = {"primal_resid": primal, "dual_resid": dual, "rank": len(values), "nnz": int((S != 0).sum()), "mu": mu}
        watch({name: float(value) for name, value in line.items()})
        if primal <= tol:
            break
        mu = mu * growth if dual < settled else mu
    return L, S, N
