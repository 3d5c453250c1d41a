"""What every orthonormal basis shares: codes are coordinates of the centred row, decoding is their transpose."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.batches import Batches, ColumnBlocks
from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.moments import Moments, moments_of, standardization_of

_ORTHONORMAL = 1e-5


@dataclass(frozen=True, eq=False)
class Projection(Basis):
    """A mean and ``k`` unit directions, in the fitted space.

    Fields: ``mean [d]`` and ``components [k, d]`` (rows), float32.
    """

    geometry: ClassVar[str] = "projection"

    mean: Tensor
    components: Tensor

    @property
    def n_elements(self) -> int:
        """Number of directions."""
        return self.components.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[b, k]`` of rows ``[b, d]`` about the mean."""
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"rows of shape {tuple(x.shape)} cannot be encoded: this basis takes [b, {self.n_features}]"
            )
        return (x.float() - self.mean.to(x.device)) @ self.components.to(x.device).T

    def decode(self, z: Tensor) -> Tensor:
        """Return ``mean + z @ components``, ``[b, d]``."""
        if z.ndim != 2 or z.shape[1] != self.n_elements:
            raise DataError(f"codes of shape {tuple(z.shape)} cannot be decoded: this basis has [b, {self.n_elements}]")
        return self.mean.to(z.device) + z.float() @ self.components.to(z.device)

    def code_energies(self, z: Tensor) -> Tensor | None:
        """Return ``z^2``: what each entry of ``[b, k]`` takes off the squared error; None if not orthonormal."""
        return z.float() ** 2 if self._orthonormal else None

    @cached_property
    def _orthonormal(self) -> bool:
        """Whether ``components @ components^T`` is the identity to 1e-5, looked at once."""
        gram = self.components @ self.components.T
        return bool((gram - torch.eye(len(gram))).abs().max() <= _ORTHONORMAL)


def component_count(batches: Batches | ColumnBlocks, n_components: int | None) -> int:
    """Return how many directions are meant (None: one per feature), if there can be that many.

    Raises:
        ConfigError: less than one, or more than features.
        DataError: fewer rows than directions asked for, or a single row.
    """
    n_rows, n_features = batches.n_rows, batches.n_features
    if n_components is not None and not 1 <= n_components <= n_features:
        raise ConfigError(f"n_components: {n_components}, but rows have {n_features} features; use 1..{n_features}")
    if n_rows < 2:
        raise DataError(f"{n_rows} row has no variance to fit a basis to; at least 2 are needed")
    if n_components is not None and n_rows < n_components:
        raise DataError(f"{n_rows} rows cannot carry n_components: {n_components}; record more or lower it")
    return n_features if n_components is None else n_components


def known_moments(batches: Batches) -> Moments | None:
    """Return the moments in the fitted space where an earlier pass over these rows has left them, else None.

    Raises:
        MismatchError: they are moments of another number of rows.
    """
    raw = moments_of(batches)
    if raw is None:
        return None
    if raw.n_rows != batches.n_rows:
        raise MismatchError(f"the moments are of {raw.n_rows} rows, the data have {batches.n_rows}; measure them again")
    return raw.standardized(standardization_of(batches))


def refuse_constant(moments: Moments) -> None:
    """Refuse data without any variance.

    Raises:
        DataError: every feature has one value.
    """
    if torch.equal(moments.minimum, moments.maximum):
        raise DataError(f"all {moments.n_features} features are constant over {moments.n_rows} rows: nothing to fit")
