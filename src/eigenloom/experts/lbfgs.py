"""Limited-memory BFGS with strong Wolfe steps and a preconditioner, one iteration at a time and resumable.

Nocedal and Wright, "Numerical optimization" (2006), algorithms 7.4, 3.5 and 3.6.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]
Preconditioner = Callable[[Tensor], Tensor]
_SUFFICIENT, _CURVATURE = 1e-4, 0.9
_MOST_TRIALS = 12


@dataclass
class Descent:
    """A minimisation under way.

    Fields: point ``x [n]``; ``value`` and ``gradient [n]`` there; ``steps`` and ``changes``, the last moves and what
    they did to the gradient; ``evaluations`` so far; ``stalled``, whether no step lowers the value any more.
    """

    x: Tensor
    value: float
    gradient: Tensor
    history: int = 10
    steps: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)
    evaluations: int = 1
    stalled: bool = False

    @classmethod
    def start(cls, function: Function, x: Tensor, history: int = 10) -> "Descent":
        """Evaluate once."""
        value, gradient = function(x)
        return cls(x, value, gradient, history)

    def iterate(self, function: Function, precondition: Preconditioner) -> None:
        """Make one step; where none lowers the value, forget the history and, at the second time, stall."""
        direction = -self._times_inverse_hessian(self.gradient, precondition)
        slope = float(torch.dot(direction, self.gradient))
        found = self._search(function, direction, slope) if slope < 0 else None
        if found is None:
            self.stalled = not self.steps
            self.steps, self.changes = [], []
            return
        step, self.value, gradient = found
        moved, change = step * direction, gradient - self.gradient
        if float(torch.dot(moved, change)) > 1e-10 * float(torch.dot(change, change)):
            self.steps, self.changes = [*self.steps, moved], [*self.changes, change]
            if len(self.steps) > self.history:
                self.steps, self.changes = self.steps[1:], self.changes[1:]
        self.x, self.gradient = self.x + moved, gradient

    def _times_inverse_hessian(self, gradient: Tensor, precondition: Preconditioner) -> Tensor:
        """Return the two-loop product, the preconditioner scaled by the last step."""
        q, weights = gradient.clone(), []
        rhos = [1 / float(torch.dot(change, step)) for step, change in zip(self.steps, self.changes, strict=True)]
        for step, change, rho in zip(reversed(self.steps), reversed(self.changes), reversed(rhos), strict=True):
            weight = rho * float(torch.dot(step, q))
            q.sub_(change, alpha=weight)
            weights.append(weight)
        q = precondition(q)
        if self.steps:
            last = self.changes[-1]
            q.mul_(1 / (rhos[-1] * float(torch.dot(last, precondition(last)))))
        for step, change, rho, weight in zip(self.steps, self.changes, rhos, reversed(weights), strict=True):
            q.add_(step, alpha=weight - rho * float(torch.dot(change, q)))
        return q

    def _search(self, function: Function, direction: Tensor, slope: float) -> tuple[float, float, Tensor] | None:
        """Return a step that meets the strong Wolfe conditions, or the best that lowers the value; None without one."""
        low, low_value, low_slope = 0.0, self.value, slope
        high: tuple[float, float] | None = None
        step, best = 1.0, None
        for _ in range(_MOST_TRIALS):
            value, gradient = function(self.x + step * direction)
            self.evaluations += 1
            here = float(torch.dot(gradient, direction))
            finite = value < float("inf")
            if finite and value < self.value and (best is None or value < best[1]):
                best = (step, value, gradient)
            if not finite or value > self.value + _SUFFICIENT * step * slope or (low > 0 and value >= low_value):
                high = (step, value)
            elif abs(here) <= -_CURVATURE * slope:
                return step, value, gradient
            elif here > 0:
                high = (low, low_value)
                low, low_value, low_slope = step, value, here
            else:
                low, low_value, low_slope = step, value, here
            step = 2 * step if high is None else _between(low, low_value, low_slope, *high)
        return best


def _between(low: float, low_value: float, low_slope: float, high: float, high_value: float) -> float:
    """Return the minimum of the parabola through two points and a slope, kept off the ends."""
    width = high - low
    bend = high_value - low_value - low_slope * width
    share = -low_slope * width / (2 * bend) if 0 < bend < float("inf") else 0.5
    return low + min(max(share, 0.1), 0.9) * width
