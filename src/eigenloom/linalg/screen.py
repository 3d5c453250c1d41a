"""A bfloat16 product that says which centres can be a row's nearest, and float32 distances that say which is.

The product ``p_j = x^.c_j^`` of rounded operands, itself rounded to bfloat16, stands for ``x.c_j`` with an error of
at most ``u |p_j| + a``. Here ``u`` bounds the rounding of the output and, with residuals that are *computed*,

    a = |x - x^| max|c| + |x^| max|c - c^| + (d + 8) 2^-23 |x^| max|c^| + 2^-22 max h

by Cauchy-Schwarz; the last two terms are the accumulation of products and of ``L`` in float32. Let ``h_j = |c_j|^2 /
2``, ``s_j = h_j - x.c_j`` the true score and ``L_j = h_j - (1 + u) p_j``. Then ``s_j <= L_j + 2u |p_j| + a``: the least
such upper end over some centres bounds the winner's score by ``T``. A centre with ``p_j >= 0`` has ``s_j >= L_j -
a``, so it can win only if ``L_j <= T + a``. One with ``p_j < 0`` has ``s_j >= L_j - a - 2u |p_j|``, and ``(1 - u) |p_j|
<= T + a`` if it wins. Hence *every* centre that can win has ``L_j <= T + a + 2.1 u max(T + a, 0)``, and the few that
do are compared by ``sum (x - c)^2`` in float32. For the two nearest, ``T`` is the second least upper end.

The code works with ``L / (1 + u)``, which needs no multiplication of the product.
"""

import numpy as np
import torch
from torch import Tensor

OUTPUT_ROUNDING = 2.0**-8
"""``u``: twice the unit roundoff of bfloat16, which leaves room for the float32 arithmetic on top."""
MAX_CANDIDATES = 32
PAIR_ELEMENTS = 1 << 17
MIN_FEATURES, MIN_ELEMENTS = 256, 1 << 20


def screen_wins(n_clusters: int, n_features: int, device: str) -> bool:
    """Say whether screening with proof beats the plain float32 product at this shape (see ``docs/performance.md``).

    Measured on a processor with AVX-512 bfloat16 and no AMX: 1.2-1.5x at d = 1024, K >= 1024; level at d = 256 and
    K = 4096; a loss below. Elsewhere bfloat16 products are emulated. On CUDA candidate lists would need the host in
    every batch.
    """
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device == "cpu" and n_features >= MIN_FEATURES and n_clusters * n_features >= MIN_ELEMENTS and bool(native())


