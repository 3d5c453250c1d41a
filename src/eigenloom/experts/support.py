"""Soft control of how many atoms an expert uses: a controller sees the count, never an entropy.

Both kinds move their knob by ``exp(eta (support / target - 1))``, in opposite senses: a higher temperature spreads
codes, a higher penalty removes them. Both stand still for the last quarter of the sweeps, so that the end is monotone.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from eigenloom.errors import ConfigError

FREEZE = 0.75
"""Share of the sweeps after which the knob stays."""
THRESHOLD = 1e-2
"""Codes below this share of an expert's largest do not count, and are set to zero when the sweeps end."""


@dataclass
class SupportControl:
    """``target`` atoms per expert out of ``num_bases``; ``eta``, how fast; ``knob``, within ``limits``.

    Raises:
        ConfigError: the target is below 1 or above the number of bases.
    """

    target: int
    num_bases: int
    eta: float = 0.5
    knob: float = 0.1
    limits: tuple[float, float] = (1e-4, 0.9)
    sense = 1
    """1 where a higher knob removes support, -1 where it adds some."""

    def __post_init__(self) -> None:
        """Check the target."""
        if not 1 <= self.target <= self.num_bases:
            raise ConfigError(f"support: {self.target} atoms per expert out of {self.num_bases}; use 1 to that many")

    def frozen(self, step: int, n_steps: int) -> bool:
        """Say whether the knob stands still."""
        return step >= math.ceil(FREEZE * n_steps)

    def update(self, support: float, step: int, n_steps: int) -> None:
        """Move the knob after a step in which experts used ``support`` atoms on average."""
        if not self.frozen(step, n_steps):
            low, high = self.limits
            self.knob = min(max(self.knob * math.exp(self.sense * self.eta * (support / self.target - 1)), low), high)


@dataclass
class PenaltyControl(SupportControl):
    """Of signed codes with an l1 penalty, a share of that which makes all zero: support above target raises it."""


@dataclass
class TemperatureControl(SupportControl):
    """Of softmax codes: support above the target lowers the temperature."""

    knob: float = 1.0
    limits: tuple[float, float] = (1e-2, 10.0)
    sense = -1


def support_of(codes: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return how many codes ``[E]`` of each expert exceed a share of its largest."""
    return above(codes, threshold).sum(1)


def above(codes: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return which codes ``[E, m]`` exceed a share of their expert's largest."""
    size = codes.abs()
    return size > threshold * size.amax(1, keepdim=True)
