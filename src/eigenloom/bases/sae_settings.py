"""What a fit of a sparse autoencoder can be told, checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from eigenloom.errors import ConfigError

LEAST = {"n_components": 1, "n_active": 1, "steps": 0, "batch_size": 1, "warmup": 0, "dead_after": 1, "n_aux": 0}


@dataclass(frozen=True)
class Settings:
    """What ``SparseAutoencoder.fit`` can be told.

    n_components: number of elements. n_active: entries per code. steps: of Adam, each on ``batch_size`` rows; 0 keeps
    the random start, which is the floor. lr: at its peak, after ``warmup`` steps and until the last fifth, over which
    it falls to 0. dead_after: an element that met so many rows without an entry is dead. n_aux: dead elements that
    explain the residual together (AuxK), None for half the row length; 0 is off. aux_weight: of that in the loss.
    """

    n_components: int = 384
    n_active: int = 16
    steps: int = 2000
    batch_size: int = 1024
    lr: float = 5e-3
    warmup: int = 50
    dead_after: int = 16_384
    n_aux: int | None = None
    aux_weight: float = 1 / 32

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Self:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name, value in parameters.items():
            if name not in known:
                raise ConfigError(f"sae has no parameter {name!r}; it takes {', '.join(known)}")
            _check(name, value)
        settings = cls(**parameters)
        if settings.n_active > settings.n_components:
            raise ConfigError(f"n_active: {settings.n_active}, but there are {settings.n_components} elements")
        return settings

    def as_parameters(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return asdict(self)


def _check(name: str, value: Any) -> None:
    """Refuse a value that is not of its parameter's kind and range."""
    if name == "n_aux" and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if name in LEAST else int | float):
        raise ConfigError(f"{name}: {value!r} is not a {'whole ' if name in LEAST else ''}number")
    if value < LEAST.get(name, 0) or (name == "lr" and value == 0) or not value < float("inf"):
        raise ConfigError(f"{name}: {value!r} is out of range; it must be {'above 0' if name == 'lr' else 'at least'}"
                          f"{'' if name == 'lr' else f' {LEAST.get(name, 0)}'}")  # fmt: skip
