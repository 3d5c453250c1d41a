"""Three ways to the principal components of long rows: from the moments, from the Gram matrix, from a sketch."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from eigenloom.bases.passes import Passes, Writer
from eigenloom.bases.projection import known_moments, refuse_constant
from eigenloom.bases.srht_columns import CentredColumns
from eigenloom.bases.srht_rows import CentredRows
from eigenloom.batches import Batches, ColumnBlocks
from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import BLOCK_ROWS, gram, refuse_nonfinite
from eigenloom.linalg.eigen import descending_eigh, orient, signs
from eigenloom.linalg.srht import SRHT
from eigenloom.moments import Standardization, moments_of_rows, standardization_of
from eigenloom.progress import Progress
from eigenloom.sources.arrays import ArrayRows
from eigenloom.store.npy import MemoryRows, NpyWriter
from eigenloom.store.snapshots import Snapshots

DUAL_ROWS = 1024
ORTHONORMAL = 1e-5
_REPAIRED = 1e-6
_RANK_TOL = 1e-7
_CANCELLED = 1e-6
_PIECE = 1 << 16

Fields = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a fit was asked for, beside its rows; the words are those of ``SRHTPCA.fit``."""

    n_components: int
    seed: int
    device: torch.device | str
    resume: Path | None
    progress: Progress
    block_size: int
    r_factor: float
    power_iter: int
    components_out: Path | None

    @property
    def sketch_width(self) -> int:
        """Numbers per row of the sketch."""
        return max(int(-(-self.r_factor * self.n_components // 1)), self.n_components + 16)

    def writers(self, n_features: int) -> tuple[Writer, Writer]:
        """Return the writers of mean and components: files where a path was given, else memory."""
        shape = (n_features, self.n_components)
        if self.components_out is None:
            return MemoryRows(shape[:1]), MemoryRows(shape)
        path = Path(self.components_out)
        return NpyWriter(path.with_name("mean.npy"), shape[:1]), NpyWriter(path, shape)

    def identity(self, batches: Batches | ColumnBlocks, method: str) -> Mapping[str, Any]:
        """Return what a snapshot must agree with to be resumed from."""
        names = ("n_components", "seed", "block_size", "r_factor", "power_iter")
        parameters = {name: getattr(self, name) for name in names} | {"kind": "srht_pca", "method": method}
        standardization = standardization_of(batches).digest if self.resume is not None else ""
        sizes = {"n_rows": batches.n_rows, "n_features": batches.n_features}
        return {**parameters, **sizes, "standardization": standardization}


def fit_covariance(batches: Batches, request: Request) -> Fields:
    """Fit from the moments: one pass over the rows, none where the moments are known."""
    standardization = standardization_of(batches)
    if (moments := known_moments(batches)) is None:
        identity = {**request.identity(batches, "covariance"), "block": BLOCK_ROWS}
        with Snapshots(request.resume, identity) as snapshots:
            moments = moments_of_rows(batches, device=request.device, snapshots=snapshots, progress=request.progress)
    refuse_constant(moments)
    spectrum, vectors = descending_eigh(moments.scatter)
    refuse_rank(spectrum, request.n_components, batches)
    variance = spectrum / (moments.n_rows - 1)
    total = variance.sum().item()
    uncentred = moments.mean + standardization.mean / standardization.scale
    mean, components = request.writers(batches.n_features)
    rows = orient(vectors[: request.n_components], uncentred, total).T.float().contiguous()
    none = torch.empty(0, dtype=torch.float64)
    return {
        "components": _written(components, rows),
        "mean": _written(mean, moments.mean.float()),
        "explained_variance": variance[: request.n_components].clone(),
        "scores": torch.empty(0, request.n_components),
        "norms": none,
        "centred_norms": none.clone(),
        "residuals": none.clone(),
        "total_variance": total,
        "method": "covariance",
        "orthonormality_error": deviation(gram(rows)),
        "sketch_width": 0,
    }


def fit_dual(batches: Batches | ColumnBlocks, request: Request) -> Fields:
    """Fit from the products of all pairs of rows (Sirovich 1987): two reads."""
    standardization = standardization_of(batches)
    source = columns_of(batches)
    mean, components = request.writers(source.n_features)
    offset = _offset(standardization)
    with (
        closing(mean), closing(components), Snapshots(request.resume, request.identity(batches, "dual")) as snapshots
    ):  # fmt: skip
        passes = Passes(snapshots, {"gram": mean, "lift": components}, request.progress, "column")
        columns = CentredColumns(source, passes, mean, offset, request.block_size, request.device)
        products = columns.products()
        refuse_constant_spectrum(products.diagonal(), batches)
        spectrum, vectors = descending_eigh(products)
        refuse_rank(spectrum, request.n_components, batches)
        left, singular = vectors[: request.n_components].T, spectrum[: request.n_components].sqrt()
        return {
            **_lifted(columns, left / singular, torch.eye(request.n_components), left * singular, components, mean),
            "explained_variance": spectrum[: request.n_components] / (source.n_rows - 1),
            "method": "dual",
            "sketch_width": 0,
        }


def fit_srht(batches: Batches | ColumnBlocks, request: Request) -> Fields:
    """Fit from a sketch whose left vectors are lifted through the data, and refined by ``power_iter`` rounds.

    Columns are read ``3 + power_iter`` times, rows ``3 + 2 power_iter`` times.
    """
    standardization = standardization_of(batches)
    mean, components = request.writers(batches.n_features)
    offset = _offset(standardization)
    k = request.n_components
    operator = SRHT(request.seed, batches.n_features, request.sketch_width, request.block_size)
    by_columns = isinstance(batches, ColumnBlocks) and not (isinstance(batches, Batches) and batches.n_rows > DUAL_ROWS)
    with (
        closing(mean), closing(components), Snapshots(request.resume, request.identity(batches, "srht")) as snapshots
    ):  # fmt: skip
        rows: CentredColumns | CentredRows
        if by_columns:
            passes = Passes(snapshots, {"sketch": mean, "lift": components}, request.progress, "column")
            source = cast(ColumnBlocks, batches)
            rows = CentredColumns(source, passes, mean, offset, request.block_size, request.device)
        else:
            passes = Passes(snapshots, {}, request.progress, "row")
            rows = CentredRows(cast(Batches, batches), passes, mean, offset, request.device)
        left, spectrum = left_vectors(rows.sketch(operator), 2 * k)
        refuse_constant_spectrum(spectrum, batches)
        refuse_rank(spectrum, k, batches)
        left = left / spectrum.sqrt()
        for number in range(1 + request.power_iter):
            base = left
            product, inner = rows.times_gram(base, number)
            white = whitener(inner)
            projected, singular, right = torch.linalg.svd(product @ white, full_matrices=False)
            left = projected / singular
        refuse_rank(singular**2, k, batches)
        rotation = white @ right[:k].T
        return {
            **_lifted(rows, base, rotation, projected[:, :k] * singular[:k], components, mean),
            "explained_variance": singular[:k] ** 2 / (batches.n_rows - 1),
            "method": "srht",
            "sketch_width": request.sketch_width,
        }


def left_vectors(sketch: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Return the leading left singular vectors ``[n, l]`` of a sketch ``[n, r]`` about its mean, and their squares."""
    centred = sketch - sketch.mean(0)
    tall = len(centred) > centred.shape[1]
    spectrum, vectors = descending_eigh(centred.T @ centred if tall else centred @ centred.T)
    kept = min(n_vectors, int((spectrum > _RANK_TOL * spectrum[0]).sum()))
    spectrum, columns = spectrum[:kept], vectors[:kept].T
    return centred @ columns / spectrum.sqrt() if tall else columns, spectrum


def whitener(inner: Tensor) -> Tensor:
    """Return ``A [l, m]`` with ``A^T inner A = I``, leaving out null directions: a CholeskyQR that cannot fail."""
    spectrum, vectors = descending_eigh(inner)
    kept = int((spectrum > _RANK_TOL * spectrum[0]).sum())
    return vectors[:kept].T / spectrum[:kept].sqrt()


def _lifted(
    rows: CentredColumns | CentredRows, left: Tensor, rotation: Tensor, scores: Tensor, components: Writer, mean: Writer
) -> Fields:
    """Make the components ``W = B^T left rotation`` orthonormal, fix their signs, and measure what they leave.

    Args:
        rows: ``B``, its norms known.
        left: ``[n, l]`` float64.
        rotation: ``[l, k]`` float64, with ``W`` orthonormal but for rounding.
        scores: ``B W`` ``[n, k]`` float64.
        components: writer of ``W``.
        mean: writer of the mean, complete.
    """
    total = rows.squares.sum().item() / (rows.n_rows - 1)
    rotation = rotation.double()
    flips = signs((left @ rotation).T @ rows.along[:, -1], rows.means[-1].sqrt().item(), total, scores.T)
    rotation, scores = rotation * flips, scores * flips
    inner = rows.lift(left, rotation, components)
    again = None
    if deviation(inner) > _REPAIRED:  # the second CholeskyQR, needed where the last variances are near rounding
        again = torch.linalg.inv(torch.linalg.cholesky(inner)).T
        if deviation(inner) > ORTHONORMAL:  # then the scores are not quite those of what was written
            scores = rows.scores(components)
        scores = scores @ again
    squares = rows.squares - scores.square().sum(1)
    if (squares < _CANCELLED * rows.squares).any():
        squares = rows.residuals(scores if again is None else scores @ again.T, components)
    published = components.publish(again)
    if again is not None:
        inner = sum((gram(part).double() for part in published.split(_PIECE)), torch.zeros(()))
    return {
        "components": published,
        "mean": mean.publish(),
        "scores": scores.float(),
        "norms": (rows.squares + 2 * rows.along[:, 0] + rows.means[0]).clamp_min(0).sqrt(),
        "centred_norms": rows.squares.sqrt(),
        "residuals": squares.clamp_min(0).sqrt(),
        "total_variance": total,
        "orthonormality_error": deviation(inner),
    }


def columns_of(batches: Batches | ColumnBlocks) -> ColumnBlocks:
    """Return the columns a source offers, or those of its rows, held in memory."""
    if isinstance(batches, ColumnBlocks):
        return batches
    rows = torch.cat([batch.clone() for batch in batches])
    if not torch.isfinite(rows).all():
        refuse_nonfinite(batches)
    return ArrayRows(rows)


def refuse_rank(spectrum: Tensor, n_components: int, batches: Batches | ColumnBlocks) -> None:
    """Refuse to return directions that the rows do not have.

    Raises:
        DataError: fewer eigenvalues than components are above 1e-7 of the largest.
    """
    rank = int((spectrum > _RANK_TOL * spectrum[0]).sum())
    if n_components > rank:
        raise DataError(
            f"{batches.n_rows} rows vary in {rank} directions only, fewer than n_components: {n_components}, and "
            "further ones would be arbitrary; lower it"
        )


def refuse_constant_spectrum(squares: Tensor, batches: Batches | ColumnBlocks) -> None:
    """Refuse rows that are all the same.

    Raises:
        DataError: no square is above zero.
    """
    if not squares.any():
        raise DataError(f"all {batches.n_features} features are constant over {batches.n_rows} rows: nothing to fit")


def _written(writer: Writer, values: Tensor) -> Tensor:
    """Write all rows at once and publish them."""
    with closing(writer):
        writer.begin()
        writer.append(values)
        return writer.publish()


def _offset(standardization: Standardization) -> Tensor | None:
    """Return what the raw mean, in the fitted scale, lies away from the mean of standardized rows ``[D]``."""
    return None if standardization.kind == "none" else standardization.mean / standardization.scale


def deviation(inner: Tensor) -> float:
    """Return the largest entry of ``|inner - I|`` of ``[k, k]``."""
    return (inner.double() - torch.eye(len(inner), dtype=torch.float64)).abs().max().item()
