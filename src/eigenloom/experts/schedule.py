"""How a budget of evaluations is spent: successive halving of starts, then of activations and their scales.

Budgets are counts, never seconds, so that the same seed gives the same bytes.
"""

from dataclasses import dataclass, replace

from eigenloom.experts.settings import SeedingConfig, SeedingMethod

LINEAR_SHARE = 0.3
"""Of the evaluations, where an activation is tried as well."""
SCALES = (0.5, 1.0, 2.0)
_FEW = 1000
"""RMS of the pre-activation where an activation takes over from the linear model, which small scales are.

Below ``_FEW`` evaluations in all only the middle one is tried."""


@dataclass(frozen=True)
class Rung:
    """How many runs take part and how many evaluations each may have made, all told, when it ends."""

    alive: int
    evaluations: int


def rungs(n_runs: int, budget: int, least: int = 1) -> list[Rung]:
    """Halve ``n_runs`` down to one, ``least`` times at least, every rung with the same share of the budget."""
    sizes = [n_runs]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    sizes += [1] * (least - len(sizes))
    ladder, reached = [], 0
    for alive in sizes:
        reached += budget // len(sizes) // alive
        ladder.append(Rung(alive, reached))
    return ladder


def scales_for(budget: int) -> tuple[float, ...]:
    """Return the scales that a budget can tell apart."""
    return SCALES if budget >= _FEW else (1.0,)


@dataclass(frozen=True)
class Start:
    """Where a run begins: a name, and how to seed; None draws at random."""

    name: str
    seeding: SeedingConfig | None


def starts(n_starts: int, seeding: SeedingConfig) -> list[Start]:
    """List the starts: the seeding asked for, then its other gauge, other methods in both gauges, and random ones."""
    other = "weighted" if seeding.gauge == "procrustes" else "procrustes"
    found = [seeding, replace(seeding, gauge=other)]
    for method in (SeedingMethod.SVD, SeedingMethod.LEFT_GRAM_PCA, SeedingMethod.TS_PCA, SeedingMethod.HYBRID):
        if method is not seeding.method:
            found += [replace(seeding, method=method, gauge=gauge) for gauge in ("procrustes", "weighted")]
    named = [Start(f"{config.method.value}, {config.gauge}", config) for config in found]
    named += [Start(f"random {i}", None) for i in range(n_starts - len(named))]
    return named[:n_starts]


def activations_of(activation: str) -> tuple[str, ...]:
    """Return the nonlinear activations to try."""
    if activation == "auto":
        return ("silu", "tanh")
    return () if activation == "identity" else (activation,)
