"""Which centres to move where: from where they are hardly missed to where rows are badly served.

A centre's utility bounds what removing it costs. What a centre at row ``r`` would gain is estimated from rows sampled
by squared distance: each stands for an equal share of the inertia, of which it loses ``1 - |s - r|^2 / d2(s)`` where
that is positive. A row alone says nothing about a cluster (every row is closest to itself), so it does not count for
itself.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenloom.linalg.assignment import Assigner


def choose_moves(
    rows: Tensor, sq_distances: Tensor, inertia: float, utility: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Return which centres to move ``[moves]`` int64 and to which of the rows ``[moves]`` int64, on their device.

    Greedy: the row of highest gain, given those already taken, is paired with the centre of least utility as long as
    it gains more than is lost. Gains only fall as rows are taken, so only the leader is evaluated again.

    Args:
        rows: ``[m, d]`` float32, sampled in proportion to ``sq_distances`` ``[m]``, all positive.
        sq_distances: of the rows to their centres.
        inertia: of all rows.
        utility: ``[K]`` float64.
        most: no more moves than this.
    """
    least = utility.argsort(stable=True)[:most]
    costs = utility[least].cpu().numpy()
    taken: list[int] = []
    if len(rows) > 1:
        taken = _take(_relative_distances(rows, sq_distances), inertia / (len(rows) - 1), costs)
    return least[: len(taken)], torch.tensor(taken, dtype=torch.int64, device=rows.device)


def _relative_distances(rows: Tensor, sq_distances: Tensor) -> NDArray[np.float32]:
    """Return ``|r - s|^2 / d2(s)`` ``[r, s]`` on the host, infinite where r is s."""
    relative = Assigner(rows).squared_distances(rows).div_(sq_distances).fill_diagonal_(torch.inf)
    return relative.cpu().numpy()


def _take(relative: NDArray[np.float32], share: float, costs: NDArray[np.float64]) -> list[int]:
    """Return the rows to take, in order; ``share`` is the inertia one sampled row stands for."""
    left = np.ones(len(relative), np.float32)  # what remains of each sampled row's squared distance
    bounds = np.array([_gain(left, row) for row in relative])
    taken: list[int] = []
    while len(taken) < len(costs):
        leader = int(bounds.argmax())
        bounds[leader] = _gain(left, relative[leader])
        if bounds.argmax() != leader:
            continue
        if not share * bounds[leader] > costs[len(taken)]:
            break
        taken.append(leader)
        left = np.minimum(left, relative[leader])
        left[leader] = 0
        bounds[leader] = -np.inf
    return taken


def _gain(left: NDArray[np.float32], relative: NDArray[np.float32]) -> float:
    """Return how many sampled rows' worth of inertia a centre would remove."""
    return float(np.maximum(left - relative, 0).sum(dtype=np.float64))
