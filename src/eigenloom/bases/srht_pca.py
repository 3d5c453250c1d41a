"""Principal components of rows of any length: exact where rows or features are few, sketched by an SRHT beyond."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT, Basis, MemoryMapped
from eigenloom.bases.projection import component_count
from eigenloom.bases.srht_methods import DUAL_ROWS, ORTHONORMAL, Fields, Request, fit_covariance, fit_dual, fit_srht
from eigenloom.batches import Batches, ColumnBlocks
from eigenloom.errors import ConfigError, DataError
from eigenloom.moments import standardization_of
from eigenloom.progress import Progress

FITS: dict[str, Callable[..., Fields]] = {"dual": fit_dual, "covariance": fit_covariance, "srht": fit_srht}
COVARIANCE_FEATURES = 8192
_HELD_BYTES = 1 << 30
_STREAMED = 1 << 22


@final
@dataclass(frozen=True, eq=False)
class SRHTPCA(Basis):
    """Principal components ``W`` of rows that may have millions of features.

    Fields: ``components [D, k]`` (orthonormal *columns*) and ``mean [D]``, float32, mapped where they are files;
    ``explained_variance [k]`` float64, divisor ``n - 1``; ``scores [n, k]`` float32, the codes of the fitted rows;
    ``norms``, ``centred_norms`` and ``residuals`` ``[n]`` float64: of each fitted row ``||x||``, ``||x - mean||`` and
    ``||x - decode(encode(x))||``; these four have no rows under ``covariance``, which reads rows once.
    ``total_variance`` of all D features; ``method``, as resolved; ``orthonormality_error``, the largest entry of
    ``W^T W - I``; ``sketch_width``, 0 where nothing was sketched; ``seed``, of the sketch.
    """

    kind: ClassVar[str] = "srht_pca"
    geometry: ClassVar[str] = "projection"

    components: MemoryMapped
    mean: MemoryMapped
    explained_variance: Tensor
    scores: Tensor
    norms: Tensor
    centred_norms: Tensor
    residuals: Tensor
    total_variance: float
    method: str
    orthonormality_error: float
    sketch_width: int
    seed: int

    @classmethod
    def fit(  # type: ignore[override]  # a kind names its own parameters
        cls,
        batches: Batches | ColumnBlocks,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        n_components: int = 64,
        method: str = "auto",
        block_size: int = 1 << 18,
        r_factor: float = 4.0,
        power_iter: int = 1,
        components_out: Path | None = None,
    ) -> Self:
        """Fit by the method that suits the shape.

        Args:
            batches: rows in the fitted space, or the columns of few long rows.
            seed: of the sketch; the exact methods draw nothing.
            device: where large products are formed.
            resume: file for snapshots.
            progress: bars.
            n_components: how many; at most rows - 1.
            method: ``dual``, exact, from the products of all pairs of rows (up to 1024 rows); ``covariance``, exact,
                from the moments (up to 8192 features); ``srht``, sketched; ``auto``, the first of these that fits.
            block_size: columns per block of the sketch, a power of two, and the most that are read at once.
            r_factor: the sketch has ``max(r_factor k, k + 16)`` numbers per row.
            power_iter: rounds that refine what the sketch found.
            components_out: write ``W`` to this ``.npy`` file, and the mean to ``mean.npy`` beside it, while fitting, so
                that memory does not grow with D; None keeps both in memory.

        Raises:
            ConfigError: a parameter is out of range.
            DataError: NaN or Inf, fewer rows than ``n_components + 1``, rows that do not span as many directions.
            Interrupted: a SIGTERM arrived and the state was saved.
        """
        component_count(batches, n_components)
        if method not in ("auto", *FITS):
            raise ConfigError(f"method: {method!r} is unknown; use one of auto, {', '.join(FITS)}")
        if block_size < 1 or block_size & (block_size - 1):
            raise ConfigError(f"block_size: {block_size} is not a power of two")
        if r_factor < 1 or power_iter < 0:
            raise ConfigError(f"r_factor: {r_factor} must be at least 1 and power_iter: {power_iter} at least 0")
        if n_components > batches.n_rows - 1:
            raise DataError(
                f"{batches.n_rows} rows span at most {batches.n_rows - 1} directions about their mean, fewer than "
                f"n_components: {n_components}; lower it or add rows"
            )
        request = Request(
            n_components, seed, device, resume, progress, block_size, r_factor, power_iter, components_out
        )
        fitted = FITS[_resolved(method, batches)](batches, request)
        return cls(standardization=standardization_of(batches), seed=seed, **fitted)

    @property
    def n_elements(self) -> int:
        """Number of components."""
        return self.components.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Return the scores ``[b, k]`` of rows ``[b, D]``, streamed over D."""
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"rows of shape {tuple(x.shape)} cannot be encoded: this basis takes [b, {self.n_features}]"
            )
        total = torch.zeros(len(x), self.n_elements, dtype=torch.float64, device=x.device)
        for first, mean, rows in self._ranges(x.device):
            total += (x[:, first : first + len(rows)].float() - mean) @ rows
        return total.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return ``mean + W z``, ``[b, D]``, of scores ``[b, k]``, streamed over D."""
        if z.ndim != 2 or z.shape[1] != self.n_elements:
            raise DataError(f"codes of shape {tuple(z.shape)} cannot be decoded: this basis has [b, {self.n_elements}]")
        out = torch.empty(len(z), self.n_features, device=z.device)
        for first, mean, rows in self._ranges(z.device):
            torch.addmm(mean, z.float(), rows.T, out=out[:, first : first + len(rows)])
        return out

    def code_energies(self, z: Tensor) -> Tensor | None:
        """Return ``z^2``: what each entry of ``[b, k]`` takes off the squared error; None if not orthonormal."""
        return z.float() ** 2 if self.orthonormality_error <= ORTHONORMAL else None

    def _ranges(self, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield position, mean ``[c]`` and components ``[c, k]`` of ranges of features."""
        size = max(1, _STREAMED // self.n_elements)
        for first in range(0, self.n_features, size):
            part = slice(first, first + size)
            yield first, self.mean[part].to(device), self.components[part].to(device)


def _resolved(method: str, batches: Batches | ColumnBlocks) -> str:
    """Return the method itself, or for ``auto`` the first that suits the shape.

    Raises:
        ConfigError: a method was asked for that these rows cannot be given to.
    """
    by_rows, by_columns = isinstance(batches, Batches), isinstance(batches, ColumnBlocks)
    fits_memory = 4 * batches.n_rows * batches.n_features <= _HELD_BYTES
    if method == "auto":
        if batches.n_rows <= DUAL_ROWS and (by_columns or fits_memory):
            return "dual"
        return "covariance" if by_rows and batches.n_features <= COVARIANCE_FEATURES else "srht"
    if method == "covariance" and not by_rows:
        raise ConfigError("method: covariance walks over rows, and this source offers columns only; use dual or srht")
    if method == "dual" and not (by_columns or fits_memory):
        raise ConfigError(
            f"method: dual needs the columns of all rows at once: {batches.n_rows} rows of {batches.n_features} "
            "numbers that come as a stream of rows do not fit into memory; use srht, or a source that offers columns"
        )
    return method
