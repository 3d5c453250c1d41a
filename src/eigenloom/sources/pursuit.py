"""How spectra are denoised by principal component pursuit: parameters, the matrix that is decomposed, the split.

Spectra are divided by the median of their own errors first, so that the noise is about 1 everywhere and a faint
spectrum cannot pull the low-rank part its way; errors enter the pursuit as weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eigenloom.errors import ConfigError
from eigenloom.linalg.pcp import pcp
from eigenloom.store.hdf5 import Matrix
from eigenloom.store.hdf5_reading import MatrixReader


@dataclass(frozen=True)
class Pursuit:
    """How a survey is denoised.

    Fields: ``lambda_scale``, the weight of the sparse part in units of ``1/sqrt(max(n, m))``; ``threshold``, the least
    ``(flux - L) / sigma`` of a hit; ``positive``, whether hits only add; ``noise``, whether there is a noise term
    (plain pursuit has none); ``rank_guess``, ``max_iter``, ``tol``, ``svd`` as in ``linalg.pcp``.
    """

    lambda_scale: float = 2.0
    threshold: float = 5.0
    positive: bool = True
    noise: bool = True
    rank_guess: int = 50
    max_iter: int = 300
    tol: float = 1e-6
    svd: str = "randomized"

    def __post_init__(self) -> None:
        """Check the values that ``pcp`` does not see.

        Raises:
            ConfigError: a number that is not above 0.
        """
        for name in ("lambda_scale", "threshold"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name}: {getattr(self, name)} is not a positive number")

    def is_hit(self, residual: np.ndarray) -> np.ndarray:
        """Say which residuals in units of sigma are hits; NaN, a bad pixel, is none."""
        with np.errstate(invalid="ignore"):
            return (residual if self.positive else np.abs(residual)) > self.threshold


class Whitened:
    """Spectra minus a median spectrum, over the median error of each, as an array that is read by blocks of rows.

    NaN where the flux is none. With ``weights`` the inverse variances instead, 0 at bad pixels.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, matrix: Matrix, scale: np.ndarray, median: np.ndarray | None):
        """Read ``matrix`` as flux where there is a ``median [m]``, else as errors; ``scale [n]`` divides the flux."""
        self.shape, self._scale, self._median = matrix.shape, scale, median
        self._reader = MatrixReader(matrix)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return whole rows ``[b, m]`` float32."""
        first, stop, _ = rows.indices(self.shape[0])
        values = np.empty((stop - first, self.shape[1]), np.float32)
        self._reader.read(first, values)
        scale = self._scale[first:stop, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self._median is not None:
                values = (values - self._median) / scale
                values[~np.isfinite(values)] = np.nan
                return values
            weights = np.where(values > 0, (scale / values) ** 2, 0).astype(np.float32)
        return np.where(np.isfinite(weights), weights, 0)

    def close(self) -> None:
        """Close the file."""
        self._reader.__exit__(None, None, None)


def decompose_spectra(
    flux: np.ndarray, error: np.ndarray | None, pursuit: Pursuit, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Split spectra in memory as ``denoise_survey`` does.

    Args:
        flux: float32 ``[n, m]``, finite where the error says that a pixel is good.
        error: one sigma of each, ``[n, m]``, or None: the noise is then measured.
        pursuit: how.
        seed: of the solver's starts.

    Returns:
        Low-rank part with the median put back, float32 ``[n, m]``; sigma of every pixel, ``[n, m]``; history of
        ``pcp``.
    """
    good = flux if error is None else np.where(np.isfinite(error) & (error > 0), flux, np.nan)
    median = column_median(good)
    scale = np.ones(len(flux)) if error is None else row_errors(error)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = ((flux - median) / scale[:, None]).astype(np.float32)
        weights = None if error is None else np.where(error > 0, (scale[:, None] / error) ** 2, 0).astype(np.float32)
    low, _, history = pcp(x, **options(pursuit, x.shape, weights, seed))
    low = low * scale[:, None] + median
    sigma = np.full_like(flux, history["noise_std"]) if error is None else error
    return low.astype(np.float32), sigma, history


def options(pursuit: Pursuit, shape: tuple[int, int], weights: Any, seed: int) -> dict[str, Any]:
    """Return the arguments of ``pcp`` after the matrix."""
    noise: dict[str, Any] = {"weights": weights} if weights is not None else {"noise_std": "auto"}
    if not pursuit.noise:
        noise = {}
    same = {name: getattr(pursuit, name) for name in ("rank_guess", "max_iter", "tol", "svd")}
    return {"lambda_": pursuit.lambda_scale / math.sqrt(max(shape)), "verbose": False, "seed": seed, **same, **noise}


def column_median(flux: np.ndarray) -> np.ndarray:
    """Return the median of the finite values of every column, float32 ``[m]``; 0 where there is none."""
    finite = np.isfinite(flux)
    if finite.all():
        return np.median(flux, axis=0).astype(np.float32)
    columns = [column[good] for column, good in zip(flux.T, finite.T, strict=True)]
    return np.array([np.median(column) if len(column) else 0 for column in columns], np.float32)


def row_errors(error: np.ndarray) -> np.ndarray:
    """Return the median error of the good pixels of every spectrum, float64 ``[n]``."""
    good = np.isfinite(error) & (error > 0)
    if good.all():
        return np.median(error, axis=1).astype(np.float64)
    return np.array([np.median(row[keep]) if keep.any() else 1.0 for row, keep in zip(error, good, strict=True)])
