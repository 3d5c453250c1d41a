"""Landmarks for a Nystrom approximation, drawn from a pool of rows."""

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.linalg.kernels import Kernel, KernelRows
from eigenloom.linalg.seeding import draw_by_weight, greedy_kmeans_plusplus

CHOICES = ("rpcholesky", "uniform", "k-means++")
NOISE = 2.0**-20
"""Residuals below this share of ``k(x, x)`` are float32 rounding, and count as zero."""
_PROPOSALS, _PIECE = 128, 1024


def choose_landmarks(choice: str, pool: Tensor, n: int, kernel: Kernel, generator: torch.Generator) -> Tensor:
    """Return the indices ``[n]`` int64 (CPU) of the rows of ``pool [p, d]`` that become landmarks.

    ``uniform`` takes the first rows of a pool that is itself a sample in random order; ``k-means++`` spreads by squared
    distance (see ``seeding``); ``rpcholesky`` by what the kernel cannot yet explain.

    Raises:
        ConfigError: an unknown choice.
    """
    if choice == "uniform":
        return torch.arange(n)
    if choice == "k-means++":
        return greedy_kmeans_plusplus(pool, n, generator)
    if choice == "rpcholesky":
        return rp_cholesky(kernel, pool, n, generator)
    raise ConfigError(f"landmark_choice: {choice!r} is unknown; use one of {', '.join(CHOICES)}")


def rp_cholesky(kernel: Kernel, rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` pivots of a randomly pivoted Cholesky decomposition of the kernel matrix of ``rows [p, d]``.

    Each pivot is drawn in proportion to the residual diagonal that the pivots before it leave (Chen, Epperly, Tropp
    and Webber 2022). Proposals come in blocks and are thinned by rejection, which draws from the same distribution and
    turns columns into GEMMs (Epperly, Tropp and Webber 2024). Once the residual is rounding, the rest is drawn
    uniformly from the rows not yet taken. ``2 p n (d + n)`` operations, ``p (n + d)`` numbers of memory.

    Returns:
        Indices ``[n]`` int64 on the CPU, in the order they were drawn, each once.
    """
    shift = rows.mean(0, dtype=torch.float64).to(rows.dtype) if kernel.shift_invariant else torch.zeros_like(rows[0])
    norms = torch.cat([(piece - shift).square().sum(1, dtype=torch.float64) for piece in rows.split(_PIECE)])
    diagonal = kernel.diagonal(norms)
    residual = diagonal.clone()
    factor = torch.empty(len(rows), n, dtype=rows.dtype, device=rows.device)
    chosen: list[Tensor] = []
    done = 0
    while done < n and residual.any():
        uniforms = torch.rand(2, min(_PROPOSALS, n - done), generator=generator, dtype=torch.float64)
        proposed = draw_by_weight(residual, uniforms[0].to(rows.device))
        points = rows[proposed] - shift
        schur = KernelRows(kernel, points.double(), torch.zeros_like(shift, dtype=torch.float64))(points.double())
        partial = factor[proposed, :done].double()
        schur = (schur - partial @ partial.T).cpu()
        noise = NOISE * diagonal[proposed].cpu()
        kept = _accepted(schur, uniforms[1] * residual[proposed].cpu(), noise)
        residual[proposed[(schur.diagonal() <= noise).to(rows.device)]] = 0.0
        if len(kept):
            taken = proposed[kept.to(rows.device)]
            columns = KernelRows(kernel, rows[taken] - shift, shift)(rows)
            columns -= factor[:, :done] @ factor[taken, :done].T
            lower = torch.linalg.cholesky(schur[kept][:, kept]).to(columns)
            fresh = torch.linalg.solve_triangular(lower.T, columns, upper=True, left=False)
            factor[:, done : done + len(kept)] = fresh
            residual -= fresh.square().sum(1, dtype=torch.float64)
            residual[taken] = 0.0
            chosen.append(taken.cpu())
            done += len(kept)
            residual *= residual > NOISE * diagonal
    free = torch.ones(len(rows), dtype=torch.bool)
    free[torch.cat(chosen) if chosen else []] = False
    rest = free.nonzero().squeeze(1)
    return torch.cat([*chosen, rest[torch.randperm(len(rest), generator=generator)[: n - done]]])


def _accepted(schur: Tensor, thresholds: Tensor, noise: Tensor) -> Tensor:
    """Thin a block of proposals ``[b]``: keep each whose residual, given those kept before it, exceeds its threshold.

    ``schur [b, b]`` float64 is the residual kernel among them; a uniform number times the residual that the proposal
    was drawn by is the threshold. A residual of at most ``noise`` is never kept.
    """
    left, kept = schur.clone(), []
    for j in range(len(left)):
        pivot = left[j, j]
        if pivot > torch.maximum(thresholds[j], noise[j]):
            kept.append(j)
            left -= torch.outer(left[:, j], left[j]) / pivot
    return torch.tensor(kept, dtype=torch.int64)


def rp_cholesky_reference(matrix: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` pivots of a kernel matrix ``[p, p]`` one by one, from its explicit residual."""
    residual, chosen = matrix.double().clone(), []
    for _ in range(n):
        weights = residual.diagonal().clamp_min(0)
        pivot = int(torch.multinomial(weights, 1, generator=generator))
        chosen.append(pivot)
        residual -= torch.outer(residual[:, pivot], residual[pivot]) / residual[pivot, pivot]
    return torch.tensor(chosen)
