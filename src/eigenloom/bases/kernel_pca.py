"""Nystrom kernel PCA: components of a kernel's features, spanned by landmarks, fitted to all rows in one pass."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT, Basis, load_basis, save_basis
from eigenloom.bases.kernel_pca_fit import Start, accumulate
from eigenloom.bases.kernel_pca_settings import Settings
from eigenloom.bases.kernel_pca_solve import Solution, solve
from eigenloom.bases.projection import known_moments, refuse_constant
from eigenloom.batches import Batches
from eigenloom.errors import DataError, StoreError
from eigenloom.linalg.accumulate import BLOCK_ROWS, refuse_nonfinite
from eigenloom.linalg.kernels import Kernel, KernelRows, kernel_of
from eigenloom.moments import Standardization, standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

logger = logging.getLogger("eigenloom")


@final
@dataclass(frozen=True, eq=False)
class KernelPCA(Basis):
    """``r`` principal components of the rows' kernel features, within the span of ``m`` landmarks' features.

    A code is ``z = k(x, Z) projection - offset``; a reconstruction, linear in the code, ``mean + z preimage``.
    Components are orthonormal in the feature space, not among rows, so code entries have no energies.

    Fields: ``landmarks [m, d]`` minus ``shift [d]``, ``projection [m, r]`` and ``offset [r]`` in the kernel's dtype;
    ``explained_variance [r]`` float64, variance of each unwhitened code, descending unless ``directions`` are random;
    ``preimage [r, d]`` of unwhitened codes and ``mean [d]``, float32. ``kernel``, ``gamma`` (resolved; 1.0 for linear),
    ``degree``, ``coef0``; ``centering``, ``data`` (codes of the fitted rows have mean zero) or ``landmarks`` (imported
    states: those of the landmarks have); ``rank``, the number of components; ``total_variance`` within the landmarks'
    span; ``landmark_residual``, the share of the rows' mean squared feature norm outside it; ``parameters``, what was
    asked for.
    """

    kind: ClassVar[str] = "kernel_pca"
    geometry: ClassVar[str] = "projection"

    landmarks: Tensor
    shift: Tensor
    projection: Tensor
    offset: Tensor
    explained_variance: Tensor
    preimage: Tensor
    mean: Tensor
    kernel: str
    gamma: float
    degree: int
    coef0: float
    centering: str
    rank: int
    total_variance: float
    landmark_residual: float
    whiten: bool
    parameters: dict[str, Any]

    @classmethod
    def fit(
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        **parameters: Any,
    ) -> Self:
        """Fit to all rows in one pass once landmarks are drawn; see ``Basis.fit`` and, for parameters, ``Settings``.

        Memory is that of a block of rows and of kernel rows, of ``m^2 + m d`` sums and, while landmarks are drawn, of
        their pool. ``2 n m d`` operations for the kernel, ``n m^2`` for the covariance, ``2 n m d`` for the decoder
        (none with ``preimage="landmarks"``), two eigendecompositions of order ``m``.

        Raises:
            DataError: NaN or Inf, fewer rows than landmarks, one row, all features constant, a kernel that overflows.
            ConfigError: a parameter is unknown, out of range, or asks for more components than landmarks.
            Interrupted: a SIGTERM arrived and the state was saved.
        """
        settings, standardization = Settings.parse(parameters), standardization_of(batches)
        settings.landmark_count(batches)
        if (moments := known_moments(batches)) is not None:
            if moments.n_nonfinite:
                refuse_nonfinite(batches)
            refuse_constant(moments)
        identity = {
            "kind": cls.kind,
            "seed": seed,
            "parameters": settings.as_parameters(),
            "rows": [batches.n_rows, batches.n_features],
            "standardization": standardization.digest,
            "block": BLOCK_ROWS,
        }
        with Snapshots(resume, identity) as snapshots:
            begin, sums = accumulate(batches, settings, seed, torch.device(device), snapshots, progress)
        kernel = kernel_of(settings.kernel, begin.gamma, settings.degree, settings.coef0)
        solution = solve(begin, sums, kernel, settings, seed)
        captured = float(solution.explained_variance.sum()) / solution.total_variance
        progress.log(
            "kernel_pca", 0, rank=solution.rank, gamma=begin.gamma, landmark_residual=solution.landmark_residual,
            captured=captured,
        )  # fmt: skip
        asked = {"seed": seed, "landmarks": len(begin.landmarks), **settings.as_parameters()}
        return cls.assembled(standardization, begin, solution, settings, "data", asked)

    @classmethod
    def assembled(
        cls,
        standardization: Standardization,
        begin: Start,
        solution: Solution,
        settings: Settings,
        centering: str,
        asked: Mapping[str, Any],
    ) -> Self:
        """Put a solution into its dtypes."""
        return cls(
            standardization=standardization,
            landmarks=begin.landmarks,
            shift=begin.shift,
            projection=solution.projection.to(begin.landmarks.dtype).contiguous(),
            offset=solution.offset.to(begin.landmarks.dtype),
            explained_variance=solution.explained_variance,
            preimage=solution.preimage.float().contiguous(),
            mean=solution.mean.float(),
            kernel=settings.kernel,
            gamma=begin.gamma,
            degree=settings.degree,
            coef0=settings.coef0,
            centering=centering,
            rank=solution.rank,
            total_variance=solution.total_variance,
            landmark_residual=solution.landmark_residual,
            whiten=settings.whiten,
            parameters=dict(asked),
        )

    @classmethod
    def load(cls, path: str | Path, *, gamma: float | None = None) -> Self:
        """Load one from a ``.safetensors`` file, an artifact, or a ``.pt`` state of other code.

        Args:
            path: of any of them.
            gamma: for a ``.pt`` file of an rbf kernel that does not hold its own.

        Raises:
            StoreError: the file is damaged or holds something else.
            ConfigError: a ``.pt`` file of an rbf kernel without gamma.
        """
        if Path(path).suffix == ".pt":
            from eigenloom.bases.kernel_pca_import import import_kernel_pca

            return import_kernel_pca(path, gamma=gamma)
        basis = load_basis(path)
        if not isinstance(basis, cls):
            raise StoreError(f"{path}: is a {basis.kind!r}, where a {cls.kind!r} is needed; use load_basis")
        return basis

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, or an artifact's directory; see ``save_basis``."""
        save_basis(self, path)

    @property
    def n_elements(self) -> int:
        """Number of components."""
        return self.projection.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Return codes ``[b, r]`` of rows ``[b, d]``, of unit variance if whitened; each depends on its row alone.

        Raises:
            DataError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"rows of shape {tuple(x.shape)} cannot be encoded: this basis takes [b, {self.n_features}]"
            )
        rows, projection, offset = self._on(x.device)
        z = projection.new_empty(len(x), self.n_elements)
        done = 0
        for kernel_rows in rows.pieces(x.float()):
            torch.addmm(offset, kernel_rows, projection, beta=-1, out=z[done : done + len(kernel_rows)])
            done += len(kernel_rows)
        return z.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return ``mean + z preimage``, ``[b, d]``: a ridge estimate of the rows from their codes, no exact pre-image.

        Raises:
            DataError: codes of another width.
        """
        if z.ndim != 2 or z.shape[1] != self.n_elements:
            raise DataError(f"codes of shape {tuple(z.shape)} cannot be decoded: this basis has [b, {self.n_elements}]")
        back = self.preimage.to(z.device)
        if self.whiten:
            back = back * self._deviations.float().to(z.device)[:, None]
        return self.mean.to(z.device) + z.float() @ back

    @property
    def kernel_function(self) -> Kernel:
        """The kernel itself, for rows in the fitted space."""
        return kernel_of(self.kernel, self.gamma, self.degree, self.coef0)

    @cached_property
    def _deviations(self) -> Tensor:
        """Standard deviations of the unwhitened codes ``[r]`` float64."""
        return self.explained_variance.sqrt()

    @cached_property
    def _prepared(self) -> dict[torch.device, tuple[KernelRows, Tensor, Tensor]]:
        """What each device that has asked needs to encode."""
        return {}

    def _on(self, device: torch.device) -> tuple[KernelRows, Tensor, Tensor]:
        """Return kernel rows, projection and offset on a device, whitening folded in."""
        if device not in self._prepared:
            scale = self._deviations.reciprocal() if self.whiten else torch.ones_like(self._deviations)
            projection, offset = (tensor.double() * scale for tensor in (self.projection, self.offset))
            rows = KernelRows(self.kernel_function, self.landmarks.to(device), self.shift.to(device))
            dtype = self.landmarks.dtype
            self._prepared[device] = rows, projection.to(device, dtype), offset.to(device, dtype)
        return self._prepared[device]
