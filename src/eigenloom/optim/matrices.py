"""One step of the matrix rules: momentum, shaping or orthogonalization of stacks, step size, decay."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenloom.linalg.orthogonalize import orthogonalize
from eigenloom.optim.in_place import lies_well, update_in_place
from eigenloom.optim.settings import SHAPED
from eigenloom.optim.shape import find_spike, root_mean_square, start_basis, working_dtype
from eigenloom.optim.stacks import Bucket, Geometry, Piece, gather, geometry, matrix_shape, rows_of

State = MutableMapping[Tensor, dict[str, Tensor]]
RMS = 0.2
"""Root mean square of an update at learning rate 1: about that of AdamW (Liu et al., arXiv 2502.16982)."""
SAFE = 1e12
"""Norms between the reciprocal of this and this square without loss in float32."""


def matrix_state(group: Mapping[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
    """Return the state of a group at step 0: momenta of its parameters, start bases with the stacks' first members."""
    state = {
        p: {
            "step": torch.zeros(()),
            "momentum_buffer": torch.zeros(p.shape, dtype=working_dtype(p.dtype), device=p.device),
        }
        for p in group["params"]
    }
    for number, stack in enumerate(group["stacks"]):
        owner = group["params"][stack[0][0]]
        shape = stack_geometry(group, number)
        if shape.rank:
            side = shape.a if group["ritz"] else shape.b
            start = start_basis(side, shape.tracked, group["seed"], number)
            state[owner][f"basis_{number}"] = start.to(state[owner]["momentum_buffer"]).contiguous()
    return state


def stack_geometry(group: Mapping[str, Any], number: int) -> Geometry:
    """Return the geometry of a whole stack."""
    stack = group["stacks"][number]
    columns = matrix_shape(group["params"][stack[0][0]], stack[0][0] in group["transposed"])[1]
    return geometry(stack[0][2], columns, len(stack), group)


def advance(
    group: Mapping[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], state: State
) -> Sequence[Tensor]:
    """Move the momenta on and return what is to be shaped: these, or Nesterov's look ahead."""
    torch._foreach_add_([state[p]["step"] for p in params], 1)
    buffers = [state[p]["momentum_buffer"] for p in params]
    grads = [grad.to(buffer.dtype) for grad, buffer in zip(grads, buffers, strict=True)]
    momentum = group["momentum"]
    if group["damped"]:
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    return torch._foreach_add(grads, buffers, alpha=momentum) if group["nesterov"] else buffers


def update_bucket(
    group: Mapping[str, Any], bucket: Bucket, sources: Mapping[int, Tensor], state: State
) -> tuple[Tensor, Tensor]:
    """Update the parameters of a bucket in place.

    Returns:
        The root mean square of each layer's update ``[n K]``, and by what it was multiplied.
    """
    shape = bucket.geometry
    if lies_well(group, bucket):
        norms = [torch.linalg.vector_norm(rows_of(sources[piece[0]], piece, False)) for piece in bucket.pieces]
        known = [float(norm) / (shape.rows * shape.columns) ** 0.5 for norm in norms]
        if all(1 / SAFE < size < SAFE for size in known) and (
            updated := update_in_place(group, bucket, sources, known, state, RMS * float(group["lr"]))
        ):
            return updated
    batch, scales, sound = scaled(
        gather(bucket, sources, group["transposed"]), shape.members if group["joint_rms"] else 1
    )
    scales = scales.view(-1, shape.members)
    if group["joint_rms"]:
        scales = _joint(scales, torch.isfinite(scales))
    if group["algorithm"] in SHAPED:
        if shape.rank:
            _shape(group, bucket, batch, scales, sound, state)
    else:
        batch = _orthogonalize(group, shape, batch, scales)
    sizes = root_mean_square(batch)
    steps = _step_sizes(group, shape, sizes, sound)
    _apply(group, bucket, batch, steps)
    return sizes, steps


def scaled(batch: Tensor, joined: int) -> tuple[Tensor, Tensor, bool]:
    """Return a batch of layers and the root mean square of each ``[n]``, at a scale where squares are safe.

    ``joined`` consecutive layers keep their relation.

    Layers whose size is moderate stay as they are, and are known to be sound, where that can be seen without waiting
    for a device; it saves two passes and all masks. Everything that follows is free of the layers' scale.
    """
    sizes = root_mean_square(batch)
    if batch.device.type == "cpu" and all(1 / SAFE < size < SAFE for size in sizes.tolist()):
        return batch, sizes, True
    peak = batch.abs().amax((1, 2))
    peak = torch.where(torch.isfinite(peak), peak, 0).view(-1, joined).amax(1, keepdim=True).expand(-1, joined)
    batch = batch.div_(torch.where(peak > 0, peak, 1).reshape(-1, 1, 1))
    return batch, root_mean_square(batch), False


def _joint(sizes: Tensor, fit: Tensor) -> Tensor:
    """Replace the sizes ``[n, K]`` of each stack's finite layers by their common root mean square."""
    common = torch.where(fit, sizes, 0).square().sum(1, keepdim=True) / fit.sum(1, keepdim=True).clamp_min(1)
    return torch.where(fit, common.sqrt(), sizes)


