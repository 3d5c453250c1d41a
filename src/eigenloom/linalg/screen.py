"""A bfloat16 product that says which centres can be a row's nearest, and float32 distances that say which is.

The product ``p_j = x^.c_j^`` of rounded operands, itself rounded to bfloat16, stands for ``x.c_j`` with an error of
at most ``u |p_j| + a``. Here ``u`` bounds the rounding of the output and, with residuals that are *computed*,

    a = |x - x^| max|c| + |x^| max|c - c^| + (d + 8) 2^-23 |x^| max|c^|

by Cauchy-Schwarz, the last term being the accumulation in float32 (``2^-22 max h`` is added for ``L``). Let ``h_j = |c_j|^2 / 2``, ``s_j = h_j - x.c_j``
the true score and ``L_j = h_j - (1 + u) p_j``. Then ``s_j <= L_j + 2u |p_j| + a``: the least such upper end over
some centres bounds the winner's score by ``T``. A centre with ``p_j >= 0`` has ``s_j >= L_j - a``, so it can win
only if ``L_j <= T + a``. One with ``p_j < 0`` has ``s_j >= L_j - a - 2u |p_j|``, and ``(1 - u) |p_j| <= T + a`` if
it wins. Hence *every* centre that can win has ``L_j <= T + a + 2.1 u max(T + a, 0)``, and the few that do are
compared by ``sum (x - c)^2`` in float32. For the two nearest, ``T`` is the second least upper end.
"""

import numpy as np
import torch
from torch import Tensor

OUTPUT_ROUNDING = 2.0**-8
"""``u``: twice the unit roundoff of bfloat16, which leaves room for the float32 arithmetic on top."""
MAX_CANDIDATES = 16
PAIRS_PER_BLOCK = 2048
MIN_FEATURES, MIN_CLUSTERS = 256, 512


def screen_wins(n_clusters: int, n_features: int, device: str) -> bool:
    """Say whether screening with proof beats the plain float32 product at this shape (see ``docs/performance.md``).

    Only on processors that multiply bfloat16 natively. On CUDA candidate lists would need the host in every batch.
    """
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device == "cpu" and n_features >= MIN_FEATURES and n_clusters >= MIN_CLUSTERS and bool(native())


class Screen:
    """Centres ``[K, d]``, already shifted, in the forms that screening needs."""

    def __init__(self, centers: Tensor, half_norms: Tensor, proven: bool):
        """Round the centres and measure what rounding took; ``half_norms`` ``[K]`` float64."""
        self._centers = centers
        self._rounded = centers.to(torch.bfloat16)
        self._half_norms = half_norms.to(torch.float32)
        self._proven = proven
        self._radius = (2 * half_norms.max()).sqrt().to(torch.float32)
        back = self._rounded.to(torch.float32)
        self._rounded_radius = back.norm(dim=1).max()
        self._residual = (centers - back).norm(dim=1).max()

    def __call__(self, x: Tensor, gaps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels ``[b]``, gaps ``[b]`` (empty unless asked for), and a mask of the rows that must be done over.

        ``x`` ``[b, d]`` float32 holds rows shifted like the centres. Without proof labels and gaps are those of the
        screened scores and no row is done over.
        """
        if self._proven:
            return self._rescore(x, *self.candidates(x, gaps), gaps)
        scores = (x.to(torch.bfloat16) @ self._rounded.T).to(torch.float32).neg_().add_(self._half_norms)
        labels, differences = best_two(scores, gaps)
        return labels, differences, labels.new_zeros(0, dtype=torch.bool)

    def candidates(self, x: Tensor, gaps: bool) -> tuple[Tensor, Tensor]:
        """Return row and centre of every pair that can be the nearest (or second, if ``gaps``), in row order."""
        rounded = x.to(torch.bfloat16)
        lower = (rounded @ self._rounded.T).to(torch.float32).mul_(-1 - OUTPUT_ROUNDING).add_(self._half_norms)
        index = argmin(lower)[:, None]
        least = lower.gather(1, index)
        if gaps and lower.shape[1] > 1:
            index = torch.cat([index, argmin(lower.scatter_(1, index, torch.inf))[:, None]], 1)
            lower.scatter_(1, index[:, :1], least)
            least = lower.gather(1, index)
        products = (self._half_norms[index] - least).abs()  # (1 + u) |p|
        upper = (least + 2 * OUTPUT_ROUNDING * products).amax(1)
        back = rounded.to(torch.float32)
        error = (x - back).norm(dim=1) * self._radius
        error += back.norm(dim=1) * (self._residual + (x.shape[1] + 8) * 2.0**-23 * self._rounded_radius)
        error += 2.0**-22 * self._half_norms.max()
        threshold = upper + 2 * error
        threshold += 2.1 * OUTPUT_ROUNDING * threshold.clamp_min(0)
        flat = torch.from_numpy(np.flatnonzero(lower.numpy() <= threshold.numpy()[:, None]))
        rows = flat.div(lower.shape[1], rounding_mode="floor")
        return rows, flat - rows * lower.shape[1]

    def _rescore(self, x: Tensor, rows: Tensor, columns: Tensor, gaps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Compare candidates by float32 distances; rows with too many of them are left to be done over."""
        counts = torch.bincount(rows, minlength=len(x))
        starts = counts.cumsum(0) - counts
        doubtful = counts > MAX_CANDIDATES
        kept = ~doubtful[rows]
        rows, columns, place = rows[kept], columns[kept], (torch.arange(len(rows)) - starts[rows])[kept]
        width = int(counts[~doubtful].max()) if len(place) else 1
        distances = x.new_full((len(x), max(width, 1 + gaps)), torch.inf)
        centers = columns.new_zeros(len(x), distances.shape[1])
        centers[rows, place] = columns
        for some in torch.arange(len(rows)).split(PAIRS_PER_BLOCK):
            difference = x[rows[some]] - self._centers[columns[some]]
            distances[rows[some], place[some]] = torch.linalg.vecdot(difference, difference)
        best, gap = best_two(distances, gaps)
        return centers.gather(1, best[:, None])[:, 0], gap.div_(2), doubtful


def best_two(scores: Tensor, gaps: bool) -> tuple[Tensor, Tensor]:
    """Return the index of the least score of each row and, if ``gaps``, twice the difference to the second least.

    ``scores`` ``[b, K]`` float32 is overwritten. The difference is infinite for K = 1, and empty unless asked for.
    """
    labels = argmin(scores)
    if not gaps:
        return labels, scores.new_empty(0)
    index = labels[:, None]
    least = scores.gather(1, index)[:, 0]
    scores.scatter_(1, index, torch.inf)
    return labels, (scores.amin(1) - least).mul_(2)


def argmin(scores: Tensor) -> Tensor:
    """Return the first index of the least entry of each row; on a CPU numpy's is twelve times as fast as torch's."""
    if scores.is_cpu:
        return torch.from_numpy(scores.numpy().argmin(1))
    return scores.argmin(1)
