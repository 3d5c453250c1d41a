"""AdamW (Loshchilov and Hutter, 2019), the rule of everything that is no matrix; bits equal ``torch.optim.AdamW``'s."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of one parameter at step 0, moments in its dtype."""
    zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone(memory_format=torch.preserve_format)}


def adamw_step(
    group: Mapping[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    state: MutableMapping[Tensor, dict[str, Tensor]],
) -> None:
    """Update ``params`` in place, operation by operation as ``torch.optim.AdamW(foreach=False)`` does."""
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = float(lr)
    steps, means, squares = ([state[p][key] for p in params] for key in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(steps, 1)
    counts = [float(step) for step in steps]
    if decay:
        torch._foreach_mul_(params, 1 - lr * decay)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(denominators, group["eps"])
    corrections = [1 - beta1**count for count in counts]
    if isinstance(lr, Tensor):  # on a device: its value must not be read here
        updates = torch._foreach_div(means, denominators)
        torch._foreach_div_(updates, corrections)
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(params, updates)
    else:
        torch._foreach_addcdiv_(params, means, denominators, [-(lr / correction) for correction in corrections])
