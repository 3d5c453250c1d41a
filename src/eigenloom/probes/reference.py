"""The obvious probe: one feature, one class, every row, Newton with a line search. What the fast paths must equal."""

import numpy as np
from numpy.typing import ArrayLike


def fit_reference(
    z: ArrayLike, y: ArrayLike, *, l2: float, weights: ArrayLike | None = None, objective: str = "scaled"
) -> tuple[float, float, float]:
    """Fit ``P(y=1) = sigmoid(b + w z)`` and return ``(b, w, mean loss without the penalty)``.

    Minimizes ``mean(omega (softplus(eta) - y eta)) + l2/2 (w sigma)^2`` (``scaled``), or with the penalty
    ``l2/2 (w^2 + (b - b0)^2)`` (``saev``), where ``b0 = logit(mean(y))`` and sigma is the population std of z.

    Args:
        z: codes ``[n]``.
        y: labels ``[n]`` in {0, 1}.
        l2: ridge, > 0.
        weights: omega ``[n]``, default 1.
        objective: ``scaled`` or ``saev``.
    """
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    omega = np.ones_like(z) if weights is None else np.asarray(weights, np.float64)
    mean, sigma, prior = z.mean(), z.std(), y.mean()
    if sigma == 0:
        sigma = 1.0
    origin = 0.0 if weights is not None else np.log(prior / (1 - prior))
    design = np.stack([np.ones_like(z), (z - mean) / sigma], axis=1)
    # the penalty is a quadratic form in (beta, u), where b = beta - u mean/sigma and w = u/sigma
    if objective == "scaled":
        form, center = np.diag([0.0, 1.0]), np.zeros(2)
    else:
        to_b, to_w = np.array([1.0, -mean / sigma]), np.array([0.0, 1 / sigma])
        form, center = np.outer(to_b, to_b) + np.outer(to_w, to_w), np.array([origin, 0.0])

    def value(x: np.ndarray) -> float:
        eta = design @ x
        return float((omega * (np.logaddexp(0, eta) - y * eta)).mean() + l2 / 2 * (x - center) @ form @ (x - center))

    x, last = np.array([origin, 0.0]), np.inf
    for _ in range(500):
        f = 1 / (1 + np.exp(-(design @ x)))
        gradient = design.T @ (omega * (f - y)) / len(z) + l2 * form @ (x - center)
        hessian = (design.T * (omega * f * (1 - f))) @ design / len(z) + l2 * form
        step = -np.linalg.solve(hessian, gradient)
        slope, length = gradient @ step, np.abs(step).max()
        if -slope < 1e-15 and length >= last / 2:  # quadratic convergence has ended: only rounding is left
            break
        size, last = min(1.0, 8 / length), length
        while value(x + size * step) > value(x) + 1e-4 * size * slope + 1e-15:
            size /= 2
        x = x + size * step
    eta = design @ x
    loss = float((omega * (np.logaddexp(0, eta) - y * eta)).mean())
    return float(x[0] - x[1] * mean / sigma), float(x[1] / sigma), loss
