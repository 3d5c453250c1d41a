"""The parameters of a k-means fit, checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from torch import Tensor

from eigenloom.errors import ConfigError

CHOICES = {
    "algorithm": ("lloyd", "minibatch"),
    "init": ("greedy-k-means++", "random"),
    "learning_rate": ("decay", "count", "ema"),
    "precision": ("exact", "screen"),
}
LEAST = {"n_clusters": 1, "batch_size": 1, "n_init": 1, "max_iter": 0, "minibatch_iter": 1, "polish_iter": 0}
ROWS_PER_CENTER, RESERVOIR_ROWS = 10, 16_384
UNIT = {"relocate": (0.0, 1.0), "decay": (0.0, 1.0), "ema": (0.0, 1.0), "tol": (0.0, 1.0)}


@dataclass(frozen=True, eq=False)
class Settings:
    """What ``KMeans.fit`` can be told.

    n_clusters: number of centres. algorithm: ``lloyd``, full passes, or ``minibatch``, ``minibatch_iter`` epochs of
    updates per batch of ``batch_size`` rows and then ``polish_iter`` full passes. n_init: seedings compared on the
    reservoir. max_iter, tol: most Lloyd passes; stop when the relative gain of inertia stays below ``tol`` for two
    passes. init: ``greedy-k-means++``, ``random`` rows, or centres ``[K, d]`` in the fitted space. init_rows: size
    of the seeding reservoir (default ten per centre, at least 16,384: seeding is cheap, poor seeds are not).
    learning_rate: ``count`` (one over the rows seen), ``decay`` (the same, past rows losing the factor ``decay`` per
    batch), ``ema`` (share ``ema`` per batch). relocate: largest share of centres moved after a pass, from the second
    to the eleventh. precision: ``exact``, or ``screen`` for bfloat16 labels while fitting.
    """

    n_clusters: int = 4096
    algorithm: str = "lloyd"
    batch_size: int = 8192
    n_init: int = 4
    max_iter: int = 200
    tol: float = 1e-4
    init: str | Tensor = "greedy-k-means++"
    init_rows: int = 0
    learning_rate: str = "decay"
    decay: float = 0.99
    ema: float = 0.05
    relocate: float = 0.1
    precision: str = "exact"
    minibatch_iter: int = 10
    polish_iter: int = 5

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Self:
        """Check names and ranges and fill in the automatic choices.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name, value in parameters.items():
            if name not in known:
                raise ConfigError(f"kmeans has no parameter {name!r}; it takes {', '.join(known)}")
            _check(name, value)
        values = dict(parameters)
        init = values.get("init")
        if isinstance(init, Tensor) and (init.ndim != 2 or values.setdefault("n_clusters", len(init)) != len(init)):
            raise ConfigError(f"init: centres of shape {tuple(init.shape)} do not fit the other parameters")
        values["init_rows"] = values.get("init_rows") or max(
            ROWS_PER_CENTER * values.get("n_clusters", cls.n_clusters), RESERVOIR_ROWS
        )
        settings = cls(**values)
        if settings.init_rows < settings.n_clusters:
            raise ConfigError(f"init_rows: {settings.init_rows} rows cannot seed {settings.n_clusters} clusters")
        return settings

    def as_parameters(self) -> dict[str, Any]:
        """Return them as JSON values; given centres are named by their sha256."""
        if not isinstance(self.init, Tensor):
            return asdict(self)
        digest = hashlib.sha256(self.init.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "init": f"sha256:{digest.hexdigest()}"
        }


def _check(name: str, value: Any) -> None:
    """Refuse a value that is not of its parameter's kind and range."""
    if name == "init" and isinstance(value, Tensor):
        return
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ConfigError(f"{name}: {value!r} is unknown; use {' or '.join(CHOICES[name])}")
    elif name in UNIT:
        low, high = UNIT[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
    elif isinstance(value, bool) or not isinstance(value, int) or value < LEAST.get(name, 0):
        raise ConfigError(f"{name}: {value!r} is not a whole number of at least {LEAST.get(name, 0)}")
