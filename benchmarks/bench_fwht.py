"""The Walsh-Hadamard transform of many rows: our two CPU paths beside products, a butterfly, scipy, and a copy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.fft
import torch
from harness import compare
from torch import Tensor

from eigenloom.linalg.fwht import fwht_by_products
from eigenloom.linalg.fwht_compiled import butterfly, compiled


def run(full: bool) -> list[dict[str, Any]]:
    """Compare one shape."""
    bits, n_rows = (20, 32) if full else (15, 32)
    x = torch.randn(n_rows, 1 << bits, generator=torch.Generator().manual_seed(0))
    settings = {"length": f"2^{bits}", "rows": n_rows, "dtype": "float32", "MB": x.nbytes >> 20}
    return [compare_transforms(x, settings)]


def compare_transforms(x: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """From one array to another; the error is relative to float64, in units of a row's norm."""
    exact = butterfly(x[:1].double())
    kernel, work, destination = compiled(), torch.empty_like(x), torch.empty_like(x)
    scales = scaling_of_cosines(x.shape[1])
    hadamard = butterfly(torch.eye(32))

    def quality(result: Tensor) -> dict[str, Any]:
        """Largest error of the first row."""
        error = (torch.as_tensor(result)[:1].double() - exact).abs().max() / exact.norm()
        return {"error": float(f"{error:.2g}")}

    def factors() -> Tensor:
        found, inner = x, 1
        for matrix in [hadamard] * (x.shape[1].bit_length() // 5):
            found = found.reshape(-1, 32) @ matrix if inner == 1 else matrix @ found.reshape(-1, 32, inner)
            inner *= 32
        return found.reshape(x.shape)

    def cosines() -> np.ndarray:
        shape = (len(x), *[2] * (x.shape[1].bit_length() - 1))
        return scipy.fft.dctn(x.numpy().reshape(shape), axes=range(1, len(shape))).reshape(x.shape) * scales

    return compare(
        "Walsh-Hadamard transform",
        {
            "eigenloom": None if kernel is None else lambda: kernel(x, work),
            "eigenloom, without a compiler": lambda: fwht_by_products(x, work),
            "torch, factors of H in turn": factors,
            "torch butterfly, whole array": lambda: butterfly(x),
            "scipy.fft.dctn, axes of length 2": cosines,
        },
        ours="eigenloom, without a compiler" if kernel is None else "eigenloom",
        settings=settings,
        quality=quality,
        limits={"memory copy": lambda: destination.copy_(x)},
        target="within 3x of a copy compiled, 18x without a compiler",
    )


def scaling_of_cosines(n: int) -> np.ndarray:
    """Return what makes a cosine transform of length 2 along each axis a sum and a difference."""
    scale = np.ones(1, dtype=np.float32)
    for _ in range(n.bit_length() - 1):
        scale = np.concatenate([scale * 0.5, scale * np.float32(0.5**0.5)])
    return scale
