"""Principal components of a few long vectors, beside randomized solvers; with what each leaves over the optimum."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from harness import compare
from sklearn import decomposition
from torch import Tensor

from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.linalg.fwht import fwht
from eigenloom.linalg.srht import SRHT
from eigenloom.sources.arrays import ArrayRows

PIECE = 1 << 16


def run(full: bool) -> list[dict[str, Any]]:
    """Compare one shape."""
    n, d, k = (64, 5_000_000, 16) if full else (64, 200_000, 16)
    rows = weight_like(n, d, k)
    settings = {"n": n, "D": d, "k": k, "dtype": "float32", "data": "16 directions over a flat tail, as large together"}
    return [compare_fits(rows, k, settings)]


def weight_like(n: int, d: int, k: int) -> Tensor:
    """Rows ``[n, d]`` that differ by ``k`` directions of falling size and by noise, about weights of size 0.04."""
    source = torch.Generator().manual_seed(0)
    scores = torch.randn(n, k, generator=source) * torch.linspace(1.5, 0.5, k)
    rows = torch.empty(n, d)
    for first in range(0, d, PIECE):
        part = rows[:, first : first + PIECE]
        base = 0.04 * torch.randn(part.shape[1], generator=source)
        part.copy_(base + 1e-3 * (scores @ torch.randn(k, part.shape[1], generator=source) / k**0.5))
        part += 1e-3 * torch.randn(part.shape, generator=source)
    return rows


def compare_fits(rows: Tensor, k: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everyone starts from the uncentred rows in memory and returns orthonormal components ``[k, D]``."""
    array, batches = rows.numpy(), ArrayRows(rows)
    mean = torch.cat([part.double().mean(0).float() for part in rows.split(PIECE, dim=1)])
    spectrum = torch.linalg.eigvalsh(products(rows, mean)).flip(0)
    total, optimum = spectrum.sum().item(), spectrum[k:].sum().item()

    def quality(components: Any) -> dict[str, Any]:
        """Residual over that of the best ``k`` directions, minus 1, and as a share of the total."""
        left = total - captured(rows, mean, torch.as_tensor(components))
        return {"excess": float(f"{left / optimum - 1:.2g}"), "residual": round(left / total, 6)}

    def ours(method: str) -> Callable[[], Tensor]:
        return lambda: SRHTPCA.fit(batches, seed=0, n_components=k, method=method).components.T

    def sklearn() -> np.ndarray:
        return decomposition.PCA(k, svd_solver="randomized", random_state=0).fit(array).components_

    def low_rank() -> Tensor:
        torch.manual_seed(0)
        return torch.svd_lowrank(rows - rows.mean(0), q=k, niter=2)[2].T

    def fbpca() -> np.ndarray:
        import fbpca  # a peer, perhaps not installed

        np.random.seed(0)  # noqa: NPY002 (the package draws from the global state)
        return fbpca.pca(array, k, n_iter=2)[2]

    return compare(
        "principal components of long vectors",
        {
            "eigenloom dual": ours("dual"),
            "eigenloom srht": ours("srht"),
            "torch.svd_lowrank": low_rank,
            "sklearn PCA(randomized)": sklearn,
            "fbpca": fbpca if find_spec("fbpca") else None,
            "R^T U, as published": lambda: transposed_sketch(rows, k),
        },
        ours="eigenloom dual",
        settings=settings,
        quality=quality,
        limits={"one product of all pairs": lambda: bare_products(array)},
        target="6x the best peer, residual within 1e-6 of optimal; srht within 2 %",
    )


def transposed_sketch(rows: Tensor, k: int) -> Tensor:
    """Return ``orth(R^T U)`` as rows ``[k, D]``: right singular vectors of the sketch, taken back by its transpose."""
    sketch = SRHT(seed=0, n_features=rows.shape[1], width=4 * k, block_size=1 << 18)
    codes = sketch(rows - rows[0])
    right = torch.linalg.svd(codes - codes.mean(0), full_matrices=False).Vh[:k].float()
    parts = []
    for block in range(sketch.n_blocks):
        signs, chosen = sketch.operator(block)
        spread = torch.zeros(k, len(signs)).index_copy_(1, chosen, right)
        used = min(sketch.block_size, rows.shape[1] - block * sketch.block_size)
        parts.append((fwht(spread, out=spread) * signs)[:, :used])
    return torch.linalg.qr(torch.cat(parts, dim=1).T).Q.T


def products(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the products of all pairs of centred rows, in float64 throughout."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part, centre in zip(rows.split(PIECE, dim=1), mean.split(PIECE), strict=True):
        centred = part.double() - centre.double()
        total += centred @ centred.T
    return total


def captured(rows: Tensor, mean: Tensor, components: Tensor) -> float:
    """Return the squared length of the centred rows within the span of orthonormal ``components [k, D]``."""
    scores = torch.zeros(len(rows), len(components), dtype=torch.float64)
    parts = zip(rows.split(PIECE, 1), mean.split(PIECE), components.split(PIECE, 1), strict=True)
    for part, centre, some in parts:
        scores += (part.double() - centre.double()) @ some.double().T
    return scores.square().sum().item()


def bare_products(array: np.ndarray) -> None:
    """Only the products, uncentred: numpy's ``x @ x.T``, which is BLAS syrk, 4096 columns at a time."""
    for first in range(0, array.shape[1], 4096):
        part = np.ascontiguousarray(array[:, first : first + 4096])
        part @ part.T
