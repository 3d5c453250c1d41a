"""Small experts for tests of banks: generic ones, and ones that a bank makes exactly."""

import torch

from eigenloom.batches import generator


def generic_experts(n=12, p=16, d=24, seed=0, decay=0.4, dtype=torch.float32):
    """Experts with singular values ``k^-decay`` and a part that all share."""
    rng = generator(seed, "generic experts")
    left = torch.linalg.qr(torch.randn(n, p, p, generator=rng, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, d, p, generator=rng, dtype=torch.float64)).Q
    own = (left * torch.arange(1, p + 1, dtype=torch.float64) ** -decay) @ right.mT
    shared = torch.randn(p, d, generator=rng, dtype=torch.float64) / (p * d) ** 0.5
    return (0.05 * (own + shared)).to(dtype)


def random_model(n=6, p=8, d=14, r=4, m=3, seed=0, dtype=torch.float64):
    """Experts and factors that do not fit them: ``W, A, codes, bank``."""
    rng = generator(seed, "random model")

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    return draw(n, p, d), draw(n, p, r), draw(n, m), draw(m, r, d)


def rel(a, b):
    """Frobenius distance over the norm of ``b``, in float64."""
    return float((a.double() - b.double()).norm() / b.double().norm())