class Screen:
    """Centres ``[K, d]``, already shifted, in the forms that screening needs."""

    def __init__(self, centers: Tensor, half_norms: Tensor):
        """Round the centres and measure what rounding took; ``half_norms`` ``[K]`` float64."""
        self._centers = centers
        self._rounded = (-centers).to(torch.bfloat16)
        self._half_norms = half_norms.to(torch.float32)
        self._reduced = self._half_norms / (1 + OUTPUT_ROUNDING)
        self._radius = (2 * half_norms.max()).sqrt().to(torch.float32)
        back = self._rounded.to(torch.float32)
        self._rounded_radius = back.norm(dim=1).max()
        self._residual = (centers + back).norm(dim=1).max()

    def scores(self, x: Tensor, out: Tensor) -> Tensor:
        """Return approximate scores ``h - x.c`` ``[b, K]`` float32, in ``out``, of shifted rows ``x``."""
        return out.copy_(x.to(torch.bfloat16) @ self._rounded.T).add_(self._half_norms)

    def nearest(self, x: Tensor, gaps: bool, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return labels, squared distances, gaps (empty unless asked for), and a mask of rows to be done over.

        ``x`` ``[b, d]`` holds rows shifted like the centres; ``out`` ``[b, K]`` is scratch.
        """
        rows, columns = self.candidates(x, gaps, out)
        counts = torch.bincount(rows, minlength=len(x))
        doubtful = counts > MAX_CANDIDATES
        place = torch.arange(len(rows)) - (counts.cumsum(0) - counts).index_select(0, rows)
        if doubtful.any():
            kept = (~doubtful).index_select(0, rows).nonzero()[:, 0]
            rows, columns, place = rows[kept], columns[kept], place[kept]
        # Candidates of a row are in ascending order, so the first of the least is the lowest index.
        width = max(int(place.max()) + 1 if len(place) else 1, 2)
        cells = rows * width + place
        distances = x.new_full((len(x) * width,), torch.inf)
        distances[cells] = pair_distances(x, self._centers, rows, columns)
        names = columns.new_zeros(len(x) * width)
        names[cells] = columns
        distances = distances.view(-1, width)
        best = argmin(distances)[:, None]
        least = distances.gather(1, best)
        labels = names.view(-1, width).gather(1, best)[:, 0]
        if not gaps:
            return labels, least[:, 0], x.new_empty(0), doubtful
        second = distances.scatter(1, best, torch.inf).amin(1)
        return labels, least[:, 0], second - least[:, 0], doubtful

    def candidates(self, x: Tensor, gaps: bool, out: Tensor) -> tuple[Tensor, Tensor]:
        """List the pairs of row and centre that can be nearest (or second, if ``gaps``), ascending."""
        rounded = x.to(torch.bfloat16)
        back = rounded.to(torch.float32)
        error = back.norm(dim=1) * (self._residual + (x.shape[1] + 8) * 2.0**-23 * self._rounded_radius)
        error += back.sub_(x).norm(dim=1) * self._radius + 2.0**-22 * self._half_norms.max()
        lower = out.copy_(rounded @ self._rounded.T).add_(self._reduced)
        column = argmin(lower)
        least = lower.gather(1, column[:, None])
        bound = self._upper(least[:, 0], column)
        if gaps and lower.shape[1] > 1:
            lower.scatter_(1, column[:, None], torch.inf)
            second = argmin(lower)
            bound = torch.maximum(bound, self._upper(lower.gather(1, second[:, None])[:, 0], second))
            lower.scatter_(1, column[:, None], least)
        bound += 2 * error
        bound += 2.1 * OUTPUT_ROUNDING * bound.clamp_min(0)
        flat = _true_places(lower.numpy() <= (bound / (1 + OUTPUT_ROUNDING)).numpy()[:, None])
        rows = flat.div(lower.shape[1], rounding_mode="floor")
        return rows, flat - rows * lower.shape[1]

    def _upper(self, least: Tensor, column: Tensor) -> Tensor:
        """Return the upper end of a centre's score, but for ``a``, from its ``L / (1 + u)``."""
        product = (self._reduced.index_select(0, column) - least).abs()
        return (1 + OUTPUT_ROUNDING) * least + 2 * OUTPUT_ROUNDING * product


def _true_places(mask: np.ndarray) -> Tensor:
    """Return the flat places of the true entries, eight entries looked at in one go."""
    flat = mask.reshape(-1)
    whole = flat.size // 8 * 8
    eights = np.flatnonzero(flat[:whole].view(np.int64))
    which, place = flat[:whole].reshape(-1, 8)[eights].nonzero()
    tail = whole + np.flatnonzero(flat[whole:])
    return torch.from_numpy(np.concatenate([eights[which] * 8 + place, tail]))


def pair_distances(x: Tensor, centers: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``sum (x[rows] - centers[columns])^2`` ``[p]`` float32, in blocks that stay in cache."""
    block = max(1, PAIR_ELEMENTS // x.shape[1])
    left, right = (x.new_empty(min(block, len(rows)), x.shape[1]) for _ in range(2))
    distances = x.new_empty(len(rows))
    for row, column, out in zip(rows.split(block), columns.split(block), distances.split(block), strict=True):
        one, other = left[: row.shape[0]], right[: row.shape[0]]
        torch.index_select(x, 0, row, out=one)
        torch.index_select(centers, 0, column, out=other)
        torch.linalg.vecdot(one.sub_(other), one, out=out)
    return distances


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
