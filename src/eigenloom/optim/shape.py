"""Spectral shaping: lower the few dominant singular values of a matrix to the level of the rest.

Huang et al., "Spectra" (arXiv 2602.11185), with the corrections of ``docs/methods/spectra_teon.md``: extra columns and
a Rayleigh-Ritz rotation in the tracker, relative thresholds, a tail level that survives rank-deficient matrices.

The internal form is a batch of *stacks*: ``n`` stacks of ``K`` layers each. Layer ``T_j`` ``[c, a]`` has the shared
side as its columns, so that stack ``Y = [T_1; ...; T_K]^T`` is ``[a, K c]``; each layer carries a scale by which it is
divided, folded into the small products so that no pass over the layers is spent on it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.errors import ConfigError

TAIL = 32.0
"""A tail below this many roundings of the whole is rounding itself (float32: 3.8e-6 of the squared norm)."""


class Shaped(NamedTuple):
    """What ``spectra_shape`` returns.

    Fields: ``matrix`` ``[..., a, b]``, shaped; ``basis`` ``[..., a, q]`` orthonormal, to be given to the next call
    (with ``ritz=False`` unit columns ``[..., b, q]``); ``spike`` ``[..., k]``, the leading singular values found,
    before they were lowered; ``sigma_tail`` ``[...]``, the level they were lowered to.
    """

    matrix: Tensor
    basis: Tensor
    spike: Tensor
    sigma_tail: Tensor


class Spike(NamedTuple):
    """The tracked part of ``n`` stacks, in units of scaled layers.

    Fields: ``shared`` ``[n K, k, a]`` and ``own`` ``[n K, k, c]``, factors whose product ``own^T shared`` is what each
    layer has to gain, its scale undone; ``basis`` for the next call; ``values`` ``[n, k]``; ``sigma_tail`` ``[n]``.
    """

    shared: Tensor
    own: Tensor
    basis: Tensor
    values: Tensor
    sigma_tail: Tensor


def spectra_shape(
    Z: Tensor,
    *,
    rank: int | None = None,
    rank_ratio: float = 0.015,
    basis: Tensor | None = None,
    n_iter: int = 1,
    oversample: int = 8,
    ritz: bool = True,
) -> Shaped:
    """Lower the ``rank`` leading singular values of each matrix to the root mean square of the others.

    No singular value ever rises, whatever the basis. Free of scale; a zero matrix stays zero; one that is not finite
    keeps its NaNs and harms no neighbour. No data-dependent Python: compiles with ``fullgraph=True``.

    Args:
        Z: ``[..., a, b]``; half precision is computed in float32.
        rank: number of values to lower, at most ``min(a, b) - 1``; None takes ``rank_ratio``.
        rank_ratio: share of ``min(a, b)``, rounded, at least 1.
        basis: left basis ``[..., a, q]`` of an earlier call (``[..., b, q]`` with ``ritz=False``), any full-rank
            matrix; None starts from a fixed Gaussian one, for which ``n_iter`` should be 4.
        n_iter: subspace iterations; each costs two products of ``a b q``.
        oversample: columns tracked beyond ``rank``; unused when ``basis`` is given, whose width says it.
        ritz: rotate to Ritz pairs; False takes column norms instead, as published.

    Returns:
        ``Shaped``; ``matrix`` in the dtype of ``Z``, the others in float32 or float64.

    Raises:
        ConfigError: a rank, ratio, iteration count or basis that does not fit.
    """
    a, b = Z.shape[-2:]
    r = min(a, b)
    k = min(max(1, round(rank_ratio * r)), r - 1) if rank is None else rank
    if not 0 <= k <= max(r - 1, 0) or n_iter < 1 or oversample < 0:
        raise ConfigError(
            f"spectra_shape: rank {k}, n_iter {n_iter}, oversample {oversample} do not fit a {a} x {b} matrix"
        )
    side = a if ritz else b
    if basis is None:
        basis = start_basis(side, min(k + oversample, r), 0, 0).expand(*Z.shape[:-2], -1, -1)
    if basis.shape[:-1] != (*Z.shape[:-2], side) or not k <= basis.shape[-1] <= r:
        raise ConfigError(f"spectra_shape: a basis {tuple(basis.shape)} does not fit {tuple(Z.shape)} at rank {k}")
    work = working_dtype(Z.dtype)
    peak = Z.abs().amax((-2, -1), keepdim=True).to(work)
    peak = torch.where(torch.isfinite(peak) & (peak > 0), peak, 1).reshape(-1, 1, 1)
    matrices = Z.to(work).reshape(-1, a, b) / peak
    scales = root_mean_square(matrices)[:, None]
    start = basis.to(device=Z.device, dtype=work).reshape(-1, side, basis.shape[-1])
    spike = find_spike(matrices.mT, scales, start, k, n_iter, ritz)
    shaped = torch.baddbmm(matrices, spike.shared.mT, spike.own) * peak
    unit = scales * peak[:, 0]
    return Shaped(
        shaped.reshape(Z.shape).to(Z.dtype),
        spike.basis.reshape(basis.shape),
        (spike.values * unit).reshape(*Z.shape[:-2], k),
        (spike.sigma_tail * unit[:, 0]).reshape(Z.shape[:-2]),
    )


def find_spike(
    layers: Tensor, scales: Tensor, basis: Tensor, rank: int, n_iter: int, ritz: bool, sound: bool = False
) -> Spike:
    """Track the leading singular triplets of ``n`` stacks of ``K`` layers, and say what lowers them.

    Args:
        layers: ``[n K, c, a]``, stack by stack, any strides.
        scales: ``[n, K]``, what each layer is divided by: the root mean square of its entries, or a common one. Zero
            marks a layer of zeros; a layer whose scale is not finite counts as zeros.
        basis: ``[n, a, q]``, or ``[n, K c, q]`` where ``ritz`` is False.
        rank: ``k`` of ``q``.
        n_iter: iterations.
        ritz: see ``spectra_shape``.
        sound: whether all scales are known to be positive and finite, which saves the masks.

    Returns:
        ``Spike``. ``4 n_iter n K c a q`` operations.
    """
    n, K = scales.shape
    c, a = layers.shape[1:]
    live = torch.isfinite(scales) & (scales > 0) if not sound else scales.new_ones(n, K)
    mask = live.view(-1, 1, 1)
    divisor = (scales if sound else torch.where(live, scales, 1)).view(-1, 1, 1)

    def scaled(product: Tensor) -> Tensor:
        """Divide each layer's small product by the layer's scale, or drop it."""
        product = product / divisor
        return product if sound else torch.where(mask, product, 0)

    def repeated(u: Tensor) -> Tensor:
        """Give every layer of a stack the stack's rows ``[n K, q, a]``."""
        return u.mT if K == 1 else u.mT.unsqueeze(1).expand(n, K, -1, a).reshape(n * K, -1, a)

    def split(v: Tensor) -> Tensor:
        """Cut ``[n, K c, q]`` into the layers' rows ``[n K, q, c]``."""
        return v.mT if K == 1 else v.mT.reshape(n, -1, K, c).transpose(1, 2).reshape(n * K, -1, c)

    def across(u: Tensor) -> Tensor:
        """``Y^T u``: ``[n, a, q]`` -> ``[n, K c, q]``."""
        rows = scaled(repeated(u) @ layers.mT)
        return (rows if K == 1 else rows.view(n, K, -1, c).transpose(1, 2).reshape(n, -1, K * c)).mT

    def back(v: Tensor) -> Tensor:
        """``Y v``: ``[n, K c, q]`` -> ``[n, a, q]``."""
        rows = scaled(split(v) @ layers)
        return (rows if K == 1 else rows.view(n, K, -1, a).sum(1)).mT

    u = v = basis
    for _ in range(n_iter):
        if ritz:
            v = torch.linalg.qr(across(u)).Q
            u, triangle = torch.linalg.qr(back(v))
            p, values, qt = torch.linalg.svd(triangle)
            u, v = u @ p, v @ qt.mT
        else:
            u = torch.linalg.qr(back(v)).Q
            v = across(u)
            values = torch.linalg.vector_norm(v, dim=1)
            v = v / torch.where(values > 0, values, 1).unsqueeze(1)
    total = live.sum(1) * float(c * a)
    values = values[:, :rank]
    sigma_tail, gains = tail_level(values, total, min(a, K * c))
    factors = scales if sound else torch.where(live, scales, 0)
    own = split(v[..., :rank] * gains.unsqueeze(1)) * factors.view(-1, 1, 1)
    kept = u if ritz else v
    if not sound:
        kept = torch.where((total > 0).view(-1, 1, 1), kept, basis)
    return Spike(repeated(u[..., :rank]), own, kept, values, sigma_tail)


