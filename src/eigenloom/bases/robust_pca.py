"""Robust principal components: directions of the low-rank part that principal component pursuit finds."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT
from eigenloom.bases.projection import Projection, component_count, known_moments, refuse_constant
from eigenloom.batches import Batches, generator
from eigenloom.errors import ConfigError, DataError
from eigenloom.linalg.accumulate import BLOCK_ROWS
from eigenloom.linalg.eigen import orient
from eigenloom.linalg.pcp_noise import noise_level
from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_solver import Settings, Solution, decompose
from eigenloom.linalg.pcp_store import InMemory
from eigenloom.moments import moments_of_rows, standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

logger = logging.getLogger("eigenloom")
_HUBER = 1.345
"""Deviations up to which a residual counts fully: 95 % efficiency where there are no spikes (Huber 1981)."""
_NORMAL = 1.4826
_WEIGHED_ROWS = 64


@final
@dataclass(frozen=True, eq=False)
class RobustPCA(Projection):
    """Leading right singular vectors of the low-rank part of sampled rows, by descending singular value.

    Fields: ``mean [d]`` is the column *median* of the sampled rows; ``singular_values [k]`` float64 are those of the
    low-rank part, whose ``rank`` bounds k. From the pursuit (``linalg.pcp``): ``status``, the relative duality ``gap``
    at the end, ``noise_std``, ``lambda_``, ``residual_history [iterations, 2]`` float64, primal and dual,
    ``rank_history`` int64, ``gap_history [checks, 2]`` float64, iteration and gap. ``robust_iter`` reweightings make a
    code.
    """

    kind: ClassVar[str] = "robust_pca"

    singular_values: Tensor
    residual_history: Tensor
    rank_history: Tensor
    gap_history: Tensor
    rank: int
    status: str
    gap: float
    noise_std: float
    lambda_: float
    rows_used: int
    robust_iter: int
    seed: int

    @classmethod
    def fit(  # type: ignore[override]  # a kind names its own parameters
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        n_components: int = 64,
        rank_guess: int | None = None,
        lambda_: float | None = None,
        tol: float = 1e-6,
        gap_tol: float = 1e-3,
        max_iter: int = 500,
        sample_rows: int = 20_000,
        noise_std: float | str = "auto",
        robust_iter: int = 0,
    ) -> Self:
        """Decompose seeded rows, held in memory with one array of their size beside them.

        Args:
            batches: rows in the fitted space.
            seed: of the sample and the solver's starts.
            device: where the decomposition runs.
            resume: file for snapshots.
            progress: bar of the check of all rows, and a line per iteration.
            n_components: most directions kept; never more than the low-rank part has.
            rank_guess: columns the solver starts with, and the rank beside which noise is measured; None for
                ``n_components``.
            lambda_: weight of the sparse part; None for ``1/sqrt(max(rows, d))``.
            tol: largest primal residual to stop at.
            gap_tol: largest relative duality gap that counts as solved.
            max_iter: most iterations.
            sample_rows: how many rows are decomposed, at most all.
            noise_std: standard deviation of dense noise, 0 for none; ``auto`` measures it. It bounds the rank.
            robust_iter: Huber reweightings of each row's code; 0 projects.

        Raises:
            ConfigError: a parameter out of range.
            DataError: NaN or Inf, fewer rows than components, one row, all features constant, or nothing of low rank.
            Interrupted: a SIGTERM arrived and the state was saved.
        """
        n_kept = component_count(batches, n_components)
        _check(sample_rows, robust_iter, noise_std)
        if sample_rows < n_kept:
            raise ConfigError(f"sample_rows: {sample_rows} rows cannot carry n_components: {n_kept}")
        settings = Settings(
            tol=tol,
            gap_tol=gap_tol,
            max_iter=max_iter,
            seed=seed,
            rank_guess=n_kept if rank_guess is None else rank_guess,
        )
        standardization = standardization_of(batches)
        identity = {"kind": cls.kind, "standardization": standardization.digest, "block": BLOCK_ROWS}
        identity |= {"n_rows": batches.n_rows, "n_features": batches.n_features, "settings": vars(settings)}
        identity |= {"lambda_": lambda_, "sample_rows": sample_rows, "noise_std": noise_std}
        with Snapshots(resume, identity) as snapshots:
            unfinished = _Unfinished(snapshots)
            if unfinished.saved is None:
                moments = known_moments(batches)
                if moments is None:
                    moments = moments_of_rows(batches, device=device, snapshots=snapshots, progress=progress)
                refuse_constant(moments)
            rows = batches.sample(min(sample_rows, batches.n_rows), generator(seed, "reservoir"))
            centre = rows.median(0).values
            rows -= centre
            # A feature that never leaves its median has no part in any direction, not even by rounding.
            live = rows.any(0).nonzero().squeeze(1)
            home = "cpu" if torch.device(device).type == "mps" else device  # which has no float64
            solution = _pursuit(rows[:, live].to(home), settings, lambda_, noise_std, unfinished, progress)
        low_rank, course = solution.low_rank, solution.course
        found = len(low_rank.values)
        if not found:
            noise = solution.recursion.problem.noise
            raise DataError(
                f"nothing of low rank stands out of {len(rows)} rows with noise_std {noise:.3g}; set noise_std: 0 or a "
                "smaller one"
            )
        if found < n_kept:
            logger.info("robust_pca: the low-rank part has rank %d, so %d of %d directions", found, found, n_kept)
        directions = torch.zeros(min(found, n_kept), batches.n_features, dtype=torch.float64)
        directions[:, live] = _directions(solution)[:n_kept]
        uncentred = centre.double() + standardization.mean / standardization.scale
        total = float(rows.double().square().sum()) / max(len(rows) - 1, 1)
        lines = torch.tensor(course.lines, dtype=torch.float64).reshape(-1, 5)
        return cls(
            standardization=standardization,
            mean=centre,
            components=orient(directions, uncentred, total).float(),
            singular_values=low_rank.values[:n_kept].clone(),
            residual_history=lines[:, :2].contiguous(),
            rank_history=lines[:, 2].to(torch.int64),
            gap_history=torch.tensor(course.gaps, dtype=torch.float64).reshape(-1, 2),
            rank=found,
            status=course.status,
            gap=course.gaps[-1][1],
            noise_std=solution.recursion.problem.noise,
            lambda_=solution.recursion.problem.lambda_,
            rows_used=len(rows),
            robust_iter=robust_iter,
            seed=seed,
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[b, k]`` of rows ``[b, d]`` about the median, reweighted ``robust_iter`` times."""
        z = super().encode(x)
        if not self.robust_iter:
            return z
        centred, directions = x.double() - self.mean.to(x.device), self.components.to(x.device, torch.float64)
        pairs = zip(z.double().split(_WEIGHED_ROWS), centred.split(_WEIGHED_ROWS), strict=True)
        return torch.cat([self._reweighted(part, rows, directions) for part, rows in pairs]).float()

    def code_energies(self, z: Tensor) -> Tensor | None:
        """Return ``z^2``; None where codes are reweighted and thus no orthogonal projections."""
        return None if self.robust_iter else super().code_energies(z)

    def _reweighted(self, z: Tensor, centred: Tensor, directions: Tensor) -> Tensor:
        """Improve codes ``[b, k]`` of ``centred [b, d]``, float64: residuals count squared to a bound, then linearly.

        The bound is 1.345 times the noise of the fit, or where that is 0 of the row's own residuals. Each step solves
        the weighted least-squares problem that Huber's estimate of the code would have were the weights final.
        """
        ridge = 1e-12 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        for _ in range(self.robust_iter):
            sizes = (centred - z @ directions).abs()
            noise = sizes.median(1, keepdim=True).values * _NORMAL if self.noise_std == 0 else self.noise_std
            bound = torch.as_tensor(_HUBER * noise, dtype=z.dtype, device=z.device)
            weights = torch.where(sizes <= bound, 1.0, bound / sizes.clamp_min(1e-300))
            weighted = weights[:, None] * directions
            z = torch.linalg.solve(weighted @ directions.T + ridge, torch.bmm(weighted, centred[..., None]).squeeze(-1))
        return z


