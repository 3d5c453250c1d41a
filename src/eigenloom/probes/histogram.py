"""Path C: one histogram per feature, free of classes, on which the pairs of all classes are fitted.

Uniform bins of ``t = (z - m)/sigma`` between the extremes, or of ``asinh(t)`` where the range exceeds 40 sigma; the
sums of the objective are corrected to second order by mean and variance of each bin (spec: section 5 C).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from eigenloom.probes.rows import Columns
from eigenloom.probes.scales import pieces

WIDE_RANGE = 40.0
CELLS_PER_PIECE = 1 << 16
TRUSTED = (2.0, 3.0)  # sharpness over which the second-order correction fades out: beyond, it diverges


@dataclass(frozen=True, eq=False)
class Histogram:
    """Float64 arrays on one device: ``count``, ``mean``, ``variance [f, b]`` in units of t; ``width [f]``.

    ``width`` times ``abs(u)`` is the sharpness of a pair. ``class_counts [f, b, c]`` (int64) where asked for.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor
    width: Tensor
    class_counts: Tensor | None = None


class HistogramBuilder:
    """Adds chunks of codes to the bins of some features.

    Args:
        mean, scale: of the features on probe_train, ``[f]`` float64.
        low, high: range of the values that will come, in code units, ``[f]``.
        bins: per feature; sparse codes get one more in the end, which holds the zeros alone.
        n_classes: 0, or the number of classes to be counted bin by bin.
        moments: sum t and its square by class as well, which row weights need.
    """

    def __init__(
        self,
        mean: NDArray,
        scale: NDArray,
        low: NDArray,
        high: NDArray,
        bins: int,
        n_classes: int = 0,
        moments: bool = False,
    ):
        """Choose the bins."""
        self.mean, self.inverse = mean[:, None], 1 / scale[:, None]
        self.bins, self.n_classes, self.moments = bins, n_classes, moments
        first, last = ((edge[:, None] - self.mean) * self.inverse for edge in (low, high))
        self.wide = (last - first)[:, 0] > WIDE_RANGE
        first, last = (np.where(self.wide[:, None], np.arcsinh(edge), edge) for edge in (first, last))
        span = np.where(last > first, last - first, 1.0)
        self.rate, self.offset = bins / span, -first * bins / span
        self.width = (span / bins)[:, 0]
        size = len(low) * bins
        self.sums = np.zeros((3, size))
        self.by_class = np.zeros((3 if moments else 1, size * n_classes)) if n_classes else None

    def add(self, chunk: NDArray[np.float32], classes: NDArray[np.int16]) -> None:
        """Add a feature-major chunk ``[f, b]`` with the classes ``[b]`` of its rows."""
        for piece in pieces(chunk):
            t = (chunk[piece] - self.mean[piece]) * self.inverse[piece]
            place = t
            if self.wide[piece].any():
                place = np.where(self.wide[piece, None], np.arcsinh(t), t)
            place = place * self.rate[piece]
            place += self.offset[piece]
            np.clip(place, 0, self.bins - 1, out=place)
            cells = place.astype(np.int64)
            cells += (np.arange(len(t)) * self.bins)[:, None]
            self._add(piece.start, piece.stop, cells.ravel(), t.ravel(), np.broadcast_to(classes, t.shape))

    def add_columns(self, columns: Columns, first: int) -> None:
        """Add the entries of gathered columns, not their zeros; ``first`` is the place of the first column."""
        for j in range(first, first + len(columns)):
            values, classes = columns.column(j - first)
            t = (values - self.mean[j]) * self.inverse[j]
            place = np.arcsinh(t) if self.wide[j] else t
            cells = np.clip(place * self.rate[j] + self.offset[j], 0, self.bins - 1).astype(np.int64)
            self._add(j, j + 1, cells, t, classes)

    def _add(self, first: int, last: int, cells: NDArray, t: NDArray, classes: NDArray) -> None:
        """Count, and sum t and t squared, into the bins of features ``first`` to ``last``."""
        size = (last - first) * self.bins
        at = slice(first * self.bins, last * self.bins)
        self.sums[0, at] += np.bincount(cells, minlength=size)
        self.sums[1, at] += np.bincount(cells, weights=t, minlength=size)
        self.sums[2, at] += np.bincount(cells, weights=t * t, minlength=size)
        if self.by_class is not None:
            cells = cells * self.n_classes + classes.ravel()
            at = slice(at.start * self.n_classes, at.stop * self.n_classes)
            size *= self.n_classes
            self.by_class[0, at] += np.bincount(cells, minlength=size)
            if self.moments:
                self.by_class[1, at] += np.bincount(cells, weights=t, minlength=size)
                self.by_class[2, at] += np.bincount(cells, weights=t * t, minlength=size)

    def finish(
        self,
        zeros: NDArray | None = None,
        weights: tuple[Tensor, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> Histogram:
        """Return the histogram.

        Args:
            zeros: ``[f, c]`` rows of each class without an entry; they get a bin of their own, exact.
            weights: row weights ``[c]`` of positives and negatives: then one row per (feature, class), in that
                order, whose counts are weighted.
            device: where it will be used.
        """
        f, b = len(self.width), self.bins
        sums = self.sums.reshape(3, f, b)
        by_class = None if self.by_class is None else self.by_class.reshape(-1, f, b, self.n_classes)
        if zeros is not None:
            t = (-self.mean * self.inverse)[:, 0]
            n_zero = zeros.sum(1)
            sums = np.concatenate([sums, np.stack([n_zero, n_zero * t, n_zero * t * t])[:, :, None]], axis=2)
            if by_class is not None:
                extra = np.stack([zeros * t[:, None] ** power for power in range(len(by_class))])
                by_class = np.concatenate([by_class, extra[:, :, None, :]], axis=2)
        class_counts = None if by_class is None else torch.from_numpy(by_class[0].astype(np.int64)).to(device)
        width = self.width
        if weights is not None and by_class is not None:
            positive, negative = (w.cpu().numpy() for w in weights)
            sums = negative * sums[..., None] + (positive - negative) * by_class
            sums = np.moveaxis(sums, 3, 2).reshape(3, -1, sums.shape[2])
            width = np.repeat(width, self.n_classes)
        count = sums[0]
        safe = np.where(count > 0, count, 1.0)
        mean = sums[1] / safe
        variance = np.maximum(sums[2] / safe - mean**2, 0.0)
        wide = np.repeat(self.wide, len(width) // f)
        width = np.where(wide, np.sqrt(12 * variance.max(1)), width)
        parts = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (count, mean, variance, width)]
        return Histogram(parts[0], parts[1], parts[2], parts[3], class_counts)


class HistogramSums:
    """The sums of the objective over histograms (see ``objective.Sums``), corrected to second order."""

    def __init__(self, histogram: Histogram):
        """Prepare the rows that multiply f, s and q."""
        self.histogram = histogram
        c, t, v = histogram.count, histogram.mean, histogram.variance
        cv = c * v
        self._rows = torch.stack([c, c * t, c * t * t, cv, cv * t], dim=2)

    def derivatives(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[5, p]``: sums of ``f, f t, s, s t, s t^2``."""
        del label
        total = torch.empty((5, len(row)), dtype=torch.float64, device=beta.device)
        for at, columns, place, eta in self._pieces(row, beta, u):
            f = eta.sigmoid_()
            s = torch.addcmul(f, f, f, value=-1)
            q = torch.addcmul(s, f, s, value=-2)
            rows = self._rows[columns]
            by_f = torch.bmm(f, rows[:, :, :2])[place]
            by_s = torch.bmm(s, rows[:, :, :4])[place]
            by_q = torch.bmm(q, rows[:, :, 3:])[place]
            slope = u[at]
            trust = self._trust(row[at], slope)
            half = slope * slope / 2
            total[0, at] = by_f[:, 0] + trust * half * by_q[:, 0]
            total[1, at] = by_f[:, 1] + trust * (slope * by_s[:, 3] + half * by_q[:, 1])
            total[2, at] = by_s[:, 0]
            total[3, at] = by_s[:, 1]
            total[4, at] = by_s[:, 2] + trust * by_s[:, 3]
        return total

    def softplus(self, row: Tensor, label: Tensor, beta: Tensor, u: Tensor) -> Tensor:
        """Return ``[p]``: sums of ``softplus``."""
        del label
        total = torch.empty(len(row), dtype=torch.float64, device=beta.device)
        for at, columns, place, eta in self._pieces(row, beta, u):
            rows = self._rows[columns]
            losses = torch.bmm(softplus(eta, threshold=40.0), rows[:, :, :1])[place][:, 0]
            f = eta.sigmoid_()
            s = torch.addcmul(f, f, f, value=-1)
            curvature = torch.bmm(s, rows[:, :, 3:4])[place][:, 0]
            total[at] = losses + self._trust(row[at], u[at]) * u[at] ** 2 / 2 * curvature
        return total

    def sharpness(self, row: Tensor, u: Tensor) -> Tensor:
        """Return ``h = abs(u) x width [p]``: below .3 the fit is good to 1e-6, above 1 it needs exact passes."""
        return u.abs() * self.histogram.width[row]

    def _trust(self, row: Tensor, u: Tensor) -> Tensor:
        """Weight of the second-order correction: 1 while it helps, 0 where it diverges."""
        low, high = TRUSTED
        return ((high - self.sharpness(row, u)) / (high - low)).clamp(0.0, 1.0)

    def _pieces(
        self, row: Tensor, beta: Tensor, u: Tensor
    ) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor], Tensor]]:
        """Cut the pairs at feature borders; yield pairs, features, each pair's place in ``eta``, and ``eta [g, s, b]``.

        The pairs of a feature share its bins, so they are laid out as ``s`` slots of ``g`` features.
        """
        columns, lengths = torch.unique_consecutive(row, return_counts=True)
        ends = torch.cumsum(lengths, 0)
        starts = ends - lengths
        group = torch.repeat_interleave(torch.arange(len(columns), device=row.device), lengths)
        slot = torch.arange(len(row), device=row.device) - starts[group]
        bins = self.histogram.count.shape[1]
        size = max(1, CELLS_PER_PIECE // (bins * int(lengths.max())))
        starts_list, ends_list = starts.tolist(), ends.tolist()
        for first in range(0, len(columns), size):
            last = min(first + size, len(columns))
            at = slice(starts_list[first], ends_list[last - 1])
            chosen = columns[first:last]
            place = (group[at] - first, slot[at])
            shape = (last - first, int(lengths[first:last].max()), 1)
            padded = torch.zeros((2, *shape[:2]), dtype=torch.float64, device=row.device)
            padded[0][place] = beta[at]
            padded[1][place] = u[at]
            t = self.histogram.mean[chosen][:, None, :]
            yield at, chosen, place, torch.addcmul(padded[0][:, :, None], padded[1][:, :, None], t)
