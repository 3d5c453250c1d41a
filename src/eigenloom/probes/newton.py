"""Newton's method for many two-parameter convex problems at once, each with its own step cap and its own end."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TOLERANCE = 1e-8
ARMIJO = 1e-4
FIRST_CAP = 4.0
MAX_ITER = 50


class Pairs(Protocol):
    """``p`` convex objectives of two parameters; ``index`` (ascending, int64) picks the ones to evaluate."""

    def newton(self, index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients and full Newton steps, both ``[2, p']`` float64, at ``x [2, p']``."""
        ...

    def value(self, index: Tensor, x: Tensor) -> Tensor:
        """Return the objectives ``[p']`` float64 at ``x [2, p']``."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """Minimizers ``x [2, p]`` float64, ``steps [p]`` int32 (evaluations), ``converged [p]`` bool."""

    x: Tensor
    steps: Tensor
    converged: Tensor


def minimize(pairs: Pairs, start: Tensor, max_iter: int = MAX_ITER) -> Solution:
    """Minimize every objective from ``start [2, p]`` float64.

    A step is cut so that neither parameter moves more than the pair's cap: 4 at first, doubled after an accepted
    cut step, halved with the step when the objective failed to fall. A pair is done when its full step is at most
    ``1e-8 (1 + |x0| + |x1|)``; that last step is still taken.

    Whether the objective fell is read off the slope at the new point where that proves it: a convex function whose
    slope along the step is still negative has fallen all the way, and a slope turned to less than a quarter of the
    old one is accepted as well (Hager and Zhang, SIAM J. Optim. 2005: Armijo's condition in terms of slopes, immune
    to the rounding of values that hardly differ). In between, values are compared: Armijo with factor 1e-4.
    """
    x = start.clone()
    steps = torch.zeros(x.shape[1], dtype=torch.int32, device=x.device)
    converged = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    index = torch.arange(x.shape[1], device=x.device)
    here = start.clone()
    cap = torch.full((x.shape[1],), FIRST_CAP, dtype=torch.float64, device=x.device)
    gradient, step = pairs.newton(index, here)
    for turn in range(1, max_iter + 1):
        size = step.abs().amax(0)
        done = size <= TOLERANCE * (1 + here.abs().sum(0))
        n_done = int(done.sum())
        if n_done:
            finished = index[done]
            x[:, finished] = here[:, done] + step[:, done]
            steps[finished] = turn
            converged[finished] = True
            if n_done == len(index):
                return Solution(x, steps, converged)
            keep = torch.nonzero(~done)[:, 0]
            index, cap, size = index[keep], cap[keep], size[keep]
            here, gradient, step = here[:, keep], gradient[:, keep], step[:, keep]
        cut = cap < size
        move = step * torch.clamp(cap / size, max=1.0)
        trial = here + move
        trial_gradient, trial_step = pairs.newton(index, trial)
        before = (gradient * move).sum(0)
        after = (trial_gradient * move).sum(0)
        fell = after <= -0.25 * before
        if not bool(fell.all()):
            doubtful = torch.nonzero(~fell)[:, 0]
            values = [pairs.value(index[doubtful], at[:, doubtful]) for at in (here, trial)]
            slack = 1e-15 + 1e-14 * values[0].abs()
            fell[doubtful] = values[1] <= values[0] + ARMIJO * before[doubtful] + slack
            # a value that is no number never passes, so such a step is halved like any other failure
        cap = torch.where(fell, torch.where(cut, 2 * cap, cap), move.abs().amax(0) / 2)
        here = torch.where(fell, trial, here)
        gradient = torch.where(fell, trial_gradient, gradient)
        step = torch.where(fell, trial_step, step)
    x[:, index] = here
    steps[index] = max_iter
    return Solution(x, steps, converged)
