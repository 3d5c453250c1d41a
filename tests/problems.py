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
