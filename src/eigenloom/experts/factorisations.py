"""Experts rebuilt from what a bank is compared with, so that networks can be judged with them; errors: ``baselines``.

Each function takes ``weights [E, p, d]`` and returns their reconstruction, float32 of the same shape. They are the best
of their kind in the Frobenius norm (Eckart & Young 1936).
"""

import torch
from torch import Tensor


def truncated_together(weights: Tensor, n_values: int) -> Tensor:
    """Keep the ``n_values`` largest singular values of all experts: ``n_values (p + d)`` parameters.

    Ranks go where they help most, so that a number of parameters is met that equal ranks would fall short of.
    """
    u, s, vt = torch.linalg.svd(weights.double(), full_matrices=False)
    kept = torch.zeros_like(s).flatten()
    kept[s.flatten().topk(n_values).indices] = 1
    return (u * (s * kept.view_as(s))[:, None] @ vt).float()


def stacked(weights: Tensor, rank: int, n_groups: int = 1) -> Tensor:
    """Share one basis of rows in each of some groups of consecutive experts, as MoLAE does (arXiv 2503.23100).

    ``E p r + n_groups r d`` parameters; the SVD of each group's stacked experts.
    """
    groups = weights.double().tensor_split(n_groups)
    found = []
    for group in groups:
        tall = group.flatten(0, 1)
        _, _, vt = torch.linalg.svd(tall, full_matrices=False)
        basis = vt[:rank]
        found.append((tall @ basis.T @ basis).unflatten(0, group.shape[:2]))
    return torch.cat(found).float()


def mean_and_delta(weights: Tensor, n_values: int) -> Tensor:
    """Add cut SVDs of the experts' distances from the mean expert: ``p d + n_values (p + d)`` parameters.

    D2-MoE (arXiv 2502.17298) without its calibration data.
    """
    mean = weights.double().mean(0, keepdim=True).float()
    return mean + truncated_together(weights - mean, n_values)


def equal_sizes(n_parameters: float, shape: tuple[int, int, int], num_bases: int) -> dict[str, int]:
    """Return the largest rank, or number of singular values, with which a factorisation has at most ``n_parameters``.

    Args:
        n_parameters: of one family.
        shape: ``(E, p, d)``.
        num_bases: of the bank, which is the number of groups in ``grouped``.

    Returns:
        ``truncated``, ``delta`` -> singular values of all experts; ``stacked``, ``grouped`` -> rank.
    """
    e, p, d = shape
    found = {
        "truncated": (n_parameters / (p + d), e * min(p, d)),
        "delta": ((n_parameters - p * d) / (p + d), e * min(p, d)),
        "stacked": (n_parameters / (e * p + d), d),
        "grouped": (n_parameters / (e * p + num_bases * d), d),
    }
    return {name: max(0, min(int(size), most)) for name, (size, most) in found.items()}