class _Unfinished:
    """The fit's snapshots as the pursuit sees them: without those of the check that comes before it."""

    def __init__(self, snapshots: Snapshots):
        self._snapshots = snapshots
        saved = snapshots.load()
        self.saved = saved if saved is not None and "lines" in saved[1] else None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the pursuit's state, if it had begun."""
        return self.saved

    def due(self) -> bool:
        """Say whether ``tick`` would save now."""
        return self._snapshots.due()

    def tick(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save."""
        self._snapshots.tick(tensors, position)


def _pursuit(
    rows: Tensor,
    settings: Settings,
    lambda_: float | None,
    noise_std: float | str,
    unfinished: _Unfinished,
    progress: Progress,
) -> Solution:
    """Run ``pcp`` on centred rows ``[n, d]``."""
    problem = Problem(rows, mask=None, weights=None, noise_std=noise_std, dtype=torch.float32, lambda_=lambda_)
    problem.measure()
    if problem.automatic:
        problem.noise = noise_level(problem, settings.rank_guess, settings.seed)
    panel = InMemory(problem.shape, problem.dtype, problem.device)
    solution = decompose(
        problem, settings, panel, unfinished, lambda step, line: progress.log("robust_pca", step, **line)
    )
    logger.log(
        logging.INFO if solution.course.status == "converged" else logging.WARNING,
        "robust_pca: %s after %d iterations, relative duality gap %.2g",
        solution.course.status, len(solution.course.lines), solution.course.gaps[-1][1],
    )  # fmt: skip
    return solution


def _directions(solution: Solution) -> Tensor:
    """Return the right singular vectors ``[rank, d]`` float64 of the low-rank part as rows, orthonormal to 1e-15."""
    low_rank = solution.low_rank
    columns = low_rank.left if solution.recursion.problem.transposed else low_rank.right
    columns = columns.double().cpu()
    return torch.linalg.qr(columns / columns.norm(dim=0)).Q.T


def _check(sample_rows: int, robust_iter: int, noise_std: float | str) -> None:
    """Refuse parameters that only this kind has, out of range.

    Raises:
        ConfigError: with the value.
    """
    for name, value, least in (("sample_rows", sample_rows, 2), ("robust_iter", robust_iter, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")
    if not isinstance(noise_std, int | float) and noise_std != "auto":
        raise ConfigError(f"noise_std: {noise_std!r} is neither a number nor auto")
