"""Atoms as combinations of proxies: PCA, spherical k-means, greedy and their mixture, from ``C = X X^T`` alone.

Rows of ``X [E, r d]`` are proxies. Each function returns combinations ``T [m, E]`` in float64, so that ``T X`` are the
atoms; after ``C`` is formed, ``r`` and ``d`` never enter.
"""

import math
from typing import Any

import torch
from torch import Tensor

from eigenloom.experts.coders import objective, solve_codes
from eigenloom.experts.spherical import spherical_kmeans
from eigenloom.linalg.eigen import descending_eigh, leading_eigh

_ROUNDING = 1e-13


def atoms_by_pca(C: Tensor, m: int) -> tuple[Tensor, dict[str, Any]]:
    """Return orthonormal atoms along the ``m`` leading eigenvectors of C.

    The squared residual is the sum of the other eigenvalues. Where C has fewer than m, the remaining atoms are zero.
    """
    values, vectors = descending_eigh(C)
    live = values[:m] > _ROUNDING * values[0]
    scale = torch.where(live, values[:m].clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0)
    flip = vectors[:m].gather(1, vectors[:m].abs().argmax(1, keepdim=True)).sign()
    return vectors[:m] * flip * scale[:, None], {"eigenvalues": values.tolist()}


def codes_of(C: Tensor, T: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Return codes ``[E, m]`` of the proxies on atoms ``T X`` and the squared residuals ``[E]``."""
    h = C @ T.T
    H = (T @ h).expand(len(C), -1, -1)
    codes = solve_codes(rule, H, h)
    return codes, (C.diagonal() + 2 * objective(H, h, codes)).clamp_min(0)


def residual_gram(C: Tensor, T: Tensor, codes: Tensor) -> Tensor:
    """Return the products ``[E, E]`` of the residuals ``x_i - sum_j codes_ij (T X)_j``."""
    h = C @ T.T
    cross = codes @ h.T
    gram = C - cross - cross.T + codes @ (T @ h) @ codes.T
    return (gram + gram.T) / 2


def atoms_by_greed(C: Tensor, m: int, rule: str) -> tuple[Tensor, dict[str, Any]]:
    """Return atoms found one at a time: the leading direction of what codes leave, then all coded anew by ``rule``.

    Its sign is that of the larger positive part. Earlier atoms are touched up once: each becomes best for its codes.
    A touch-up or new codes that would raise the residual are not taken.
    """
    n = len(C)
    T, codes = C.new_zeros(0, n), C.new_zeros(n, 0)
    residuals: list[float] = []
    for _ in range(m):
        gram = residual_gram(C, T, codes)
        value, vector = leading_eigh(gram, 1)
        u = vector[0]
        u = u if u.clamp_min(0).square().sum() >= u.clamp_max(0).square().sum() else -u
        left = torch.eye(n, dtype=C.dtype) - codes @ T
        # Rounding is no direction: where nothing is left, the atom is zero.
        length = float(value[0]) if float(value[0]) > _ROUNDING * float(C.trace()) else 0.0
        atom = u @ left / length**0.5 if length else torch.zeros_like(u)
        before = float(gram.trace())
        T, codes = _unit(C, torch.cat([T, atom[None]])), torch.cat([codes, C.new_zeros(n, 1)], 1)
        T, codes, before = _coded(C, T, codes, before, rule)
        touched = T.clone()
        for j in range(len(T) - 1):
            weight = codes[:, j].square().sum()
            if float(weight) > 0:
                rest = torch.eye(n, dtype=C.dtype) - codes @ touched
                touched[j] = touched[j] + codes[:, j] @ rest / weight
        norms = _norms(C, touched)
        T, codes, before = _coded(C, _unit(C, touched), codes * norms, before, rule, fallback=(T, codes))
        residuals.append(before)
    return T, {"residual_per_atom": residuals}


def _coded(
    C: Tensor, T: Tensor, codes: Tensor, before: float, rule: str, fallback: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return atoms, the better of old and new codes, and the residual; or the fallback where both are worse."""
    found, left = codes_of(C, T, rule)
    kept = float(residual_gram(C, T, codes).trace())
    after, best = (float(left.sum()), found) if float(left.sum()) <= kept else (kept, codes)
    if fallback is not None and after > before:
        return *fallback, before
    return T, best, after


def atoms_by_mixture(
    C: Tensor, m: int, ratio: float, iterations: int, start: str, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return ``ceil(ratio m)`` PCA atoms and the centres of a spherical k-means on the residuals' directions."""
    first = math.ceil(ratio * m)
    T, facts = atoms_by_pca(C, first) if first else (C.new_zeros(0, len(C)), {})
    if first == m:
        return T, facts
    codes = codes_of(C, T, "ls")[0] if first else C.new_zeros(len(C), 0)
    left = torch.eye(len(C), dtype=C.dtype) - codes @ T
    gram = residual_gram(C, T, codes) if first else C
    live = gram.diagonal() > _ROUNDING * C.diagonal().max()
    gram = gram * live * live[:, None]
    centers, more = spherical_kmeans(gram, m - first, iterations, start, seed)
    return torch.cat([T, centers @ left]), facts | more


def _norms(C: Tensor, T: Tensor) -> Tensor:
    """Return the lengths ``[m]`` of the atoms."""
    return ((T @ C) * T).sum(1).clamp_min(0).sqrt()


def _unit(C: Tensor, T: Tensor) -> Tensor:
    """Return combinations whose atoms have unit length; zero atoms stay zero."""
    norms = _norms(C, T)
    return T / torch.where(norms > 0, norms, 1)[:, None]
