"""Kernel PCA states of another program's script: a ``.pt`` dictionary, never unpickled beyond plain tensors.

Such a state holds kernel PCA *of its landmarks*, extended to other rows: ``z = (k - mean(k) - c + kappa) A0`` with
``c`` the row means of the landmarks' kernel matrix and ``kappa`` their mean. That is ``k A - b`` with ``A = A0 - 1
(1^T A0) / m`` and ``b = c^T A0 - kappa 1^T A0``.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.kernel_pca_fit import Start, shifted
from eigenloom.bases.kernel_pca_settings import Settings
from eigenloom.bases.kernel_pca_solve import Solution, ridge_map
from eigenloom.batches import Batches
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.linalg.accumulate import exact_mean
from eigenloom.linalg.kernels import KERNELS, Kernel, KernelRows, kernel_of, kernel_reference
from eigenloom.moments import Standardization
from eigenloom.sources.arrays import ArrayRows
from eigenloom.store.plain_tensors import load_plain_tensors

logger = logging.getLogger("eigenloom")
KEYS = ("landmarks", "A", "row_means", "K_mean", "kernel_name", "gamma", "degree", "coef0", "r")
AGREEMENT = 1e-2
"""Largest difference of stored and recomputed row means, relative to the largest: unshifted float32 is no better."""


def import_kernel_pca(
    path: str | Path, *, gamma: float | None = None, rows: Batches | None = None, ridge: float = 1e-6
) -> KernelPCA:
    """Convert a ``.pt`` state with the keys of ``KEYS``.

    Its features, columns by falling eigenvalue, are kept as they are; ``centering`` is ``landmarks``. Eigenvalues are
    recovered from ``|A0_j|^2 = 1 / eigenvalue_j`` and told as variances of the landmarks' codes. The decoder, which the
    state lacks, is fitted to ``rows``, or to the landmarks, which are data.

    Args:
        path: of the file.
        gamma: of an rbf state that holds none.
        rows: in the units the state was fitted in.
        ridge: of the decoder, relative to the largest variance.

    Raises:
        StoreError: the file is missing, no dictionary of plain tensors and numbers, or lacks a key.
        ConfigError: rbf without gamma, a kernel that is unknown.
        MismatchError: shapes that do not fit, or row means that are not those of the kernel that is told.
    """
    state = load_plain_tensors(path)
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise StoreError(f"{path}: lacks {', '.join(missing)}; a kernel PCA state holds {', '.join(KEYS)}")
    kernel, parameters = _kernel(path, state, gamma)
    points, coefficients, means = (_tensor(path, state, key) for key in ("landmarks", "A", "row_means"))
    kappa, m = float(_tensor(path, state, "K_mean")), len(points)
    if points.ndim != 2 or coefficients.ndim != 2 or len(coefficients) != m or means.numel() != m:
        raise MismatchError(
            f"{path}: landmarks {list(points.shape)}, A {list(coefficients.shape)} and row_means {list(means.shape)} "
            "do not belong together; save the state again"
        )
    matrix = kernel_reference(kernel, points, points)
    _check_means(path, means.flatten(), matrix.mean(0), parameters)
    order = coefficients.square().sum(0).argsort(stable=True)
    coefficients = coefficients[:, order]
    totals = coefficients.sum(0)
    projection, offset = coefficients - totals / m, means.flatten() @ coefficients - kappa * totals
    variances = 1 / coefficients.square().sum(0) / max(m - 1, 1)
    begin = Start(parameters["gamma"], *shifted(kernel, points.float()))
    mean, preimage = _decoder(begin, kernel, projection, offset, rows or ArrayRows(points.float()), ridge)
    centred_trace = float(matrix.trace() - m * matrix.mean())
    solution = Solution(
        projection=projection,
        offset=offset,
        explained_variance=variances,
        preimage=preimage,
        mean=mean,
        total_variance=centred_trace / max(m - 1, 1),
        landmark_residual=0.0,
        rank=projection.shape[1],
    )
    settings = Settings.parse({**parameters, "n_components": solution.rank, "ridge": ridge})
    asked = {
        **settings.as_parameters(),
        "imported": Path(path).name,
        "preimage": "landmarks" if rows is None else "rows",
    }
    standardization = Standardization.identity(points.shape[1])
    return KernelPCA.assembled(standardization, begin, solution, settings, "landmarks", asked)


def _kernel(path: str | Path, state: Mapping[str, Any], gamma: float | None) -> tuple[Kernel, dict[str, Any]]:
    """Return the kernel of a state and its parameters."""
    name, stored = str(state["kernel_name"]), state["gamma"]
    width = state["landmarks"].shape[-1] if isinstance(state["landmarks"], Tensor) else 1
    if name not in KERNELS:
        raise ConfigError(f"{path}: kernel {name!r} is unknown; this eigenloom has {', '.join(KERNELS)}")
    if stored is not None and gamma is not None and not abs(float(stored) - gamma) <= 1e-6 * gamma:
        raise MismatchError(f"{path}: holds gamma {float(stored):.8g}, but {gamma:.8g} was given; leave it out")
    if stored is None and gamma is None and name == "rbf":
        raise ConfigError(
            f"{path}: an rbf state with gamma None was fitted with a scale that it does not hold and that changed with "
            "every batch; give the one of its landmarks with --gamma (or load(path, gamma=...))"
        )
    found = float(stored) if stored is not None else gamma
    if found is None or name == "linear":
        found = 1 / width if name == "poly" else 1.0
    degree, coef0 = int(state["degree"] or 3), float(1.0 if state["coef0"] is None else state["coef0"])
    parameters = {"kernel": name, "gamma": found, "degree": degree, "coef0": coef0}
    return kernel_of(name, found, degree, coef0), parameters


def _tensor(path: str | Path, state: Mapping[str, Any], key: str) -> Tensor:
    """Return an entry as float64.

    Raises:
        StoreError: it is no number, or not finite.
    """
    value = state[key]
    tensor = value if isinstance(value, Tensor) else torch.tensor(value) if isinstance(value, int | float) else None
    if tensor is None or not torch.isfinite(tensor.double()).all():
        raise StoreError(f"{path}: {key} is no finite tensor; save the state again")
    return tensor.detach().double()


def _check_means(path: str | Path, stored: Tensor, found: Tensor, parameters: Mapping[str, Any]) -> None:
    """Refuse a kernel that did not make the state's own row means, above all another gamma."""
    if (stored - found).abs().max() > AGREEMENT * found.abs().max():
        told = ", ".join(f"{key} {value}" for key, value in parameters.items())
        raise MismatchError(
            f"{path}: its row_means, {stored.mean():.6g} on average, are not those of its landmarks under {told}, "
            f"{found.mean():.6g}; give the gamma that it was made with"
        )


