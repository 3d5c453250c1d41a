"""Made-up experts with a known answer: three problems on which banks and their rivals are compared."""

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.experts.model import ACTIVATION, mix
from eigenloom.experts.settings import one_of

PROBLEMS = ("signed", "heavy", "simplex_silu")
STANDARD_DEVIATION = 0.02
_DECAY = 0.35


def planted_experts(
    problem: str,
    seed: int,
    *,
    n_experts: int = 32,
    shape: tuple[int, int] = (64, 128),
    rank: int = 32,
    num_bases: int = 8,
    n_active: int = 3,
    noise: float = 0.0,
) -> Tensor:
    """Return experts ``[E, p, d]`` float32 with standard deviation 0.02, as weights have.

    ``signed``: Gaussian adapters times sums of ``n_active`` of ``num_bases`` Gaussian atoms, Gaussian codes.
    ``simplex_silu``: such sums with codes on the simplex, through SiLU. ``heavy``: random orthogonal factors and
    singular values ``k^-0.35``; nothing is shared. ``noise`` is the norm of Gaussian noise over that of the weights.

    Raises:
        ConfigError: an unknown problem.
    """
    one_of("problem", problem, PROBLEMS)
    rng = generator(seed, f"planted experts {problem}")
    p, d = shape

    def gaussian(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng)

    if problem == "heavy":
        left = torch.linalg.qr(gaussian(n_experts, p, p)).Q
        right = torch.linalg.qr(gaussian(n_experts, d, p)).Q
        w = (left * torch.arange(1, p + 1) ** -_DECAY) @ right.mT
    else:
        atoms, adapters = gaussian(num_bases, rank, d), gaussian(n_experts, p, rank)
        places = torch.rand(n_experts, num_bases, generator=rng).argsort(1)[:, :n_active]
        values = gaussian(n_experts, n_active)
        if problem == "simplex_silu":
            shares = -torch.rand(n_experts, n_active, generator=rng).log()
            values = shares / shares.sum(1, keepdim=True)
        codes = torch.zeros(n_experts, num_bases).scatter(1, places, values)
        w = adapters @ ACTIVATION["silu" if problem == "simplex_silu" else "identity"](mix(codes, atoms))
    if noise:
        disturbance = gaussian(*w.shape)
        w = w + noise * disturbance * (w.norm() / disturbance.norm())
    return w * (STANDARD_DEVIATION / w.std())
