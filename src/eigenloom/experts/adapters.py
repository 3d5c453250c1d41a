"""The block of the adapters: for each expert the least squares of ``W_i`` on the rows of ``M_i``, batched."""

import torch
from torch import Tensor

CONDITION = 1e5
"""Above this (estimated) condition number of ``M_i`` its products are not formed."""


def fit_adapters(w: Tensor, m: Tensor, ridge: float = 1e-10) -> Tensor:
    """Return ``A_i = W_i M_i^T (M_i M_i^T)^+``, which no other adapters beat.

    By Cholesky with a ridge relative to the mean diagonal, in float64; where the rows of ``M_i`` are nearly dependent,
    by an SVD of ``M_i`` that drops singular values below rounding.

    Args:
        w: ``[b, p, d]``.
        m: ``[b, r, d]`` of the same dtype.
        ridge: relative to the mean diagonal of ``M_i M_i^T``; absolute ridges are not small when weights are.

    Returns:
        ``[b, p, r]`` in the dtype of ``w``; zero where ``M_i`` is.
    """
    factor, well = factor_of(m, ridge)
    adapters = ((w @ m.mT).double() @ torch.cholesky_inverse(factor)).to(w.dtype)
    if not bool(well.all()):
        bad = (~well).nonzero()[:, 0]
        adapters[bad] = _by_svd(w[bad].double(), m[bad].double()).to(w.dtype)
    return adapters


def factor_of(m: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return Cholesky factors ``[b, r, r]`` float64 of ``M_i M_i^T`` and which of them can be trusted ``[b]``."""
    # The product is formed in float64 because its condition number is the square of that of M_i.
    exact = m.double()
    gram = exact @ exact.mT
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_((ridge * mean)[:, None])
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2)
    well = (info == 0) & (pivots.amin(1) * CONDITION > pivots.amax(1))
    if not bool(well.all()):
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        factor = torch.where(well[:, None, None], factor, eye)
    return factor, well


def _by_svd(w: Tensor, m: Tensor) -> Tensor:
    """Solve by the pseudo-inverse, float64."""
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    floor = max(m.shape[1:]) * torch.finfo(torch.float32).eps * 1e-3 * s[:, :1]
    inverse = torch.where(s > floor, 1 / torch.where(s > floor, s, 1), 0)
    return (w @ vt.mT) * inverse[:, None, :] @ u.mT
