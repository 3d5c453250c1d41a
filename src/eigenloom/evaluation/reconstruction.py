"""How much of the variance of unseen rows a basis leaves unexplained, at every number of kept entries.

``nmse = sum |x - xhat|^2 / sum |x - mu|^2`` with ``mu`` the mean of the fitting rows: 0 is exact, 1 is no better than
the mean. Residuals are float32, sums float64, per shard and in shard order.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.batches import Batches
from eigenloom.codes.coding import refuse_nonfinite
from eigenloom.codes.codings import Dense, TopK
from eigenloom.codes.distances import Centres, OneHot
from eigenloom.codes.residuals import Tails, squared_norms
from eigenloom.codes.selection import largest
from eigenloom.errors import DataError, MismatchError
from eigenloom.evaluation.utilisation import describe
from eigenloom.moments import Moments, denominator
from eigenloom.progress import Progress

logger = logging.getLogger("eigenloom")
CURVE_LIMIT = 4096
"""Up to this many kept entries every K is a line of the curve, beyond it those that were asked for."""
ZERO = 1e-24
"""A variance below this share of the squared mean is rounding of float32 rows."""
SILENT = Progress()


@dataclass(frozen=True)
class CodingError:
    """The error of one coding.

    Fields: ``nmse`` in the fitted space, the primary number; ``nmse_raw`` in the units of the rows;
    ``nmse_raw_own_mean`` the same around the evaluated rows' own mean, as published tables have it; ``l0``, the mean
    number of non-zero entries as measured; ``nominal_l0``, the number the coding allows.
    """

    nmse: float
    nmse_raw: float
    nmse_raw_own_mean: float
    l0: float
    nominal_l0: int


@dataclass(frozen=True)
class CurvePoint:
    """One line of ``nmse_curve.csv``: ``nmse_raw`` is None where nobody asked for this K."""

    k: int
    l0: float
    nmse: float
    nmse_raw: float | None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Errors of ``codings`` by name, the whole ``curve``, and ``counts``: uses of each feature, per shard."""

    n_rows: int
    codings: dict[str, CodingError]
    curve: list[CurvePoint]
    counts: dict[str, list[Tensor]]

    def document(self) -> dict[str, Any]:
        """Return the measured part of ``reconstruction.json``."""
        return {
            "n_rows": self.n_rows,
            "codings": {name: asdict(coding) for name, coding in self.codings.items()},
            "utilisation": {name: describe(name, counts) for name, counts in self.counts.items()},
        }

    def curve_csv(self) -> str:
        """Return ``nmse_curve.csv``: a line per K, empty where nobody asked for the raw error."""
        lines = ["k,l0,nmse,nmse_raw"]
        for point in self.curve:
            raw = "" if point.nmse_raw is None else repr(point.nmse_raw)
            lines.append(f"{point.k},{point.l0!r},{point.nmse!r},{raw}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over some rows, one entry per kept count: the swept ones, or for ``curve_*`` all of 0..k (else none)."""

    n_rows: int
    sse: Tensor
    sse_raw: Tensor
    curve_sse: Tensor
    curve_kept: Tensor
    counts: Tensor

    def __add__(self, other: "_Sums") -> "_Sums":
        """Add both sums."""
        names = ("n_rows", "sse", "sse_raw", "curve_sse", "curve_kept", "counts")
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in names))


class _Evaluator(ABC):
    """Adds up the errors of one geometry; ``names`` and ``ks`` are its codings and their nominal L0."""

    names: list[str]
    ks: list[int]

    @abstractmethod
    def sums(self, x: Tensor, where: str, first_row: int) -> _Sums:
        """Return the sums over rows ``[b, d]`` in the fitted space."""


class _Centres(_Evaluator):
    """The reconstruction is the nearest centre, for every coding by distances."""

    def __init__(self, basis: Basis, device: torch.device | str):
        """Lay out all centres once."""
        self._basis = basis
        eye = torch.eye(basis.n_elements, device=device)
        self._centres = torch.cat([basis.decode(rows) for rows in eye.split(1024)])
        self._scale = basis.standardization.scale.to(device, torch.float32)
        self.names, self.ks = [OneHot().name], [1]

    def sums(self, x: Tensor, where: str, first_row: int) -> _Sums:
        """The distance to the nearest centre is the error."""
        labels, squared = cast(Centres, self._basis).assign(x)
        refuse_nonfinite({"distances": squared}, where, first_row)
        raw = squared_norms((x - self._centres[labels.to(torch.int64)]) * self._scale).sum()
        counts = torch.bincount(labels.to(torch.int64), minlength=self._basis.n_elements)
        sse, nothing = squared.sum(dtype=torch.float64)[None], raw.new_zeros(0)
        return _Sums(len(x), sse, raw[None], nothing, nothing, counts[None])


