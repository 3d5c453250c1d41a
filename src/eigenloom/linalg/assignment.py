"""Nearest centres: one GEMM per block of rows, reduced at once to the best (and second best) of each row.

The score ``|c|^2 / 2 - x.c`` orders the centres of a row as the distance does. Rows and centres are shifted by
the mean centre first, which changes no distance and removes the cancellation that large means cause.
"""

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eigenloom.linalg.screen import Screen, argmin, best_two, screen_wins

SCORES_PER_BLOCK = 1 << 21


class Nearest(NamedTuple):
    """Per row: ``labels [b]`` int64, ``sq_distances [b]`` and ``gaps [b]`` float32.

    ``sq_distances`` is ``sum (x - c)^2`` of the chosen centre, not a difference of large numbers. ``gaps`` is how
    much farther (squared) the second-best centre is; infinite where there is only one; empty unless asked for.
    """

    labels: Tensor
    sq_distances: Tensor
    gaps: Tensor


class Assigner:
    """Assign rows to ``centers`` ``[K, d]``; holds what is computed once per set of centres.

    Labels are those of exact arithmetic but for ties within float32 rounding, which may fall either way; exact
    ties go to the lowest index. ``precision="screen"`` takes bfloat16 products as they come: about 0.1-1 % of the
    labels are then another near centre's. ``exact`` screens too, with every label proven or redone, at the shapes
    where ``benchmarks/bench_kmeans.py`` measured a gain (see ``screen.screen_wins``).
    """

    def __init__(self, centers: Tensor, precision: str = "exact"):
        """Shift the centres and lay them out for the GEMM; ``centers`` float32 on the device of the rows."""
        self._centers = centers
        self._shift = centers.mean(0, dtype=torch.float64).to(torch.float32)
        shifted = centers - self._shift
        half_norms = 0.5 * shifted.square().sum(1, dtype=torch.float64)
        # Column d of the table meets a constant 1 beside each row, so that the GEMM itself adds the half norms.
        self._table = torch.cat([-shifted, half_norms[:, None].to(torch.float32)], 1).T
        self._block = max(256, min(2048, SCORES_PER_BLOCK // len(centers)))
        self._proven = precision != "screen"
        self._screen: Screen | None = None
        if precision == "screen" or screen_wins(len(centers), centers.shape[1], centers.device.type):
            self._screen = Screen(shifted, half_norms)
        self._scratch = Scratch()

    def __call__(self, x: Tensor, gaps: bool = False) -> Nearest:
        """Return the nearest centre of each row of ``x`` ``[b, d]`` float32."""
        parts = [self._assign(block, gaps) for block in x.split(self._block)]
        return parts[0] if len(parts) == 1 else Nearest(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return all squared distances ``[b, K]`` float32; the smallest of each row is the recomputed one."""
        table = x.new_empty(len(x), len(self._centers))
        for rows, out in zip(x.split(self._block), table.split(self._block), strict=True):
            labels = argmin(self._scores(rows, out))
            norms = (rows - self._shift).square().sum(1, keepdim=True)
            out.mul_(2).add_(norms).clamp_(min=0)
            out.scatter_(1, labels[:, None], self._recomputed(rows, labels)[:, None])
        return table

    def _assign(self, x: Tensor, gaps: bool) -> Nearest:
        """Assign one block that stays in cache."""
        out = self._scratch.scores(x, len(self._centers))
        if self._screen is None:
            labels, differences = best_two(self._scores(x, out), gaps)
        elif not self._proven:
            labels, differences = best_two(self._screen.scores(self._shifted(x), out), gaps)
        else:
            labels, distances, differences, doubtful = self._screen.nearest(self._shifted(x), gaps, out)
            if (redo := doubtful.nonzero()[:, 0]).numel():
                rows = x.index_select(0, redo)
                labels[redo], again = best_two(self._scores(rows, out[: len(redo)]), gaps)
                distances[redo] = self._recomputed(rows, labels[redo])
                if gaps:
                    differences[redo] = again
            return Nearest(labels, distances, differences)
        return Nearest(labels, self._recomputed(x, labels), differences)

    def _scores(self, x: Tensor, out: Tensor) -> Tensor:
        """Return ``|c|^2 / 2 - x.c`` of shifted rows, ``[b, K]``, in ``out``."""
        rows = self._scratch.rows(x)
        torch.sub(x, self._shift, out=rows[:, :-1])
        if x.is_cpu:  # numpy's BLAS is as fast as torch's on Intel processors and faster on AMD's
            np.matmul(rows.numpy(), self._table.numpy(), out=out.numpy())
            return out
        return torch.mm(rows, self._table, out=out)

    def _shifted(self, x: Tensor) -> Tensor:
        """Return the rows shifted by the mean centre."""
        return torch.sub(x, self._shift, out=self._scratch.differences(x))

    def _recomputed(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return ``sum (x - c)^2`` for the chosen centres."""
        difference = self._scratch.differences(x)
        torch.index_select(self._centers, 0, labels, out=difference)
        torch.sub(x, difference, out=difference)
        return torch.linalg.vecdot(difference, difference)


class Scratch(threading.local):
    """Buffers of one thread, reused from block to block: fresh pages cost as much as a pass over them."""

    def __init__(self) -> None:
        """Own nothing yet."""
        self._scores = self._rows = self._differences = torch.empty(0, 0)

    def scores(self, x: Tensor, n_clusters: int) -> Tensor:
        """Return ``[b, n_clusters]`` float32, uninitialised, beside rows ``x`` ``[b, d]``."""
        if len(self._scores) < len(x) or self._scores.device != x.device:
            self._scores = x.new_empty(len(x), n_clusters)
        return self._scores[: len(x)]

    def differences(self, x: Tensor) -> Tensor:
        """Return ``[b, d]`` float32, uninitialised."""
        if len(self._differences) < len(x) or self._differences.device != x.device:
            self._differences = torch.empty_like(x)
        return self._differences[: len(x)]

    def rows(self, x: Tensor) -> Tensor:
        """Return ``[b, d + 1]`` float32 whose last column is 1."""
        if len(self._rows) < len(x) or self._rows.device != x.device:
            self._rows = x.new_ones(len(x), x.shape[1] + 1)
        return self._rows[: len(x)]


def assign_reference(x: Tensor, centers: Tensor) -> Nearest:
    """Assign by float64 distances, the slow and obvious way."""
    distances = torch.cdist(x.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    two = distances.topk(min(2, len(centers)), dim=1, largest=False).values
    gap = two[:, 1] - two[:, 0] if len(centers) > 1 else torch.full_like(two[:, 0], torch.inf)
    return Nearest(distances.argmin(1), two[:, 0].float(), gap.float())