def _shape(group: Mapping[str, Any], bucket: Bucket, batch: Tensor, scales: Tensor, sound: bool, state: State) -> None:
    """Lower the spikes of a batch in place, and move the bases on."""
    shape, n_iter = bucket.geometry, group["cold_iter" if bucket.cold else "n_iter"]
    whole = [group["stacks"][number] for number in bucket.stacks]
    holders = [state[group["params"][stack[0][0]]] for stack in whole]
    bases = [holder[f"basis_{number}"] for holder, number in zip(holders, bucket.stacks, strict=True)]
    complete = all(len(stack) == shape.members for stack in whole)
    if complete:
        starts = bases
    else:
        here = [bucket.pieces[i : i + shape.members] for i in range(0, len(bucket.pieces), shape.members)]
        starts = [_narrowed(group, *each, shape) for each in zip(bases, whole, here, strict=True)]
    layers = batch if shape.shares_columns else batch.mT
    start = torch.stack(starts)
    spike = find_spike(layers, scales, start, shape.rank, n_iter, group["ritz"], sound)
    if shape.shares_columns:
        batch.baddbmm_(spike.own.mT, spike.shared)
    else:
        batch.baddbmm_(spike.shared.mT, spike.own)
    if complete:
        torch._foreach_copy_(bases, list(spike.basis.unbind(0)))


def _narrowed(
    group: Mapping[str, Any], basis: Tensor, whole: Sequence[Piece], here: Sequence[Piece], shape: Geometry
) -> Tensor:
    """Fit a basis to a stack that misses members this time; it serves as a start and is not kept."""
    if not group["ritz"]:  # a right basis: its rows belong to members
        rows = basis.view(len(whole), -1, basis.shape[1])
        basis = rows[[list(whole).index(piece) for piece in here]].flatten(0, 1)
    return basis[:, : shape.tracked]


def _orthogonalize(group: Mapping[str, Any], shape: Geometry, batch: Tensor, scales: Tensor) -> Tensor:
    """Orthogonalize the stacks of a batch."""
    fit = torch.isfinite(scales)
    if shape.members > 1:
        divisor = torch.where(fit & (scales > 0), scales, 1)
        batch = torch.where(fit.view(-1, 1, 1), batch / divisor.view(-1, 1, 1), 0)
    layers = batch.view(-1, shape.members, shape.rows, shape.columns)
    Z = (layers if shape.shares_columns else layers.transpose(2, 3)).reshape(-1, shape.b, shape.a)
    Z = orthogonalize(Z, group["orthogonalization"], group["orthogonalization_steps"])
    c = shape.b // shape.members
    layers = Z.reshape(-1, c, shape.a)
    return torch.where(fit.view(-1, 1, 1), layers if shape.shares_columns else layers.mT, torch.nan)


def _step_sizes(group: Mapping[str, Any], shape: Geometry, sizes: Tensor, sound: bool) -> Tensor:
    """Return by what each layer's update ``[n K]`` is multiplied; NaN where it is not finite."""
    lr, rows, columns = group["lr"], shape.rows, shape.columns
    whole = sizes
    if group["scale"] == "rms":
        if group["joint_rms"]:
            by_stack = sizes.view(-1, shape.members)
            sizes = _joint(by_stack, torch.isfinite(by_stack)).flatten()
        steps = torch.where(sizes > 0, RMS * lr / sizes, 0)
    else:
        factors = {
            "match_rms": RMS * max(rows, columns) ** 0.5,
            "spectral": (rows / columns) ** 0.5,
            "original": max(1.0, rows / columns) ** 0.5,
        }
        steps = torch.ones_like(sizes) * (factors[group["scale"]] * lr)
    return steps if sound else torch.where(torch.isfinite(whole), steps, torch.nan)


def _apply(group: Mapping[str, Any], bucket: Bucket, batch: Tensor, steps: Tensor) -> None:
    """Decay and move each piece: ``W <- (1 - lr decay) W - step O``, rounded once into narrower parameters."""
    decay = group["weight_decay"]
    kept = 1 - group["lr"] * decay
    targets, updates = [], []
    for (i, first, n), update in zip(bucket.pieces, batch.unbind(0), strict=True):
        p = group["params"][i]
        target = p.T if i in group["transposed"] else p
        if n != target.shape[0]:
            target = target.narrow(0, first, n)
        targets.append(target)
        updates.append(update if target.ndim == 2 else update.reshape(target.shape))
    narrow = targets[0].dtype != batch.dtype
    wide = [target.to(batch.dtype) for target in targets] if narrow else targets
    if batch.device.type == "cpu":
        for target, update, step in zip(wide, updates, steps.unbind(0), strict=True):
            (target.mul_(kept) if decay else target).addcmul_(update, step, value=-1)
    else:
        batch.mul_(steps.view(-1, 1, 1))
        if decay:
            torch._foreach_mul_(wide, kept)
        torch._foreach_sub_(wide, updates)
    if narrow:
        torch._foreach_copy_(targets, wide)
