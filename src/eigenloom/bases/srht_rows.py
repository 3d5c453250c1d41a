"""Products of many long rows about their mean, formed from a stream of rows: for what cannot be had by columns.

``B`` is the matrix ``X - mean`` ``[n, D]``. The state grows with D: ``B^T U`` is held in float64.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from eigenloom.bases.passes import Passes, Writer
from eigenloom.batches import Batches
from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import BLOCK_ROWS, gram, refuse_nonfinite, row_blocks
from eigenloom.linalg.srht import SRHT

_HELD = 1 << 24


class CentredRows:
    """``B`` of a stream of rows; the fields and methods are those of ``CentredColumns``."""

    def __init__(
        self, source: Batches, passes: Passes, mean: Writer, offset: Tensor | None, device: torch.device | str
    ):
        """Take the rows, the writer of the mean, and ``offset [D]``: raw mean, in the fitted scale, minus mean."""
        self._source, self._passes, self._writer, self._offset = source, passes, mean, offset
        self._device = torch.device(device)
        n, d = self.n_rows, self._width = source.n_rows, source.n_features
        self._block = max(1, min(BLOCK_ROWS, _HELD // d))
        self.means = torch.zeros(1 if offset is None else 2, dtype=torch.float64)
        self.along = torch.zeros(n, len(self.means), dtype=torch.float64)
        self.squares = torch.zeros(n, dtype=torch.float64)
        self._reference, self._left = torch.zeros(d), torch.zeros(d)
        self._lifted = torch.empty(0)

    def sketch(self, operator: SRHT) -> Tensor:
        """Return ``R (x_i - x_0)`` ``[n, r]`` and find the mean: one read.

        Raises:
            DataError: NaN or Inf, with the place, or values that overflow float32.
        """
        found = torch.zeros(self.n_rows, operator.width)
        sums = torch.zeros(self._width, dtype=torch.float64)

        def visit(first: int, rows: Tensor) -> None:
            """Sketch one block of rows."""
            if first == 0:
                self._reference.copy_(rows[0])
            rows = rows - self._reference
            sums.add_(rows.double().sum(0))
            total = torch.zeros(len(rows), operator.width, dtype=torch.float64)
            for block, columns in enumerate(rows.to(self._device).split(operator.block_size, dim=1)):
                total += operator.apply_block(block, columns).cpu()
            found[first : first + len(rows)] = total
            if not torch.isfinite(found[first : first + len(rows)]).all():
                refuse_nonfinite(self._source)
                raise DataError("differences between rows overflow float32; divide the rows by a constant")

        self._run("sketch", {"found": found, "sums": sums, "reference": self._reference}, visit)
        self._left = (sums / self.n_rows).float()
        mean = self._reference + self._left
        self._writer.begin()
        self._writer.append(mean)
        self._both = mean[None] if self._offset is None else torch.stack([mean, mean + self._offset.float()])
        self.means.copy_(self._both.double().square().sum(1))
        return found.double()

    def times_gram(self, left: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return ``B B^T left`` ``[n, l]`` and ``left^T B B^T left`` ``[l, l]``, float64: two reads."""
        lifted = torch.zeros(self._width, left.shape[1], dtype=torch.float64)
        factor = left.float().to(self._device)

        def lift(first: int, rows: Tensor) -> None:
            """Add one block's part of ``B^T left``."""
            lifted.add_((self._centred(rows).T @ factor[first : first + len(rows)]).cpu())

        self._run(f"lift-{number}", {"lifted": lifted}, lift)
        self._lifted = lifted.float()
        inner = torch.zeros(left.shape[1], left.shape[1], dtype=torch.float64)
        for part in self._lifted.split(BLOCK_ROWS):
            inner += gram(part)
        product = torch.zeros(self.n_rows, left.shape[1], dtype=torch.float64)
        columns = self._lifted.to(self._device)

        def project(first: int, rows: Tensor) -> None:
            """Project one block of rows, and take their norms."""
            part = slice(first, first + len(rows))
            centred = self._centred(rows)
            product[part] = (centred @ columns).cpu().double()
            if number == 0:
                self.squares[part] = centred.double().square().sum(1).cpu()
                self.along[part] = (centred.cpu() @ self._both.T).double()

        norms = {"squares": self.squares, "along": self.along} if number == 0 else {}
        self._run(f"project-{number}", {"product": product, **norms}, project)
        return product, inner

    def lift(self, left: Tensor, rotation: Tensor, components: Writer) -> Tensor:
        """Write ``W = B^T left rotation`` of the ``left`` last multiplied by, without a read; return ``W^T W``."""
        del left
        components.begin()
        inner = torch.zeros(rotation.shape[1], rotation.shape[1], dtype=torch.float64)
        for part in self._lifted.split(BLOCK_ROWS):
            rows = (part.double() @ rotation).float()
            components.append(rows)
            inner += gram(rows)
        return inner

    def scores(self, components: Writer) -> Tensor:
        """Return ``B W`` ``[n, k]`` float64 of the components as they were written: one read."""
        total = torch.zeros(self.n_rows, components.shape[1], dtype=torch.float64)
        columns = components.read(0, self._width).to(self._device)

        def visit(first: int, rows: Tensor) -> None:
            """Project one block of rows."""
            total[first : first + len(rows)] = (self._centred(rows) @ columns).cpu().double()

        self._run("scores", {"total": total}, visit)
        return total

    def residuals(self, scores: Tensor, components: Writer) -> Tensor:
        """Return ``||b_i - W s_i||^2`` ``[n]`` float64 for scores ``[n, k]``, from differences: one read."""
        squares = torch.zeros(self.n_rows, dtype=torch.float64)
        rows_of_w, factor = components.read(0, self._width).to(self._device), scores.float().to(self._device)

        def visit(first: int, rows: Tensor) -> None:
            """Compare one block of rows."""
            part = slice(first, first + len(rows))
            squares[part] = (self._centred(rows) - factor[part] @ rows_of_w.T).double().square().sum(1).cpu()

        self._run("residuals", {"squares": squares}, visit)
        return squares

    def _centred(self, rows: Tensor) -> Tensor:
        """Subtract the mean in two steps, so that its own rounding does not count."""
        return (rows - self._reference - self._left).to(self._device)

    def _run(self, name: str, state: dict[str, Tensor], visit: Callable[[int, Tensor], None]) -> None:
        """Make one pass over blocks of rows."""

        def stream(start: int) -> Iterator[Tensor]:
            """Yield the blocks after the first ``start`` rows."""
            return row_blocks(self._source, skip_rows=start, block_rows=self._block)

        self._passes.run(name, state, stream, visit, self.n_rows)
