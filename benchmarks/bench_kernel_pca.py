"""Nystrom kernel PCA beside scikit-learn's Nystroem + PCA: fit and transform, with the variance that each captures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from bench_pca import activation_like
from harness import compare
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from torch import Tensor

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.linalg.kernels import kernel_of, kernel_reference, median_gamma
from eigenloom.sources.arrays import ArrayRows

SOLVERS = ("covariance_eigh", "randomized", "full")


def run(full: bool) -> list[dict[str, Any]]:
    """Compare the fit and the transform at one shape."""
    n, d, m, r = (20_000, 1024, 1024, 64) if full else (8192, 256, 512, 32)
    rows = activation_like(n + n // 4, d)
    rows, held_out = rows[:n].contiguous(), rows[n:].contiguous()
    gamma = median_gamma(rows[:2048])
    settings = {
        "n": n, "d": d, "landmarks": m, "r": r, "dtype": "float32", "kernel": "rbf", "gamma": float(f"{gamma:.4g}"),
        "data": "power-law spectrum, 8 features with a mean of ten sigma",
    }  # fmt: skip
    parameters = {"n_components": r, "n_landmarks": m, "gamma": gamma}
    return [
        compare_fits(rows, held_out, parameters, settings),
        compare_transforms(rows, held_out, parameters, settings),
    ]


def ours(rows: Tensor, parameters: Mapping[str, Any], **more: Any) -> KernelPCA:
    """Fit with uniform landmarks, which is how scikit-learn draws its own."""
    return KernelPCA.fit(ArrayRows(rows), seed=0, **{**parameters, "landmark_choice": "uniform", **more})


def theirs(rows: np.ndarray, parameters: Mapping[str, Any], solver: str) -> tuple[Nystroem, PCA]:
    """Fit scikit-learn's two steps."""
    features = Nystroem(gamma=parameters["gamma"], n_components=parameters["n_landmarks"], random_state=0)
    pca = PCA(parameters["n_components"], svd_solver=solver, random_state=0)
    pca.fit(features.fit_transform(rows))
    return features, pca


def compare_fits(
    rows: Tensor, held_out: Tensor, parameters: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """From rows in memory to components; ours includes a decoder to the rows, which no peer has."""
    array = rows.numpy()

    def quality(result: KernelPCA | tuple[Nystroem, PCA]) -> dict[str, Any]:
        """Variance of the codes, as told for the fitted rows and as measured on others; the decoder's error."""
        if isinstance(result, KernelPCA):
            z = result.encode(held_out)
            error = (result.decode(z) - held_out).square().sum() / (held_out - rows.mean(0)).square().sum()
            told = float(result.explained_variance.sum())
            return {**_captured(told, z), "decoder_nmse": float(f"{error:.4g}")}
        features, pca = result
        return _captured(pca.explained_variance_.sum(), pca.transform(features.transform(held_out.numpy())))

    peers = {
        "eigenloom": lambda: ours(rows, parameters),
        "eigenloom, decoder from landmarks": lambda: ours(rows, parameters, preimage="landmarks"),
        "eigenloom, rpcholesky landmarks": lambda: ours(rows, parameters, landmark_choice="rpcholesky"),
    }
    for solver in SOLVERS:
        peers[f"sklearn Nystroem + PCA({solver})"] = lambda solver=solver: theirs(array, parameters, solver)
    landmarks = rows[: parameters["n_landmarks"]]
    return compare(
        "Nystrom kernel PCA, fit",
        peers,
        settings=settings,
        quality=quality,
        limits={"kernel and covariance products, exp, one eigh": lambda: bare_fit(array, landmarks.numpy())},
        target="3.2x covariance_eigh without decoder, captured variance >= theirs - 1e-4",
    )


def compare_transforms(
    rows: Tensor, held_out: Tensor, parameters: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """From the fitted rows, in memory, to codes."""
    array = rows.numpy()
    basis = ours(rows, parameters)
    features, pca = theirs(array, parameters, SOLVERS[0])
    reference = ours(rows, {**parameters, "kernel_dtype": "float64"})
    exact = reference.encode(rows[:2000]).double()
    del held_out

    def quality(codes: Tensor | np.ndarray) -> dict[str, Any]:
        """For ours, the largest difference from codes made in float64 by the same landmarks."""
        if not isinstance(codes, Tensor):
            return {}
        # The same landmarks, another rounding of the fit: compare projections of the kernel rows, not eigenvectors.
        kernel = kernel_of("rbf", basis.gamma)
        values = kernel_reference(kernel, rows[:2000].double() - basis.shift.double(), basis.landmarks.double())
        expected = values @ basis.projection.double() - basis.offset.double()
        worst = (codes[:2000].double() - expected).abs().max() / exact.abs().max()
        return {"error": float(f"{worst:.2g}")}

    landmarks = rows[: parameters["n_landmarks"]].numpy()
    return compare(
        "Nystrom kernel PCA, transform",
        {
            "eigenloom": lambda: basis.encode(rows),
            "sklearn Nystroem + PCA": lambda: pca.transform(features.transform(array)),
        },
        settings=settings,
        quality=quality,
        limits={"kernel products and exp": lambda: bare_kernel(array, landmarks)},
        target="4.6x",
    )


def _captured(told: float, codes: Any) -> dict[str, Any]:
    """Round both variances."""
    measured = float(torch.as_tensor(np.asarray(codes)).double().var(0).sum())
    return {"captured": round(float(told), 6), "captured_held_out": round(measured, 6)}


def bare_kernel(array: np.ndarray, landmarks: np.ndarray) -> None:
    """Only the products and exponentials, block by block."""
    for start in range(0, len(array), 4096):
        np.exp(array[start : start + 4096] @ landmarks.T * np.float32(-1e-3))


def bare_fit(array: np.ndarray, landmarks: np.ndarray) -> None:
    """The unavoidable work of a fit without decoder: kernel rows, ``x.T @ x`` of them, one eigendecomposition."""
    products = np.zeros((len(landmarks), len(landmarks)))
    for start in range(0, len(array), 4096):
        block = np.exp(array[start : start + 4096] @ landmarks.T * np.float32(-1e-3))
        products += block.T @ block
    np.linalg.eigh(products)
