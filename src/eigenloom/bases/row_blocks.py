"""What a fit asks of its rows before it starts, and rows in blocks whose edges do not depend on how they arrive."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.errors import DataError
from eigenloom.moments import moments_of, standardization_of


def largest_magnitude(batches: Batches) -> float:
    """Return a bound on ``max |x|``, having checked that the rows can be fitted.

    Taken from the moments that come with standardized rows (standardizing is monotone, so the extremes of a feature
    stay its extremes), else from one read.

    Raises:
        DataError: NaN or Inf, named by batch, row and feature; fewer than two rows; every feature constant.
    """
    layer = standardization_of(batches).layer
    prefix = f"{layer}: " if layer else ""
    if batches.n_rows < 2:
        raise DataError(f"{prefix}a basis cannot be fitted to a single row; give the source more examples")
    minimum, maximum = _known_range(batches) or _scanned_range(batches)
    if torch.equal(minimum, maximum):
        raise DataError(
            f"{prefix}all {batches.n_features} features are constant over {batches.n_rows} rows, so there is "
            "nothing to fit; check the layer and the images it was recorded from"
        )
    return max(-float(minimum.min()), float(maximum.max()))


def _known_range(batches: Batches) -> tuple[Tensor, Tensor] | None:
    """Return the range of each standardized feature if the moments of exactly these rows are known and finite."""
    moments = moments_of(batches)
    if moments is None or moments.n_rows != batches.n_rows or moments.n_nonfinite:
        return None
    standardization = standardization_of(batches)
    return standardization.apply(moments.minimum), standardization.apply(moments.maximum)


def _scanned_range(batches: Batches) -> tuple[Tensor, Tensor]:
    """Read all rows once; NaN and Inf show in the extremes."""
    minimum = torch.full((batches.n_features,), torch.inf)
    maximum = -minimum
    for number, batch in enumerate(batches):
        low, high = batch.aminmax(dim=0)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            row, feature = (~torch.isfinite(batch)).nonzero()[0].tolist()
            value = "NaN" if batch[row, feature].isnan() else "infinite"
            layer = standardization_of(batches).layer
            raise DataError(
                f"{layer + ', ' if layer else ''}batch {number}, row {row}, feature {feature} is {value}; "
                "record the source again or leave the example out"
            )
        minimum, maximum = torch.minimum(minimum, low), torch.maximum(maximum, high)
    return minimum, maximum


def regrouped(batches: Iterable[Tensor], n_rows: int, skip_rows: int = 0) -> Iterator[Tensor]:
    """Cut a stream into blocks of exactly ``n_rows`` rows (the last may be shorter), after leaving out ``skip_rows``."""
    held: list[Tensor] = []
    n_held = 0
    for batch in batches:
        if skip_rows >= len(batch):
            skip_rows -= len(batch)
            continue
        rest = batch[skip_rows:]
        skip_rows = 0
        while n_held + len(rest) >= n_rows:
            head, rest = rest[: n_rows - n_held], rest[n_rows - n_held :]
            yield torch.cat([*held, head]) if held else head
            held, n_held = [], 0
        if len(rest):
            held.append(rest)
            n_held += len(rest)
    if held:
        yield torch.cat(held) if len(held) > 1 else held[0]
