"""Stacks of large matrices on a CPU, shaped where they lie: no batch is gathered, no pass is spent on a shaped copy.

The mathematics is that of ``shape.find_spike`` with Ritz pairs. ``O_j = M_j + s_j own_j shared^T`` goes into the
weights as one product and one addition; its root mean square comes from the small factors. Below some size one batch
for all stacks is faster, and on a device it always is.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenloom.optim.shape import tail_level
from eigenloom.optim.stacks import Bucket, Geometry, matrix_shape, rows_of

LARGE = 256 * 256
"""Entries of a layer from which on memory traffic, not the number of calls, decides the time."""
ALIGNED = 16
"""Rows of a multiple of this length start alike for BLAS, whether they are cut out of a fused weight or not."""
CANCELLED = 1e-3
"""Below this share of the squared norm, the norm of what is left is not taken from differences."""


def lies_well(group: Mapping[str, Any], bucket: Bucket) -> bool:
    """Say whether a bucket can be updated in place; the same for a fused weight as for its parts."""
    shape, first = bucket.geometry, group["params"][bucket.pieces[0][0]]
    numbers = {i for i, _, _ in bucket.pieces}
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and shape.rank > 0
        and shape.rows * shape.columns >= LARGE
        and shape.columns % ALIGNED == 0
        and group["ritz"]
        and not group["joint_rms"]
        and numbers.isdisjoint(group["transposed"])
        and all(group["params"][i].is_contiguous() for i in numbers)
        and sum(len(group["stacks"][number]) for number in bucket.stacks) == len(bucket.pieces)
    )


def update_in_place(
    group: Mapping[str, Any],
    bucket: Bucket,
    sources: Mapping[int, Tensor],
    sizes: Sequence[float],
    state: MutableMapping[Tensor, dict[str, Tensor]],
    step_size: float,
) -> tuple[Tensor, Tensor] | None:
    """Update the parameters of a bucket and its bases.

    Args:
        group: completed.
        bucket: one for which ``lies_well`` holds.
        sources: what is shaped, by number of the parameter; left as it is.
        sizes: root mean square of each piece, positive and finite.
        state: of the optimizer.
        step_size: root mean square of the update of each layer.

    Returns:
        As ``matrices.update_bucket``; None, and nothing is done, where so little is left of a layer that its size
        cannot be told from the factors.
    """
    shape, K = bucket.geometry, bucket.geometry.members
    n_iter = group["cold_iter" if bucket.cold else "n_iter"]
    found = []
    for place, number in enumerate(bucket.stacks):
        pieces = bucket.pieces[place * K : (place + 1) * K]
        layers = [rows_of(sources[piece[0]], piece, False) for piece in pieces]
        basis = state[group["params"][group["stacks"][number][0][0]]][f"basis_{number}"]
        scales = sizes[place * K : (place + 1) * K]
        found.append((pieces, layers, scales, basis, *_spike(shape, layers, scales, basis, n_iter)))
    rests = torch.cat([rest for *_, rest in found])
    if min(rests.tolist()) < CANCELLED:
        return None
    kept = 1 - float(group["lr"]) * group["weight_decay"]
    roots = rests.sqrt().tolist()
    steps: list[float] = []
    for pieces, layers, scales, basis, moved, owns, shared, _ in found:
        for piece, layer, scale, own in zip(pieces, layers, scales, owns, strict=True):
            p = group["params"][piece[0]]
            target = p.view(matrix_shape(p, False)).narrow(0, piece[1], piece[2])
            step = step_size / (scale * roots[len(steps)])
            factors = (own, shared.T) if shape.shares_columns else (shared, own.T)
            target.addmm_(*factors, beta=kept, alpha=-step * scale).add_(layer, alpha=-step)
            steps.append(step)
        basis.copy_(moved)
    factor = rests.new_tensor(steps)
    return step_size / factor, factor


def _spike(
    shape: Geometry, layers: Sequence[Tensor], scales: Sequence[float], basis: Tensor, n_iter: int
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Track the spike of one stack.

    Returns:
        The basis moved on ``[a, q]``; ``own`` of each layer ``[c, k]`` and ``shared`` ``[a, k]``, whose product is what
        the scaled layer gains; the share of each layer's squared norm that is left, float64 ``[K]``.
    """
    sides = [layer if shape.shares_columns else layer.T for layer in layers]
    k, c = shape.rank, sides[0].shape[0]
    u = basis
    for _ in range(n_iter):
        rows = [(u.T @ side.T).div_(scale) for side, scale in zip(sides, scales, strict=True)]
        v = torch.linalg.qr(torch.cat(rows, dim=1).T).Q
        rows = [(own.T @ side).div_(s) for own, side, s in zip(v.split(c), sides, scales, strict=True)]
        u, triangle = torch.linalg.qr(torch.stack(rows).sum(0).T)
        p, values, qt = torch.linalg.svd(triangle)
        u, v = u @ p, v @ qt.T
    total = float(len(layers) * sides[0].numel())
    gains = tail_level(values[None, :k], values.new_full((1,), total), min(shape.a, shape.b))[1][0]
    shared, owns = u[:, :k].contiguous(), v[:, :k].split(c)
    images = torch.stack([qt[:k] @ each for each in rows])  # each scaled layer times its part of every right vector
    touched = (images * shared.T).sum(2, dtype=torch.float64)
    held = torch.stack(owns).square().sum(1, dtype=torch.float64)
    wide = gains.double()
    rest = 1 + (2 * touched @ wide + held @ wide.square()) / sides[0].numel()
    return u, [own * gains for own in owns], shared, rest
