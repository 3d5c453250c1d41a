"""Matrices of known singular values, and what shaping must make of them, written out independently."""

import torch


def planted(values, a, b, seed=0, dtype=torch.float64):
    """A matrix ``[a, b]`` with the given singular values, and its factors."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(a, len(values), generator=draw, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(b, len(values), generator=draw, dtype=torch.float64)).Q
    s = torch.as_tensor(values, dtype=torch.float64)
    return ((u * s) @ v.T).to(dtype), u.to(dtype), s.to(dtype), v.to(dtype)


def spiked(a, b, k=4, seed=0, dtype=torch.float64):
    """A spike of ``k`` values between 20 and 10 above a tail from 2 down to 1."""
    values = torch.cat([torch.linspace(20, 10, k), torch.linspace(2, 1, min(a, b) - k)])
    return planted(values, a, b, seed, dtype)


def random_orthogonal(n, seed):
    """An orthogonal matrix ``[n, n]`` float64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64)).Q


def relative(found, wanted):
    """Largest deviation, relative to the largest entry."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())
