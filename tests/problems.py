"""Small planted problems with known answers, shared by tests."""

import torch
from torch import Tensor


def decaying_rows(n: int, d: int, seed: int = 0, power: float = 0.5, mean: float = 0.0) -> Tensor:
    """Gaussian rows ``[n, d]`` float32 whose i-th standard deviation, in a random frame, is ``(i + 1) ** -power``."""
    source = torch.Generator().manual_seed(seed)
    frame, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=source))
    scales = torch.arange(1, d + 1, dtype=torch.float64) ** -power
    rows = torch.randn(n, d, dtype=torch.float64, generator=source) * scales @ frame
    return (rows + mean).float()


def low_rank_plus_sparse(
    n: int, m: int, rank: int, share: float, seed: int = 0, *, noise: float = 0.0, size: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    """A planted split of ``X [n, m]``, float64: ``X``, its low-rank part and its sparse part.

    The low-rank part is a product of Gaussian factors with entries of variance 1; ``share`` of the entries are hit by
    values uniform in ``+-size``; ``noise`` is the standard deviation of what is added everywhere.
    """
    source = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(side, rank, dtype=torch.float64, generator=source) for side in (n, m))
    low_rank = left @ right.T / max(rank, 1) ** 0.5
    hit = torch.rand(n, m, dtype=torch.float64, generator=source) < share
    values = size * (2 * torch.rand(n, m, dtype=torch.float64, generator=source) - 1)
    sparse = torch.where(hit, values, 0.0)
    dense = noise * torch.randn(n, m, dtype=torch.float64, generator=source)
    return low_rank + sparse + dense, low_rank, sparse
