"""How much of checkpoints a few directions carry, and how much of anything they would carry: two controls.

Everything here holds all checkpoints of a collection at once, ``[n, D]``; it is for small networks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.batches import generator
from eigenloom.sources.arrays import ArrayRows
from eigenloom.sources.checkpoint_layout import WeightLayout

FITTED, HELD_OUT = "fitted", "held_out"


@dataclass(frozen=True)
class Places:
    """Coordinates of checkpoints about the mean of the fitted ones.

    Fields: ``scores [n, k]`` and ``squares [n]``, ``||x - mean||^2``, float64; ``held_out [n]``, bool.
    """

    scores: Tensor
    squares: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, rows: Tensor, mean: Tensor, components: Tensor, held_out: Tensor) -> "Places":
        """Project rows ``[n, D]`` on orthonormal ``components [D, k]`` about ``mean [D]``."""
        centred = rows - mean
        return cls((centred @ components).double(), centred.double().square().sum(1), held_out)

    def nmse(self, k: int) -> dict[str, float]:
        """Return the share of squared distance from the mean that ``k`` components leave, of fitted and held-out rows.

        1 is the mean itself; sums run over the rows of a set, so that far checkpoints count for more than near ones.
        """
        left = (self.squares - self.scores[:, :k].square().sum(1)).clamp_min(0)
        sets = {FITTED: ~self.held_out, HELD_OUT: self.held_out}
        return {name: float(left[chosen].sum() / self.squares[chosen].sum()) for name, chosen in sets.items()}


def variance_shares(variances: Tensor, total: float) -> list[float]:
    """Return the share of each component in the total variance."""
    return [float(v) / total for v in variances]


def random_components(n_features: int, k: int, seed: int) -> Tensor:
    """Return ``k`` random orthonormal directions ``[D, k]`` float32: the floor of any directions."""
    drawn = torch.randn(n_features, k, generator=generator(seed, "random weight directions"))
    return torch.linalg.qr(drawn).Q


def random_walk(rows: Tensor, seed: int) -> Tensor:
    """Return a random walk ``[n, D]`` float32 that starts where ``rows`` start and has their step norms.

    Steps are Gaussian and so nearly orthogonal; the first principal components of such a walk have shares
    ``6 / (pi j)^2`` of the variance where steps are equal (Antognini & Sohl-Dickstein 2018): two large components and
    a curved path are what chance alone looks like.
    """
    n_features = rows.shape[1]
    norms = (rows[1:] - rows[:-1]).double().norm(dim=1)
    steps = torch.randn(len(norms), n_features, generator=generator(seed, "random walk")) / n_features**0.5
    walk = torch.cat([rows[:1].double(), norms[:, None] * steps.double()]).cumsum(0)
    return walk.float()


def walk_control(
    rows: Tensor, trainings: Sequence[int], held_out: Tensor, k: int, seed: int
) -> tuple[Places, list[float]]:
    """Decompose random walks as the trainings were decomposed.

    Args:
        rows: checkpoints ``[n, D]``, those of a training consecutive and in time order.
        trainings: number of checkpoints of each training.
        held_out: ``[n]``, bool.
        k: components.
        seed: of the walks.

    Returns:
        Places of the walks' checkpoints, and the variance shares of their components.
    """
    walks = torch.cat([random_walk(part, seed + i) for i, part in enumerate(rows.split(list(trainings)))])
    basis = SRHTPCA.fit(ArrayRows(walks[~held_out]), seed=seed, n_components=k, method="dual")
    shares = variance_shares(basis.explained_variance, basis.total_variance)
    return Places.of(walks, basis.mean, basis.components, held_out), shares


def group_errors(residuals: Tensor, centred: Tensor, layout: WeightLayout) -> list[dict[str, Any]]:
    """Return the NMSE of each group of tensors: the parts of a network that names have in common.

    Args:
        residuals: ``x - x_rec`` ``[n, D]``.
        centred: ``x - mean`` ``[n, D]``.
        layout: of the columns.

    Returns:
        ``{"group", "n_numbers", "nmse"}`` in the order of the layout; ``nmse`` is null where nothing varies.
    """
    sums: dict[str, list[float]] = {}
    for entry in layout.entries:
        part = slice(entry.offset, entry.offset + entry.n_numbers)
        found = sums.setdefault(group_of(entry.name), [0, 0.0, 0.0])
        found[0] += entry.n_numbers
        found[1] += float(residuals[:, part].double().square().sum())
        found[2] += float(centred[:, part].double().square().sum())
    return [
        {"group": group, "n_numbers": int(n), "nmse": left / total if total > 0 else None}
        for group, (n, left, total) in sums.items()
    ]


def group_of(name: str) -> str:
    """Return a tensor's name up to its first number, that included; without one, its first word."""
    found = re.match(r"(?:[^.\d][^.]*\.)*?\d+(?=\.)", name)
    return found[0] if found else name.partition(".")[0]


def sketch_beside_exact(rows: Tensor, exact: SRHTPCA, seed: int) -> Mapping[str, float]:
    """Fit a sketch to the rows that ``exact`` was fitted to, and compare.

    Returns:
        ``residual_ratio``, squared error over that of the exact components, and ``largest_angle``, in degrees, between
        the two subspaces.
    """
    sketch = SRHTPCA.fit(ArrayRows(rows), seed=seed, n_components=exact.n_elements, method="srht")
    left = [float(b.residuals.square().sum()) for b in (sketch, exact)]
    overlap = torch.linalg.svdvals(sketch.components.double().T @ exact.components.double())
    angle = torch.rad2deg(torch.arccos(overlap.min().clamp(max=1)))
    return {"residual_ratio": left[0] / left[1] if left[1] > 0 else 1.0, "largest_angle": float(angle)}


def spread_out(numbers: Sequence[int], n: int) -> list[int]:
    """Return at most ``n`` of some numbers at equal distances, the last among them."""
    n = min(n, len(numbers))
    return [numbers[round((i + 1) * len(numbers) / n) - 1] for i in range(n)]
