"""Soft control of how many atoms an expert uses: a controller sees the count, never an entropy.

Both move their knob by ``exp(eta (support / target - 1))``, in opposite senses: a higher temperature spreads codes
and a higher penalty removes them. Both stand still for the last quarter of the sweeps, so that the end is monotone.
"""

import math
from dataclasses import dataclass

from eigenloom.errors import ConfigError

FREEZE = 0.75
"""Share of the sweeps after which the knob stays."""


@dataclass
class SupportControl:
    """``target`` atoms per expert out of ``num_bases``; ``eta``, how fast.

    Raises:
        ConfigError: the target is below 1 or above the number of bases.
    """

    target: int
    num_bases: int
    eta: float = 0.5

    def __post_init__(self) -> None:
        """Check the target."""
        if not 1 <= self.target <= self.num_bases:
            raise ConfigError(
                f"support: {self.target} atoms per expert out of {self.num_bases} bases; use 1 to that many"
            )

    def frozen(self, step: int, n_steps: int) -> bool:
        """Say whether the knob stands still."""
        return step >= math.ceil(FREEZE * n_steps)

    def _factor(self, support: float) -> float:
        """Return the factor by which a knob that adds support is divided."""
        return math.exp(self.eta * (support / self.target - 1))


@dataclass
class TemperatureControl(SupportControl):
    """Of softmax codes: support above the target lowers the temperature."""

    temperature: float = 1.0
    limits: tuple[float, float] = (1e-3, 1e3)

    def update(self, support: float, step: int, n_steps: int) -> None:
        """Move the temperature after a step in which experts used ``support`` atoms on average."""
        if not self.frozen(step, n_steps):
            low, high = self.limits
            self.temperature = min(max(self.temperature / self._factor(support), low), high)


@dataclass
class PenaltyControl(SupportControl):
    """Of codes with an l1 penalty, a share of the one that makes all zero: support above the target raises it."""

    penalty: float = 0.05
    limits: tuple[float, float] = (1e-4, 0.9)

    def update(self, support: float, step: int, n_steps: int) -> None:
        """Move the penalty after a step in which experts used ``support`` atoms on average."""
        if not self.frozen(step, n_steps):
            low, high = self.limits
            self.penalty = min(max(self.penalty * self._factor(support), low), high)