def tail_level(values: Tensor, total: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return the level of the tail ``[n]`` and what it takes from each of ``values`` ``[n, k]``, at most zero.

    ``total`` ``[n]`` is the squared Frobenius norm. Where nothing but rounding is left of the tail, its level is the
    smallest value above rounding, and smaller ones stay as they are.
    """
    k, eps = values.shape[1], TAIL * torch.finfo(values.dtype).eps
    wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    total = total.to(wide.dtype)
    tail = (total - wide.square().sum(1)).clamp_min(0)
    level = (tail / max(r - k, 1)).sqrt()
    if k:
        least = torch.where(wide > eps**0.5 * wide.amax(1, keepdim=True), wide, torch.inf).amin(1)
        level = torch.where(tail > eps * total, level, torch.where(least < torch.inf, least, 0))
    gains = (level.unsqueeze(1) - wide).clamp_max(0)
    return level.to(values.dtype), gains.to(values.dtype)


def spectra_shape_reference(Z: Tensor, rank: int) -> Shaped:
    """Shape by a full SVD in float64: slow, exact, the oracle of ``spectra_shape``.

    Args:
        Z: ``[..., a, b]``, finite.
        rank: number of values to lower.

    Returns:
        ``Shaped`` with float64 fields, the basis ``rank`` columns wide.
    """
    u, s, vt = torch.linalg.svd(Z.to(torch.float64), full_matrices=False)
    kept, r, eps = s[..., :rank], s.shape[-1], TAIL * torch.finfo(working_dtype(Z.dtype)).eps
    tail = s[..., rank:].square().sum(-1)
    least = torch.where(kept > eps**0.5 * s[..., :1], kept, torch.inf).amin(-1) if rank else tail
    least = torch.where(torch.isfinite(least), least, 0)
    level = torch.where(tail <= eps * s.square().sum(-1), least, (tail / (r - rank)).sqrt())
    lowered = torch.cat([torch.minimum(kept, level.unsqueeze(-1)), s[..., rank:]], dim=-1)
    return Shaped(u * lowered.unsqueeze(-2) @ vt, u[..., :rank], kept, level)


def start_basis(side: int, width: int, seed: int, index: int) -> Tensor:
    """Return an orthonormal Gaussian start ``[side, width]`` float64 of ``(seed, index)``, the same on every device."""
    draw = generator(seed, "spectra basis", index)
    return torch.linalg.qr(torch.randn(side, width, generator=draw, dtype=torch.float64)).Q


def root_mean_square(matrices: Tensor) -> Tensor:
    """Return the root mean square of each of ``[n, m, n]``: ``[n]``; entries near 1 are taken for granted."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2)) / (matrices.shape[1] * matrices.shape[2]) ** 0.5


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
