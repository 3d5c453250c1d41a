"""Principal components: one pass of shifted sums, one float64 eigendecomposition, signs that repeat."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT
from eigenloom.bases.projection import Projection, component_count, known_moments, refuse_constant
from eigenloom.batches import Batches
from eigenloom.errors import ConfigError
from eigenloom.linalg.accumulate import BLOCK_ROWS, ShiftedGram
from eigenloom.linalg.eigen import descending_eigh, orient
from eigenloom.moments import moments_of_rows, standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

_FIRST_CHECK = 65_536
_RANK_TOL = 1e-7


@final
@dataclass(frozen=True, eq=False)
class PCA(Projection):
    """Principal components, by descending variance.

    Fields: ``explained_variance [k]`` float64, divisor ``n - 1``; ``total_variance`` of all ``d`` features; ``rank``,
    how many components have more than ``rank_tol`` of the largest variance (null ones are an orthonormal complement,
    whitened to code 0); ``rows_used``, below the number of rows where ``tol`` stopped early; ``spectrum_history
    [h, 1 + m]`` float64: rows read, then the training NMSE at K = 1, 4, 16, ... <= d, whenever the row count had
    doubled and at the end.
    """

    kind: ClassVar[str] = "pca"

    explained_variance: Tensor
    spectrum_history: Tensor
    total_variance: float
    rank: int
    rank_tol: float
    rows_used: int
    whiten: bool

    @classmethod
    def fit(  # type: ignore[override]  # a kind names its own parameters
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        n_components: int | None = None,
        whiten: bool = False,
        tol: float = 0.0,
        rank_tol: float | None = None,
    ) -> Self:
        """Fit to all rows; where their moments are known, without reading them.

        Args:
            batches: rows in the fitted space.
            seed: unused, nothing is random.
            device: where products are formed; the eigendecomposition is on the CPU.
            resume: file for snapshots of the pass.
            progress: bar and spectrum history.
            n_components: how many to keep; None for one per feature.
            whiten: divide codes by their standard deviation.
            tol: 0 reads every row; above, the pass ends once no NMSE of the history moved by more than this between
                two doublings of the row count (from 8 d or 65,536 rows on).
            rank_tol: components with a variance below this share of the largest are null; None for 1e-7, what the
                float32 products of a pass on the CPU can tell from zero.

        Raises:
            ConfigError: ``n_components`` above the features, or a negative ``tol`` or ``rank_tol``.
            DataError: NaN or Inf, fewer rows than components, one row, all features constant.
            Interrupted: a SIGTERM arrived and the state was saved.
        """
        del seed
        n_kept = component_count(batches, n_components)
        rank_tol = _RANK_TOL if rank_tol is None else rank_tol
        if min(tol, rank_tol) < 0:
            raise ConfigError(f"tol: {tol} and rank_tol: {rank_tol} must not be negative")
        standardization = standardization_of(batches)
        carried = {"history": torch.empty(0, 1 + len(_sweep(batches.n_features)), dtype=torch.float64)}

        def watch(gram: ShiftedGram) -> bool:
            """Extend the history at doublings; say whether it has settled."""
            due = max(8 * batches.n_features, _FIRST_CHECK) << len(carried["history"])
            if gram.n_rows < due:
                return False
            if not gram.finite():
                return True
            line = _history_line(gram.n_rows, torch.linalg.eigvalsh(gram.mean_and_scatter()[1]).flip(0))
            carried["history"] = torch.cat([carried["history"], line])
            _log(progress, carried["history"])
            return tol > 0 and len(carried["history"]) > 1 and _settled(carried["history"], tol)

        if (moments := known_moments(batches)) is None:
            identity = {"kind": cls.kind, "standardization": standardization.digest, "block": BLOCK_ROWS, "tol": tol}
            identity |= {"n_rows": batches.n_rows, "n_features": batches.n_features}
            with Snapshots(resume, identity) as snapshots:
                moments = moments_of_rows(
                    batches, device=device, snapshots=snapshots, progress=progress, visit=watch, carried=carried
                )
        refuse_constant(moments)
        spectrum, vectors = descending_eigh(moments.scatter)
        history = carried["history"]
        if not len(history) or history[-1, 0] < moments.n_rows:
            history = torch.cat([history, _history_line(moments.n_rows, spectrum)])
            _log(progress, history)
        variance = spectrum / (moments.n_rows - 1)
        total = variance.sum().item()
        # The raw mean in the fitted scale: that of standardized rows is zero but for rounding, and orients nothing.
        uncentred = moments.mean + standardization.mean / standardization.scale
        return cls(
            standardization=standardization,
            mean=moments.mean.float(),
            components=orient(vectors[:n_kept], uncentred, total).float(),
            explained_variance=variance[:n_kept].clone(),
            spectrum_history=history,
            total_variance=total,
            rank=min(int((variance[:n_kept] > rank_tol * variance[0]).sum()), moments.n_rows - 1),
            rank_tol=rank_tol,
            rows_used=moments.n_rows,
            whiten=whiten,
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[b, k]`` of rows ``[b, d]``; of unit variance, null ones 0, if whitened."""
        z = super().encode(x)
        if not self.whiten:
            return z
        deviations = self._deviations.to(z.device)
        return z * deviations.reciprocal().where(deviations > 0, 0.0)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction ``[b, d]`` of codes ``[b, k]``."""
        return super().decode(z.float() * self._deviations.to(z.device) if self.whiten else z)

    def code_energies(self, z: Tensor) -> Tensor | None:
        """Return ``z^2``, times the variance of the component if whitened."""
        energies = super().code_energies(z)
        if energies is None or not self.whiten:
            return energies
        return energies * self._deviations.to(z.device) ** 2

    @cached_property
    def _deviations(self) -> Tensor:
        """Standard deviations of the codes ``[k]``, 0 for null components."""
        live = torch.arange(self.n_elements) < self.rank
        return self.explained_variance.sqrt().where(live, 0.0).float()


def _sweep(n_features: int) -> list[int]:
    """List K = 1, 4, 16, ... up to the number of features."""
    return [4**i for i in range(n_features.bit_length()) if 4**i <= n_features]


def _history_line(n_rows: int, spectrum: Tensor) -> Tensor:
    """Return ``[1, 1 + m]``: rows read and the share of variance outside the leading K components."""
    total = spectrum.sum().clamp_min(torch.finfo(torch.float64).tiny)
    kept = spectrum.clamp_min(0).cumsum(0)[[k - 1 for k in _sweep(len(spectrum))]]
    return torch.cat([torch.tensor([float(n_rows)], dtype=torch.float64), (1 - kept / total).clamp_min(0)])[None]


def _settled(history: Tensor, tol: float) -> bool:
    """Say whether the last two lines agree to ``tol`` in every NMSE."""
    return bool((history[-1, 1:] - history[-2, 1:]).abs().max() <= tol)


def _log(progress: Progress, history: Tensor) -> None:
    """Report the last line of the history."""
    rows, *nmse = history[-1].tolist()
    names = (f"nmse_{4**i}" for i in range(len(nmse)))
    progress.log("pca", len(history) - 1, rows_used=rows, **dict(zip(names, nmse, strict=True)))