def _decoder(
    begin: Start, kernel: Kernel, projection: Tensor, offset: Tensor, rows: Batches, ridge: float
) -> tuple[Tensor, Tensor]:
    """Fit ``x = mean + z preimage`` to rows in one pass; return ``mean [d]`` and ``preimage [r, d]``, float64."""
    kernel_rows = KernelRows(kernel, begin.landmarks, begin.shift)
    r, d = projection.shape[1], rows.n_features
    origin, sums_z, sums_x = None, torch.zeros(r, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    squares, cross = torch.zeros(r, r, dtype=torch.float64), torch.zeros(r, d, dtype=torch.float64)
    for batch in rows:
        origin = exact_mean(batch).double() if origin is None else origin
        z, x = kernel_rows(batch.float()).double() @ projection - offset, batch.double() - origin
        sums_z, sums_x, squares, cross = sums_z + z.sum(0), sums_x + x.sum(0), squares + z.T @ z, cross + z.T @ x
    n = rows.n_rows
    covariance, mixed = squares - torch.outer(sums_z, sums_z) / n, cross - torch.outer(sums_z, sums_x) / n
    preimage = ridge_map(covariance, mixed, ridge * float(covariance.diagonal().max()))
    assert origin is not None
    return origin + sums_x / n - (sums_z / n) @ preimage, preimage
