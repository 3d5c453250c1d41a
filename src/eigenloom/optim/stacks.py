"""Stacks: which rows of which parameters are shaped together, their geometry, and the batches they are cut into."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.errors import ConfigError
from eigenloom.optim.settings import SHAPED

Piece = tuple[int, int, int]
"""Number of a parameter in its group, first row, number of rows."""


@dataclass(frozen=True)
class Geometry:
    """How ``members`` matrices ``[rows, columns]`` form one ``Y`` ``[a, b]``.

    Fields: ``shares_columns``, whether the side the members share, the left side of ``Y``, is their columns;
    ``rank``, the number of values lowered; ``tracked``, columns of the basis.
    """

    rows: int
    columns: int
    members: int
    shares_columns: bool
    rank: int
    tracked: int

    @property
    def side(self) -> str:
        """Name the shared side."""
        return "columns" if self.shares_columns else "rows"

    @property
    def a(self) -> int:
        """Length of the shared side."""
        return self.columns if self.shares_columns else self.rows

    @property
    def b(self) -> int:
        """Length of the other side of the stack."""
        return self.members * (self.rows if self.shares_columns else self.columns)


def geometry(rows: int, columns: int, members: int, group: Mapping[str, Any], size: int | None = None) -> Geometry:
    """Lay out ``members`` of a stack of ``size`` (None: the same) by the settings of its group.

    A stack of one has its shorter side left.
    """
    shares_columns = group["stack_dim"] == 0 if (size or members) > 1 else columns < rows
    a = columns if shares_columns else rows
    r = min(a, members * (rows if shares_columns else columns))
    if group["algorithm"] not in SHAPED:
        return Geometry(rows, columns, members, shares_columns, 0, 0)
    if group["rank_scope"] == "layer":
        # Left singular vectors of neighbours do not align, so a stack that shares its rows holds a spike per member.
        rank = max(group["min_rank"], round(group["rank_ratio"] * min(rows, columns))) * (
            1 if shares_columns else members
        )
    else:
        rank = max(group["min_rank"], round(group["rank_ratio"] * r))
    rank = max(0, min(rank, r - 1))
    return Geometry(rows, columns, members, shares_columns, rank, min(rank + group["oversample"], r) if rank else 0)


def matrix_shape(parameter: Tensor, transposed: bool) -> tuple[int, int]:
    """Return rows and columns of a parameter as a matrix: all dimensions but the first flattened."""
    shape = (parameter.shape[0], parameter[0].numel())
    return shape[::-1] if transposed else shape


def rows_of(buffer: Tensor, piece: Piece, transposed: bool) -> Tensor:
    """View a piece of a contiguous buffer as a matrix ``[n_rows, columns]``."""
    matrix = buffer.view(buffer.shape[0], -1)
    return (matrix.T if transposed else matrix).narrow(0, piece[1], piece[2])


def complete_stacks(group: dict[str, Any]) -> None:
    """Give a group of matrices its ``stacks`` (by default every parameter alone) and ``transposed``, both checked.

    Raises:
        ConfigError: a parameter that is no matrix, a stack of unequal shapes, rows outside, twice or left out.
    """
    params, name = group["params"], group["algorithm"]
    for number, p in enumerate(params):
        if p.ndim < 2 or not p.numel():
            raise ConfigError(
                f"SpectraTEON: parameter {_called(group, number)} of shape {tuple(p.shape)} is no matrix and cannot be"
                f" updated by {name}; use SpectraTEON.from_model(model), which gives it to adamw"
            )
    group["transposed"] = transposed = list(group.get("transposed", []))
    if wrong := [i for i in transposed if not 0 <= i < len(params) or params[i].ndim != 2]:
        raise ConfigError(f"SpectraTEON: transposed names {wrong[0]}, which is no matrix of this group of {name}")
    shapes = [matrix_shape(p, i in transposed) for i, p in enumerate(params)]
    stacks = group.get("stacks", [[(i, 0, rows)] for i, (rows, _) in enumerate(shapes)])
    group["stacks"] = [[(int(i), int(first), int(n)) for i, first, n in stack] for stack in stacks]
    covered: list[list[tuple[int, int]]] = [[] for _ in params]
    for number, stack in enumerate(group["stacks"]):
        if not stack or not all(0 <= i < len(params) and n > 0 for i, _, n in stack):
            raise ConfigError(f"SpectraTEON: stack {number} of a group of {name} is empty or names no parameter of it")
        kinds = {(n, shapes[i][1], params[i].dtype, params[i].device) for i, _, n in stack}
        if len(kinds) > 1:
            listed = " and ".join(sorted(f"{n} x {columns} {dtype}" for n, columns, dtype, _ in kinds))
            raise ConfigError(
                f"SpectraTEON: stack {number} of a group of {name} mixes {listed}; stack equal shapes only"
            )
        for i, first, n in stack:
            covered[i].append((first, n))
    for i, pieces in enumerate(covered):
        end = 0
        for first, n in sorted(pieces):
            if first != end:
                break
            end += n
        if end != shapes[i][0] or sum(n for _, n in pieces) != end:
            raise ConfigError(
                f"SpectraTEON: the stacks of a group of {name} do not hold each of the {shapes[i][0]} rows of parameter"
                f" {_called(group, i)} exactly once"
            )


def _called(group: Mapping[str, Any], number: int) -> str:
    """Name a parameter by its name, else by its number."""
    names = group.get("param_names")
    return names[number] if names else str(number)


@dataclass(frozen=True)
class Bucket:
    """Stacks of one geometry, dtype and device, updated as one batch.

    Fields: ``stacks``, their numbers; ``pieces``, their members, stack by stack; ``cold``, whether their bases are
    still the start bases.
    """

    geometry: Geometry
    stacks: tuple[int, ...]
    pieces: tuple[Piece, ...]
    cold: bool


def buckets(group: Mapping[str, Any], live: Sequence[bool], started: Sequence[bool]) -> list[Bucket]:
    """Cut the stacks of a group into batches, members without a gradient left out.

    Args:
        group: completed.
        live: whether each parameter has a gradient.
        started: whether each parameter has been updated before.
    """
    found: dict[Any, tuple[list[int], list[Piece]]] = {}
    for number, members, cold in _living(group, live, started):
        i, _, n_rows = members[0]
        p = group["params"][i]
        columns = matrix_shape(p, i in group["transposed"])[1]
        shape = geometry(n_rows, columns, len(members), group, len(group["stacks"][number]))
        numbers, pieces = found.setdefault((shape, p.dtype, p.device, cold), ([], []))
        numbers.append(number)
        pieces.extend(members)
    return [Bucket(key[0], tuple(numbers), tuple(pieces), key[3]) for key, (numbers, pieces) in found.items()]


def _living(
    group: Mapping[str, Any], live: Sequence[bool], started: Sequence[bool]
) -> Iterator[tuple[int, list[Piece], bool]]:
    """Yield number, members with a gradient, and whether none was ever updated, of each stack that has any."""
    for number, stack in enumerate(group["stacks"]):
        members = [tuple(piece) for piece in stack if live[piece[0]]]
        if members:
            yield number, members, not any(started[i] for i, _, _ in stack)


def gather(bucket: Bucket, sources: Mapping[int, Tensor], transposed: Sequence[int]) -> Tensor:
    """Copy the pieces of a bucket into one batch ``[n K, rows, columns]``."""
    return torch.stack([rows_of(sources[piece[0]], piece, piece[0] in transposed) for piece in bucket.pieces])
