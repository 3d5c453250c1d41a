"""The parameters of a kernel PCA fit, checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.errors import ConfigError, DataError
from eigenloom.linalg.kernels import KERNELS
from eigenloom.linalg.landmarks import CHOICES as LANDMARK_CHOICES

DEFAULT_LANDMARKS = 2048
RANK_TOL = {"float32": 1e-6, "float64": 1e-12}
CHOICES = {
    "kernel": KERNELS,
    "landmark_choice": LANDMARK_CHOICES,
    "kernel_dtype": tuple(RANK_TOL),
    "preimage": ("all", "landmarks"),
    "directions": ("principal", "random"),
}
COUNTS = ("n_components", "n_landmarks", "degree")
POSITIVE, NOT_NEGATIVE = ("gamma",), ("rank_tol", "ridge")


@dataclass(frozen=True, eq=False)
class Settings:
    """What ``KernelPCA.fit`` can be told.

    n_components: most components kept; the effective rank may be lower. n_landmarks: None for 2048, or all rows where
    there are fewer. kernel: ``rbf``, ``poly`` or ``linear``; gamma: a number, or ``auto`` for one over the median
    squared distance (rbf) or one over the features (poly); degree, coef0: of poly. landmark_choice: ``rpcholesky``,
    ``uniform``, ``k-means++``, or landmarks ``[m, d]`` in the fitted space. kernel_dtype: of kernel values, ``float32``
    or ``float64``. rank_tol: directions below this share of the largest eigenvalue are cut; None for 1e-6 in float32,
    1e-12 in float64. whiten: codes of unit variance. ridge: of the pre-image, relative to the largest variance.
    preimage: rows that the decoder is fitted to, ``all`` or only the ``landmarks``, which spares a product as large as
    the kernel's. directions: ``principal``, or ``random`` ones of the same feature space, as a floor.
    """

    n_components: int = 64
    n_landmarks: int | None = None
    kernel: str = "rbf"
    gamma: float | str = "auto"
    degree: int = 3
    coef0: float = 1.0
    landmark_choice: str | Tensor = "rpcholesky"
    kernel_dtype: str = "float32"
    rank_tol: float | None = None
    whiten: bool = False
    ridge: float = 1e-6
    preimage: str = "all"
    directions: str = "principal"

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Self:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name, value in parameters.items():
            if name not in known:
                raise ConfigError(f"kernel_pca has no parameter {name!r}; it takes {', '.join(known)}")
            _check(name, value)
        settings = cls(**parameters)
        if settings.kernel == "poly" and settings.coef0 < 0:
            raise ConfigError(f"coef0: {settings.coef0} makes poly no positive kernel; use 0 or more")
        return settings

    def landmark_count(self, batches: Batches) -> int:
        """Return how many landmarks are meant, if these rows can carry them.

        Raises:
            DataError: a single row, or fewer rows than landmarks.
            ConfigError: more components than landmarks, or given landmarks of another width.
        """
        n_rows = batches.n_rows
        if n_rows < 2:
            raise DataError(f"{n_rows} row has no variance to fit a basis to; at least 2 are needed")
        if isinstance(self.landmark_choice, Tensor):
            n_landmarks, width = self.landmark_choice.shape
            if width != batches.n_features or self.n_landmarks not in (None, n_landmarks):
                raise ConfigError(
                    f"landmark_choice: landmarks of shape {[n_landmarks, width]} do not fit rows of length "
                    f"{batches.n_features} and n_landmarks: {self.n_landmarks}"
                )
        else:
            n_landmarks = self.n_landmarks or min(DEFAULT_LANDMARKS, n_rows)
            if n_landmarks > n_rows:
                raise DataError(
                    f"{n_landmarks} landmarks cannot be drawn from {n_rows} rows; lower n_landmarks (--landmarks) "
                    "or give more rows"
                )
        if self.n_components > n_landmarks:
            raise ConfigError(
                f"n_components (--r): {self.n_components} is more than the {n_landmarks} landmarks; lower it or raise "
                "n_landmarks (--landmarks)"
            )
        return n_landmarks

    @property
    def dtype(self) -> torch.dtype:
        """Of kernel values."""
        return torch.float64 if self.kernel_dtype == "float64" else torch.float32

    @property
    def cut(self) -> float:
        """``rank_tol``, resolved."""
        return RANK_TOL[self.kernel_dtype] if self.rank_tol is None else self.rank_tol

    def as_parameters(self) -> dict[str, Any]:
        """Return them as JSON values; given landmarks are named by their sha256."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.landmark_choice, Tensor):
            digest = hashlib.sha256(self.landmark_choice.detach().cpu().float().contiguous().numpy().tobytes())
            values["landmark_choice"] = f"sha256:{digest.hexdigest()}"
        return values


def _check(name: str, value: Any) -> None:
    """Refuse a value that is not of its parameter's kind and range."""
    if name == "landmark_choice" and isinstance(value, Tensor):
        if value.ndim != 2 or not torch.isfinite(value).all():
            raise ConfigError(f"landmark_choice: landmarks must be a finite matrix, not {tuple(value.shape)}")
    elif name in CHOICES:
        if value not in CHOICES[name]:
            raise ConfigError(f"{name}: {value!r} is unknown; use {' or '.join(CHOICES[name])}")
    elif name == "whiten":
        if not isinstance(value, bool):
            raise ConfigError(f"whiten: {value!r} is not true or false")
    elif name in COUNTS:
        if not (name == "n_landmarks" and value is None) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigError(f"{name}: {value!r} is not a whole number of at least 1")
    elif not ((name == "gamma" and value == "auto") or (name == "rank_tol" and value is None)):
        low = f"above 0{', or auto' if name == 'gamma' else ''}" if name in POSITIVE else "of at least 0"
        number = not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < float("inf")
        if not number or (name in POSITIVE and value <= 0) or (name in NOT_NEGATIVE and value < 0):
            raise ConfigError(f"{name}: {value!r} is not a number{'' if name == 'coef0' else ' ' + low}")
