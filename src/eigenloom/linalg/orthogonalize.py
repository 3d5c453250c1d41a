"""Near-orthogonal factors of matrices by odd polynomials, and the exact one by SVD; batched, free of scale.

Newton-Schulz with the coefficients of Jordan et al., "Muon: an optimizer for hidden layers" (2024); Polar Express:
Amsel, Persson, Musco and Gower, arXiv 2505.16932, Algorithm 1 (degree 5).
"""

from itertools import chain, repeat

import torch
from torch import Tensor

from eigenloom.errors import ConfigError

METHODS = ("newton_schulz", "polar_express", "svd")
JORDAN = (3.4445, -4.7750, 2.0315)
SAFETY = 1.01
"""How far above 1 a singular value may lie before a Polar Express step; the last polynomial needs no such room."""
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
LIMIT = (1.875, -1.25, 0.375)
"""The polynomial that the table converges to, and every step after it."""


def orthogonalize(Z: Tensor, method: str = "newton_schulz", steps: int = 5) -> Tensor:
    """Replace the singular values of each matrix by values near 1.

    With ``newton_schulz`` the result is *not* ``U V^T``: after five steps singular values lie between about 0.5 and
    1.5, except those that started below some 1e-3 of the Frobenius norm, which are still on their way up.
    ``polar_express`` comes closer with the same number of products; ``svd`` is exact, and leaves null directions null.
    Scale does not matter: ``c Z`` gives the same for every ``c > 0``. A zero matrix stays zero, and one with a NaN or
    an infinity comes back as NaN without harm to its neighbours in the batch.

    Args:
        Z: ``[..., m, n]``, floating point. Polynomials are computed in its dtype, bfloat16 included; ``svd`` of half
            precision in float32.
        method: ``newton_schulz``, ``polar_express`` or ``svd``.
        steps: of the polynomial methods, at least 1; three products of ``min(m, n)^2 max(m, n)`` or less each.

    Returns:
        ``[..., m, n]`` in the dtype of ``Z``.

    Raises:
        ConfigError: an unknown method, no step, or fewer than two dimensions.
    """
    if method not in METHODS:
        raise ConfigError(f"orthogonalize: {method!r} is no method; use {', '.join(METHODS)}")
    if Z.ndim < 2 or steps < 1:
        raise ConfigError(
            f"orthogonalize: needs matrices and at least 1 step, got shape {tuple(Z.shape)}, {steps} steps"
        )
    peak = Z.abs().amax((-2, -1), keepdim=True)
    finite = torch.isfinite(peak)
    X = torch.where(finite, Z / torch.where(finite & (peak > 0), peak, 1), 0)
    if method == "svd":
        return torch.where(finite, _polar_factor(X), torch.nan).to(Z.dtype)
    if wide := X.shape[-2] > X.shape[-1]:
        X = X.mT
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    X = X / torch.where(norm > 0, norm, 1)
    if method == "newton_schulz":
        coefficients = [JORDAN] * steps
    else:
        X = X / SAFETY
        table = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS]
        coefficients = [step for step, _ in zip(chain(table, repeat(LIMIT)), range(steps), strict=False)]
    for a, b, c in coefficients:
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return torch.where(finite, X.mT if wide else X, torch.nan)


def _polar_factor(X: Tensor) -> Tensor:
    """Return ``U V^T`` over the singular values above rounding."""
    work = X if X.dtype == torch.float64 else X.to(torch.float32)
    u, s, vt = torch.linalg.svd(work, full_matrices=False)
    floor = max(X.shape[-2:]) * torch.finfo(work.dtype).eps * s[..., :1]
    return (u * (s > floor).to(work.dtype).unsqueeze(-2)) @ vt
