"""What a parameter group may say, what each rule takes where it says nothing, and what is refused."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.linalg.orthogonalize import METHODS

SHAPED = ("spectra_teon", "spectra")
"""Rules that lower the spike; they track a basis."""
ORTHOGONALIZED = ("teon", "muon")
STACKING = {"spectra_teon": "spectra", "teon": "muon"}
"""Rules of stacks -> the rule of the same kind for matrices that have no siblings."""
ALGORITHMS = (*SHAPED, *ORTHOGONALIZED, "adamw")

DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0.95,
    "nesterov": False,
    "damped": True,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "rank_ratio": 0.015,
    "min_rank": 4,
    "rank_scope": "layer",
    "oversample": 8,
    "n_iter": 1,
    "cold_iter": 4,
    "ritz": True,
    "stack_dim": 0,
    "joint_rms": False,
    "scale": "rms",
    "orthogonalization": "newton_schulz",
    "orthogonalization_steps": 5,
    "maximize": False,
    "seed": 0,
}
OF_RULE: dict[str, dict[str, Any]] = {
    "muon": {"nesterov": True, "scale": "match_rms"},
    "teon": {"stack_dim": 1, "orthogonalization": "polar_express"},
}
LITERAL: dict[str, Any] = {
    "stack_dim": 1,
    "joint_rms": True,
    "oversample": 0,
    "ritz": False,
    "rank_scope": "stack",
    "min_rank": 1,
    "damped": False,
}
"""The published algorithms put together as they stand: Spectra applied to a TEON stack."""
LAYOUT = ("params", "param_names", "algorithm", "stacks", "transposed", "reasons")
SCHEDULED = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")
"""Keys that learning-rate schedulers leave in groups."""


def _between(low: float, high: float, inclusive: bool) -> Callable[[Any], bool]:
    """Return a check for a number in ``[low, high)``, or ``[low, high]``."""
    return lambda x: _is_number(x) and low <= x and (x <= high if inclusive else x < high)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least, f"a whole number from {least} on"


def _choice(*words: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda x: x in words and type(x) in {type(w) for w in words}, f"one of {', '.join(map(repr, words))}"


_AT_LEAST_0 = (_between(0, float("inf"), False), "a number from 0 on")
_BELOW_1 = (_between(0, 1, False), "a number in [0, 1)")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (
        lambda x: x.numel() == 1 if isinstance(x, Tensor) else _AT_LEAST_0[0](x),
        "a number from 0 on or a tensor of one",
    ),
    "momentum": _BELOW_1,
    "nesterov": _choice(True, False),
    "damped": _choice(True, False),
    "weight_decay": _AT_LEAST_0,
    "betas": (lambda x: len(x) == 2 and all(_BELOW_1[0](b) for b in x), "two numbers in [0, 1)"),
    "eps": _AT_LEAST_0,
    "rank_ratio": (_between(0, 1, True), "a number in [0, 1]"),
    "min_rank": _whole(0),
    "rank_scope": _choice("layer", "stack"),
    "oversample": _whole(0),
    "n_iter": _whole(1),
    "cold_iter": _whole(1),
    "ritz": _choice(True, False),
    "stack_dim": _choice(0, 1),
    "joint_rms": _choice(True, False),
    "scale": _choice("rms", "match_rms", "spectral", "original"),
    "orthogonalization": _choice(*METHODS),
    "orthogonalization_steps": _whole(1),
    "maximize": _choice(True, False),
    "seed": _whole(0),
}


def completed(group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with every key: its own values, then those given to the constructor, then those of its rule.

    Raises:
        ConfigError: an unknown rule or key, or a value out of range.
    """
    algorithm = group.get("algorithm", given.get("algorithm", "spectra"))
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"SpectraTEON: {algorithm!r} is no algorithm; use {', '.join(ALGORITHMS)}")
    if unknown := [key for key in group if key not in DEFAULTS and key not in LAYOUT + SCHEDULED]:
        raise ConfigError(
            f"SpectraTEON: unknown key {unknown[0]!r} in a group of {algorithm}; known: {', '.join(DEFAULTS)}"
        )
    values = {**DEFAULTS, **OF_RULE.get(algorithm, {}), **{k: v for k, v in given.items() if k in DEFAULTS}}
    complete = {**values, **group, "algorithm": algorithm}
    for key, (holds, wanted) in CHECKS.items():
        if not holds(complete[key]):
            raise ConfigError(f"SpectraTEON: {key} is {complete[key]!r} in a group of {algorithm}, must be {wanted}")
    if algorithm in SHAPED and complete["scale"] != "rms":
        raise ConfigError(
            f"SpectraTEON: scale {complete['scale']!r} is for orthogonal factors, which {algorithm} has not; use 'rms'"
        )
    return complete
