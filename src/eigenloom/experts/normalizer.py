"""One scale, and perhaps one mean, per family: taken out before a fit and folded back exactly into the adapters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.experts.source import ONLY_FAMILY


@dataclass(frozen=True)
class Normalizer:
    """``W' = (W - mu) / sigma``; fields: family -> ``sigma`` and family -> ``mu``.

    With ``W' ~ A M`` follows ``W ~ (sigma A) M`` where mu is 0, whatever activation made ``M``; else a row
    ``1 / sqrt(d)`` is appended to ``M`` and a column ``mu sqrt(d)`` to ``sigma A``.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    centered: bool = False

    def transform(self, weights: Tensor, family: str = ONLY_FAMILY) -> Tensor:
        """Return ``(W - mu) / sigma``, any shape."""
        sigma, mu = self._of(family)
        return (weights - mu) / sigma

    def inverse_transform(self, weights: Tensor, family: str = ONLY_FAMILY) -> Tensor:
        """Return ``sigma W' + mu``, any shape."""
        sigma, mu = self._of(family)
        return weights * sigma + mu

    def fold(self, adapters: Tensor, n_columns: int, family: str = ONLY_FAMILY) -> Tensor:
        """Return adapters ``[E, p, r]`` of ``W'`` as those of ``W``: ``[E, p, r]``, or ``[E, p, r + 1]`` if centred.

        Args:
            adapters: of the normalised weights.
            n_columns: ``d`` of the basis, the length of its constant row.
            family: whose.
        """
        sigma, mu = self._of(family)
        scaled = adapters * sigma
        if not self.centered:
            return scaled
        column = scaled.new_full((*scaled.shape[:-1], 1), mu * n_columns**0.5)
        return torch.cat([scaled, column], dim=-1)

    def unfold(self, adapters: Tensor, family: str = ONLY_FAMILY) -> Tensor:
        """Undo ``fold``: return adapters ``[E, p, r]`` of the normalised weights."""
        sigma, _ = self._of(family)
        return (adapters[..., :-1] if self.centered else adapters) / sigma

    def _of(self, family: str) -> tuple[float, float]:
        """Return sigma and mu of a family.

        Raises:
            ConfigError: it was not fitted.
        """
        if family not in self.scales:
            raise ConfigError(f"family {family!r} was not fitted; known: {', '.join(self.scales)}")
        return self.scales[family], self.means[family]