class _Directions(_Evaluator):
    """Top-K of each swept K, then dense."""

    def __init__(self, basis: Basis, topk: Sequence[int], device: torch.device | str):
        """Drop the K that leave nothing out, and look whether errors follow from discarded tails."""
        k = basis.n_elements
        codings = [TopK(kept).effective(k) for kept in sorted(set(topk))]
        self._swept = [coding.k for coding in codings if isinstance(coding, TopK)]
        self.names = [*(TopK(kept).name for kept in self._swept), Dense().name]
        self.ks = [*self._swept, k]
        self._basis, self._tails = basis, Tails.of(basis, device)
        scale = basis.standardization.scale
        self._scale = scale.to(device, torch.float32)
        self._one_scale = float(scale[0]) if bool((scale == scale[0]).all()) else None

    def sums(self, x: Tensor, where: str, first_row: int) -> _Sums:
        """Sort once for the fitted space; decode each K for the raw one, unless all scales are equal."""
        z = self._basis.encode(x)
        refuse_nonfinite({"values": z}, where, first_row)
        values, indices = largest(z, max(self._swept, default=1))
        flat = [indices[:, :kept][values[:, :kept] != 0].to(torch.int64) for kept in self._swept]
        counts = torch.stack([*(torch.bincount(ids, minlength=z.shape[1]) for ids in flat), (z != 0).sum(0)])
        curve_sse = curve_kept = torch.zeros(0, dtype=torch.float64, device=x.device)
        if self._tails is not None:
            curve_sse, curve_kept = self._tails.column_sums(x, z)
        if self._tails is not None and self._one_scale is not None:
            sse = curve_sse[self.ks]
            return _Sums(len(x), sse, sse * self._one_scale**2, curve_sse, curve_kept, counts)
        sse, raw = self._by_decoding(x, z, values, indices)
        return _Sums(len(x), sse if self._tails is None else curve_sse[self.ks], raw, curve_sse, curve_kept, counts)

    def _by_decoding(self, x: Tensor, z: Tensor, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return both errors, one entry per K, from one reconstruction each."""
        kept_codes, done, sse, raw = torch.zeros_like(z), 0, [], []
        for kept in self.ks:
            if kept < z.shape[1]:
                kept_codes.scatter_(1, indices[:, done:kept].to(torch.int64), values[:, done:kept])
                done = kept
            residual = x - self._basis.decode(z if kept == z.shape[1] else kept_codes)
            sse.append(squared_norms(residual).sum())
            raw.append(squared_norms(residual * self._scale).sum())
        return torch.stack(sse), torch.stack(raw)


def reconstruct(
    basis: Basis,
    shards: Iterable[Batches],
    *,
    moments: Moments,
    fit_mean: Tensor,
    topk: Sequence[int] = (),
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Reconstruction:
    """Measure how well a basis reconstructs rows.

    For orthonormal elements one sort per row gives the error at every K (see ``codes.residuals``); other bases, and
    the error in raw units, go through ``decode`` for each K asked for.

    Args:
        basis: fitted.
        shards: raw rows, one ``Batches`` per shard, in order.
        moments: of all these rows, raw.
        fit_mean: ``[d]`` raw mean of the rows that the basis was fitted on.
        topk: kept counts to report; those not below the width of the code are dropped with a log line.
        device: where to encode.
        progress: a bar over the rows.

    Raises:
        DataError: codes are not finite; every row equals the mean.
        MismatchError: the moments are of other rows.
    """
    distance = basis.geometry == "distance"
    evaluator = _Centres(basis, device) if distance else _Directions(basis, topk, device)
    total, counts = None, []
    for number, rows in enumerate(shards):
        shard, first = None, 0
        for batch in progress.track(rows, "evaluate", rows.n_rows):
            fitted = basis.standardization.apply(batch.to(device))
            found = evaluator.sums(fitted, f"evaluated shard {number}", first)
            shard = found if shard is None else shard + found
            first += len(batch)
        if shard is not None:
            counts.append(shard.counts.cpu())
            total = shard if total is None else total + shard
    if total is None or total.n_rows != moments.n_rows:
        n_rows = 0 if total is None else total.n_rows
        raise MismatchError(
            f"{n_rows} rows were evaluated, but their moments are of {moments.n_rows}; measure this split again"
        )
    by_name = {name: [shard[i] for shard in counts] for i, name in enumerate(evaluator.names)}
    return _summary(evaluator, total, by_name, basis, moments, fit_mean)


def _summary(
    evaluator: _Evaluator,
    total: _Sums,
    counts: dict[str, list[Tensor]],
    basis: Basis,
    moments: Moments,
    fit_mean: Tensor,
) -> Reconstruction:
    """Divide the sums."""
    n = total.n_rows
    per_row = [denominator(moments, fit_mean, basis.standardization.scale), denominator(moments, fit_mean)]
    own = denominator(moments, moments.mean)
    if min(per_row[1], own) <= ZERO * float(moments.mean.square().sum()):
        raise DataError(f"every one of the {n} rows equals the mean: there is no variance to explain")
    nmse, raw = (total.sse.cpu() / (n * per_row[0])).tolist(), (total.sse_raw.cpu() / (n * per_row[1])).tolist()
    published = (total.sse_raw.cpu() / (n * own)).tolist()
    l0 = (total.counts.sum(1).to(torch.float64).cpu() / n).tolist()
    codings = {
        name: CodingError(nmse[i], raw[i], published[i], l0[i], evaluator.ks[i])
        for i, name in enumerate(evaluator.names)
    }
    curve = [CurvePoint(k, l0[i], nmse[i], raw[i]) for i, k in enumerate(evaluator.ks)]
    if len(total.curve_sse):
        known = {point.k: point.nmse_raw for point in curve}
        every = (total.curve_sse.cpu() / (n * per_row[0])).tolist()
        kept = (total.curve_kept.cpu() / n).tolist()
        ks = [k for k in range(1, len(every)) if k <= CURVE_LIMIT or k in known]
        curve = [CurvePoint(k, kept[k], every[k], known.get(k)) for k in ks]
    return Reconstruction(n, codings, curve, counts)
