"""Codes of many experts at once: minimise ``a^T H a / 2 - h^T a`` for each; free, nonnegative, simplex or sparse.

All in float64 on small systems ``[E, m, m]``; ``r`` and ``d`` are never touched here.
"""

import torch
from torch import Tensor

from eigenloom.errors import ConfigError

_TOLERANCE = 1e-11
_RIDGE = 1e-13


def least_squares(H: Tensor, h: Tensor) -> Tensor:
    """Return the unrestricted minimisers ``[E, m]``, of least norm where there are several."""
    values, vectors = torch.linalg.eigh(H)
    floor = H.shape[-1] * 1e-14 * values[:, -1:].clamp_min(0)
    inverse = torch.where(values > floor, 1 / torch.where(values > floor, values, 1), 0)
    return (vectors @ (inverse * (vectors.mT @ h[..., None])[..., 0])[..., None])[..., 0]


def nonnegative(H: Tensor, h: Tensor, simplex: bool = False) -> Tensor:
    """Return the nonnegative minimisers ``[E, m]`` by the active-set method (Lawson and Hanson 1974), batched.

    With ``simplex`` they sum to 1 as well. Each step solves the free variables of all problems, goes as far as signs
    allow, and frees the variable of most negative multiplier where it has arrived.
    """
    n, m = h.shape
    scale = H.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(H.dtype).tiny)
    H, h = H / scale[:, None, None], h / scale[:, None]
    H = H + _RIDGE * torch.eye(m, dtype=H.dtype, device=H.device)
    size = h.abs().amax(1, keepdim=True).clamp_min(H.abs().amax((1, 2))[:, None] if simplex else 0)
    free = torch.zeros(n, m, dtype=torch.bool, device=H.device)
    if simplex:
        best = (H.diagonal(dim1=1, dim2=2) / 2 - h).argmin(1, keepdim=True)
        free.scatter_(1, best, True)
    a = free.to(H.dtype)
    for _ in range(20 * m + 20):
        target, level = _on_free(H, h, free, simplex)
        crossing = free & (target <= 0)
        ratios = torch.where(crossing, a / torch.where(crossing, a - target, 1), torch.inf)
        step = ratios.amin(1, keepdim=True).clamp(0, 1)
        a = torch.where(free, a + step * (target - a), 0)
        blocked = crossing & (ratios <= step)
        free &= ~blocked
        a = torch.where(free, a, 0)
        gain = h - (H @ a[..., None])[..., 0] + level
        gain = torch.where(free, -torch.inf, gain)
        best_gain, entering = gain.max(1, keepdim=True)
        enters = ~blocked.any(1, keepdim=True) & (best_gain > _TOLERANCE * size)
        if not bool((enters | blocked.any(1, keepdim=True)).any()):
            break
        free.scatter_(1, entering, free.gather(1, entering) | enters)
    return a


def _on_free(H: Tensor, h: Tensor, free: Tensor, simplex: bool) -> tuple[Tensor, Tensor]:
    """Return minimisers over the free variables ``[E, m]`` and the multiplier of their sum ``[E, 1]``."""
    both = free[:, :, None] & free[:, None, :]
    system = torch.where(both, H, 0) + torch.diag_embed((~free).to(H.dtype))
    if not simplex:
        return torch.linalg.solve(system, torch.where(free, h, 0)), h.new_zeros(len(h), 1)
    one = free.to(H.dtype)
    solved = torch.linalg.solve(system, torch.stack([torch.where(free, h, 0), one], 2))
    sums = (one[..., None] * solved).sum(1)
    level = (1 - sums[:, :1]) / sums[:, 1:]
    return solved[..., 0] + level * solved[..., 1], level


def orthogonal_matching_pursuit(H: Tensor, h: Tensor, k: int) -> Tensor:
    """Return codes ``[E, m]`` with at most ``k`` nonzeros, chosen one after another (Pati et al. 1993).

    Each step takes the variable that alone lowers the objective most and solves all taken ones again.
    """
    diagonal = H.diagonal(dim1=1, dim2=2)
    live = diagonal > 1e-14 * diagonal.amax(1, keepdim=True)
    free = torch.zeros_like(live)
    a = torch.zeros_like(h)
    for _ in range(min(k, h.shape[1])):
        left = h - (H @ a[..., None])[..., 0]
        score = torch.where(live & ~free, left.square() / torch.where(live, diagonal, 1), -torch.inf)
        value, entering = score.max(1, keepdim=True)
        free.scatter_(1, entering, free.gather(1, entering) | (value > 0))
        both = free[:, :, None] & free[:, None, :]
        a = least_squares(torch.where(both, H, 0), torch.where(free, h, 0))
    return torch.where(free, a, 0)


def soft_threshold_codes(H: Tensor, h: Tensor, penalty: float, start: Tensor, rounds: int = 50) -> Tensor:
    """Return minimisers ``[E, m]`` of the objective plus ``penalty * h_max * ||a||_1``, by coordinate descent.

    ``h_max``, per expert the largest ``|h_j| / sqrt(H_jj)`` times ``sqrt(H_jj)``, makes the penalty free of scale: at 1
    every code is zero.
    """
    diagonal = H.diagonal(dim1=1, dim2=2)
    root = torch.where(diagonal > 0, diagonal, 1).sqrt()
    peak = (h.abs() / root).amax(1)
    a = start.clone()
    for _ in range(rounds):
        before = a.clone()
        for j in range(h.shape[1]):
            left = h[:, j] - (H[:, j] * a).sum(1) + diagonal[:, j] * a[:, j]
            shrunk = left.sign() * (left.abs() - penalty * peak * root[:, j]).clamp_min(0)
            a[:, j] = torch.where(diagonal[:, j] > 0, shrunk / root[:, j].square(), 0)
        if float((a - before).abs().max()) <= 1e-10 * float(a.abs().max()):
            break
    return a


def softmax_codes(a: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(log a / temperature)`` of codes on the simplex: at 1 they stay, below 1 the large ones gain."""
    return torch.softmax(a.clamp_min(1e-12).log() / temperature, dim=1)


def objective(H: Tensor, h: Tensor, a: Tensor) -> Tensor:
    """Return ``a^T H a / 2 - h^T a`` ``[E]``."""
    return ((H @ a[..., None])[..., 0] * a / 2 - h * a).sum(1)


def solve_codes(rule: str, H: Tensor, h: Tensor, k: int | None = None) -> Tensor:
    """Return codes by a rule: ``ls``, ``nnls``, ``simplex`` or ``omp`` (of at most ``k``).

    Raises:
        ConfigError: an unknown rule.
    """
    if rule == "ls":
        return least_squares(H, h)
    if rule in ("nnls", "simplex"):
        return nonnegative(H, h, simplex=rule == "simplex")
    if rule == "omp":
        return orthogonal_matching_pursuit(H, h, k or max(1, h.shape[1] // 2))
    raise ConfigError(f"code rule: {rule!r} is unknown; use ls, nnls, simplex, omp")
