"""Products of a few long rows about their mean, formed over ranges of columns: nothing grows with the row's length.

``B`` is the matrix ``X - mean`` ``[n, D]``. Every range of columns is shifted by its first row, then by the mean of
what is left, *before* it is multiplied: where rows differ by a millionth of their size, a product centred afterwards
has lost what they differ in.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from eigenloom.bases.passes import Passes, Writer
from eigenloom.batches import ColumnBlocks, first_nonfinite
from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import gram, product
from eigenloom.linalg.srht import SRHT

_CACHED = 1 << 19
_LEAST_COLUMNS = 1 << 11
_HELD = 1 << 26


class CentredColumns:
    """``B`` of a source of columns, with what its passes leave: mean, norms, products with the mean.

    Fields: ``means [2]``, squared norms of the mean in the fitted space and of the raw mean in the fitted scale (one
    where there is no offset between them); ``along [n, 2]``, products of the rows of ``B`` with both; ``squares [n]``,
    squared norms of the rows of ``B``; float64.
    """

    def __init__(
        self,
        source: ColumnBlocks,
        passes: Passes,
        mean: Writer,
        offset: Tensor | None,
        block_size: int,
        device: torch.device | str,
    ):
        """Take the source, the writer of the mean, and ``offset [D]``: raw mean, in the fitted scale, minus mean."""
        self._source, self._passes, self._mean, self._offset = source, passes, mean, offset
        self._device = torch.device(device)
        n = self.n_rows = source.n_rows
        self._width = max(_LEAST_COLUMNS, _floor_power(_CACHED // n))
        self._block = min(block_size, max(self._width, _floor_power(_HELD // n)))
        self._average = torch.full((1, n), 1 / n, device=self._device)
        self.means = torch.zeros(1 if offset is None else 2, dtype=torch.float64)
        self.along = torch.zeros(n, len(self.means), dtype=torch.float64)
        self.squares = torch.zeros(n, dtype=torch.float64)

    def products(self) -> Tensor:
        """Return ``B B^T`` ``[n, n]`` float64, and take mean and norms on the way: one read.

        Raises:
            DataError: NaN or Inf, with row and feature, or squares that overflow float32.
        """
        total = torch.zeros(self.n_rows, self.n_rows, dtype=torch.float64)

        def visit(first: int, columns: Tensor) -> None:
            """Add the products of one block."""
            for centred in self._first_look(first, columns.T):
                total.add_(gram(centred.T).cpu())
            if not torch.isfinite(total.diagonal()).all():
                self._refuse(first, columns.T)

        state = {"total": total, "means": self.means, "along": self.along}
        self._run("gram", state, visit, self._block)
        self.squares.copy_(total.diagonal())
        return total

    def sketch(self, operator: SRHT) -> Tensor:
        """Return ``R (x_i - x_0)`` ``[n, r]`` float64, and take mean and norms on the way: one read.

        Raises:
            DataError: NaN or Inf, with row and feature, or squares that overflow float32.
        """
        total = torch.zeros(self.n_rows, operator.width, dtype=torch.float64)

        def visit(first: int, columns: Tensor) -> None:
            """Sketch one block."""
            block = columns.T.to(self._device)
            total.add_(operator.apply_block(first // operator.block_size, block, block[0]).cpu())
            for centred in self._first_look(first, columns.T):
                self.squares += centred.square().sum(1).double().cpu()
            if not torch.isfinite(self.squares).all():
                self._refuse(first, columns.T)

        state = {"total": total, "means": self.means, "along": self.along, "squares": self.squares}
        self._run("sketch", state, visit, operator.block_size)
        return total

    def times_gram(self, left: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return ``B B^T left`` ``[n, l]`` and ``left^T B B^T left`` ``[l, l]``, float64: one read."""
        total = torch.zeros(self.n_rows, left.shape[1], dtype=torch.float64)
        inner = torch.zeros(left.shape[1], left.shape[1], dtype=torch.float64)
        factor = left.float().to(self._device)

        def visit(first: int, columns: Tensor) -> None:
            """Lift the columns of one block and project them at once."""
            for centred in self._centred(first, columns.T):
                rows = product(centred.T, factor)
                total.add_(product(centred, rows).cpu())
                inner.add_(gram(rows).cpu())

        self._run(f"round-{number}", {"total": total, "inner": inner}, visit, self._block)
        return total, inner

    def lift(self, left: Tensor, rotation: Tensor, components: Writer) -> Tensor:
        """Write ``W = B^T left rotation`` ``[D, k]`` front to back; return ``W^T W`` ``[k, k]`` float64: one read."""
        inner = torch.zeros(rotation.shape[1], rotation.shape[1], dtype=torch.float64)
        factor = (left @ rotation).float().to(self._device)

        def visit(first: int, columns: Tensor) -> None:
            """Append the rows of one block of columns."""
            for centred in self._centred(first, columns.T):
                rows = product(centred.T, factor)
                components.append(rows)
                inner.add_(gram(rows).cpu())

        self._run("lift", {"inner": inner}, visit, self._block)
        return inner

    def scores(self, components: Writer) -> Tensor:
        """Return ``B W`` ``[n, k]`` float64 of the components as they were written: one read."""
        total = torch.zeros(self.n_rows, components.shape[1], dtype=torch.float64)

        def visit(first: int, columns: Tensor) -> None:
            """Project one block."""
            for centred in self._centred(first, columns.T):
                rows = components.read(first, centred.shape[1]).to(self._device)
                first += len(rows)
                total.add_(product(centred, rows).cpu())

        self._run("scores", {"total": total}, visit, self._block)
        return total

    def residuals(self, scores: Tensor, components: Writer) -> Tensor:
        """Return ``||b_i - W s_i||^2`` ``[n]`` float64 for scores ``[n, k]``, from differences: one read."""
        squares = torch.zeros(self.n_rows, dtype=torch.float64)
        factor = scores.float().to(self._device)

        def visit(first: int, columns: Tensor) -> None:
            """Add the squares of one block."""
            for centred in self._centred(first, columns.T):
                rows = components.read(first, centred.shape[1]).to(self._device)
                first += len(rows)
                squares.add_((centred - product(factor, rows.T)).double().square().sum(1).cpu())

        self._run("residuals", {"squares": squares}, visit, self._block)
        return squares

    def _run(self, name: str, state: dict[str, Tensor], visit: Callable[[int, Tensor], None], size: int) -> None:
        """Make one pass over blocks of columns, each handed over as its transpose ``[c, n]``."""

        def stream(start: int) -> Iterator[Tensor]:
            """Yield the blocks after the first ``start`` columns."""
            return (block.T for block in islice(self._source.column_blocks(size), start // size, None))

        self._passes.run(name, state, stream, visit, self._source.n_features)

    def _first_look(self, first: int, block: Tensor) -> Iterator[Tensor]:
        """Yield ``B`` by pieces ``[n, c]`` that fit a cache, writing the mean and adding up what depends on it."""
        for piece in block.split(self._width, dim=1):
            width = piece.shape[1]
            piece = piece.to(self._device)
            shift = piece[0]
            centred = piece - shift
            left = product(self._average, centred)[0]
            centred -= left
            mean = shift + left
            self._mean.append(mean)
            both = mean[None]
            if self._offset is not None:
                both = torch.stack([mean, mean + self._offset[first : first + width].to(self._device, torch.float32)])
            self.means += both.double().square().sum(1).cpu()
            self.along += product(centred, both.T).double().cpu()
            yield centred
            first += width

    def _centred(self, first: int, block: Tensor) -> Iterator[Tensor]:
        """Yield ``B`` by pieces once more, from the stored mean."""
        for piece in block.split(self._width, dim=1):
            mean = self._mean.read(first, piece.shape[1])
            yield piece.to(self._device) - mean.to(self._device)
            first += piece.shape[1]

    def _refuse(self, first: int, block: Tensor) -> None:
        """Say what is wrong with a block ``[n, c]`` whose products are not finite."""
        found = first_nonfinite(block)
        if found is None:
            largest = block.abs().max().item()
            raise DataError(
                f"values up to {largest:.3g} overflow float32 sums of squares; divide the rows by a constant"
            )
        row, column, count = found
        value = "NaN" if block[row, column].isnan() else "Inf"
        locate = getattr(self._source, "locate", None)
        place = (locate(row, first + column) if locate else "") or f"row {row}, feature {first + column}"
        raise DataError(
            f"{place} is {value}; {count} entries in this range of {block.shape[1]} features are not finite: repair "
            "them or leave those rows out"
        )


def _floor_power(number: int) -> int:
    """Return the largest power of two that is at most ``number``, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
