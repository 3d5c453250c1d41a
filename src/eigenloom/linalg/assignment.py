"""Nearest centres: one GEMM per block of rows, reduced at once to the best (and second best) of each row.

The score ``|c|^2 / 2 - x.c`` orders the centres of a row as the distance does. Rows and centres are shifted by
the mean centre first, which changes no distance and removes the cancellation that large means cause.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eigenloom.linalg.screen import Screen, argmin, best_two, screen_wins

SCORES_PER_BLOCK = 1 << 22


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
        self._half_norms = 0.5 * shifted.square().sum(1, dtype=torch.float64)
        self._block = max(256, min(2048, SCORES_PER_BLOCK // len(centers)))
        # Row d of the table meets a constant 1 beside each row, so that the GEMM itself adds the half norms.
        self._table = torch.cat([-shifted, self._half_norms[:, None].to(torch.float32)], 1).T.contiguous()
        self._screen: Screen | None = None
        if precision == "screen" or screen_wins(*centers.shape, centers.device.type):
            self._screen = Screen(shifted, self._half_norms, proven=precision != "screen")

    def __call__(self, x: Tensor, gaps: bool = False) -> Nearest:
        """Return the nearest centre of each row of ``x`` ``[b, d]`` float32."""
        parts = [self._assign(block, gaps) for block in x.split(self._block)]
        return parts[0] if len(parts) == 1 else Nearest(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return all squared distances ``[b, K]`` float32; the smallest of each row is the recomputed one."""
        rows = [self._distances(block) for block in x.split(self._block)]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _distances(self, x: Tensor) -> Tensor:
        """Turn the scores of one block into distances."""
        table = self._scores(x)
        labels = argmin(table)
        nearest = self._recomputed(x, labels)
        norms = (x - self._shift).square().sum(1, keepdim=True)
        table.mul_(2).add_(norms).clamp_(min=0)
        return table.scatter_(1, labels[:, None], nearest[:, None])

    def _assign(self, x: Tensor, gaps: bool) -> Nearest:
        """Assign one block that stays in cache."""
        if self._screen is None:
            labels, differences = best_two(self._scores(x), gaps)
        else:
            labels, differences, doubtful = self._screen(x - self._shift, gaps)
            if doubtful.is_cpu and (redo := doubtful.nonzero()[:, 0]).numel():
                labels[redo], again = best_two(self._scores(x[redo]), gaps)
                if gaps:
                    differences[redo] = again
        return Nearest(labels, self._recomputed(x, labels), differences)

    def _scores(self, x: Tensor) -> Tensor:
        """Return ``|c|^2 / 2 - x.c`` of shifted rows, ``[b, K]``."""
        rows = x.new_ones(len(x), x.shape[1] + 1)
        torch.sub(x, self._shift, out=rows[:, :-1])
        if x.is_cpu:  # numpy's BLAS is as fast as torch's on Intel, faster on AMD
            return torch.from_numpy(np.matmul(rows.numpy(), self._table.numpy()))
        return rows @ self._table

    def _recomputed(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return ``sum (x - c)^2`` for the chosen centres."""
        difference = x - self._centers[labels]
        return torch.linalg.vecdot(difference, difference)


def assign_reference(x: Tensor, centers: Tensor) -> Nearest:
    """Assign by float64 distances, the slow and obvious way."""
    distances = torch.cdist(x.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    two = distances.topk(min(2, len(centers)), dim=1, largest=False).values
    gap = two[:, 1] - two[:, 0] if len(centers) > 1 else torch.full_like(two[:, 0], torch.inf)
    return Nearest(distances.argmin(1), two[:, 0].float(), gap.float())
