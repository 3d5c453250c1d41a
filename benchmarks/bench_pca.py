"""Streaming PCA beside scikit-learn's and torch's; the covariance it rests on beside theirs, with its error."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from harness import compare
from sklearn import decomposition
from torch import Tensor

from eigenloom.bases.pca import PCA
from eigenloom.linalg.accumulate import BLOCK_ROWS
from eigenloom.moments import Moments, moments_of_rows
from eigenloom.sources.arrays import ArrayRows

N_LEADING = 64


def run(full: bool) -> list[dict[str, Any]]:
    """Compare the whole fit, and the pass alone."""
    n, d = (65_536, 1024) if full else (16_384, 128)
    rows = activation_like(n, d)
    exact = torch.cov(rows.double().T)
    settings = {"n": n, "d": d, "dtype": "float32", "data": "power-law spectrum, 8 features with a mean of ten sigma"}
    return [compare_fits(rows, exact, settings), compare_covariances(rows, exact, settings)]


def activation_like(n: int, d: int) -> Tensor:
    """Rows ``[n, d]`` with variances ``1 / i`` in a random frame and a mean of ten sigma in eight features."""
    source = torch.Generator().manual_seed(0)
    frame, _ = torch.linalg.qr(torch.randn(d, d, generator=source))
    rows = torch.randn(n, d, generator=source) * torch.arange(1, d + 1) ** -0.5 @ frame
    rows[:, :8] += 10 * rows[:, :8].std(0)
    return rows


def compare_fits(rows: Tensor, exact: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All components from rows in memory; ``pca_lowrank`` gives 64 of them."""
    array, batches = rows.numpy(), ArrayRows(rows)
    true_values = torch.linalg.eigvalsh(exact).flip(0)

    def quality(result: tuple[Any, Any]) -> dict[str, Any]:
        """Error of the eigenvalues, relative to the largest, and share of variance in the leading 64."""
        values, components = (torch.as_tensor(np.array(part)).double() for part in result)
        leading = components[:N_LEADING]
        captured = ((leading @ exact) * leading).sum() / exact.trace()
        error = (values - true_values[: len(values)]).abs().max() / true_values[0]
        return {
            "n_components": len(values),
            "eigenvalue_error": float(f"{error:.2g}"),
            "captured_by_64": round(captured.item(), 6),
        }

    def ours() -> tuple[Any, Any]:
        pca = PCA.fit(batches, seed=0)
        return pca.explained_variance, pca.components

    def fitted(model: Any) -> tuple[Any, Any]:
        model.fit(array)
        return model.explained_variance_, model.components_

    def low_rank() -> tuple[Any, Any]:
        _, singular, columns = torch.pca_lowrank(rows, q=N_LEADING)
        return singular**2 / (len(rows) - 1), columns.T

    return compare(
        "streaming PCA, all components",
        {
            "eigenloom": ours,
            "sklearn PCA(covariance_eigh)": lambda: fitted(decomposition.PCA(svd_solver="covariance_eigh")),
            "torch.pca_lowrank(q=64)": low_rank,
            "sklearn IncrementalPCA": lambda: fitted(decomposition.IncrementalPCA()),
        },
        settings=settings,
        quality=quality,
        limits={"products and one eigh": lambda: (bare_products(array), np.linalg.eigh(exact.numpy()))},
        target="40x IncrementalPCA, 3x covariance_eigh, 2x pca_lowrank",
    )


def compare_covariances(rows: Tensor, exact: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The pass alone: covariance from rows in memory."""
    array, batches = rows.numpy(), ArrayRows(rows)

    def quality(result: Moments | Tensor) -> dict[str, Any]:
        """Relative Frobenius error against float64."""
        found = result.scatter / (result.n_rows - 1) if isinstance(result, Moments) else result
        return {"covariance_error": float(f"{(found - exact).norm() / exact.norm():.2g}")}

    def unshifted() -> Tensor:
        mean = rows.mean(0)
        return (rows.T @ rows - len(rows) * torch.outer(mean, mean)) / (len(rows) - 1)

    return compare(
        "covariance in one pass",
        {
            "eigenloom": lambda: moments_of_rows(batches),
            "torch.cov": lambda: torch.cov(rows.T),
            "numpy.cov (float64)": lambda: torch.from_numpy(np.cov(array, rowvar=False)),
            "torch, unshifted": unshifted,
        },
        settings=settings,
        quality=quality,
        limits={"products": lambda: bare_products(array)},
        target="error < 1e-7; 120k rows/s where sgemm gives 137 GFLOP/s",
    )


def bare_products(array: np.ndarray) -> None:
    """Only the products: numpy's ``x.T @ x``, which is BLAS syrk, block by block."""
    for start in range(0, len(array), BLOCK_ROWS):
        block = array[start : start + BLOCK_ROWS]
        block.T @ block
