"""Sums of rows and of their products, exact enough for a covariance: shifted, float32 blocks into float64 sums.

A running float32 sum errs in proportion to the number of rows, and ``E[xx^T] - mm^T`` cancels when means are large.
Here every block of ``BLOCK_ROWS`` rows, counted from the first row of the stream however it is cut into batches, is
shifted by the mean of the first block; its products are formed in float32 and added in float64.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from eigenloom.batches import Batches
from eigenloom.errors import DataError

BLOCK_ROWS = 4096  # at d = 1024 10 % faster than 16,384, because a block stays in cache, and half its rounding error
_CACHED = 1 << 18  # numbers worked on at a time while a core's cache holds them


def row_blocks(
    batches: Iterable[Tensor], *, skip_rows: int = 0, device: torch.device | str = "cpu", block_rows: int = BLOCK_ROWS
) -> Iterator[Tensor]:
    """Recut a stream of batches into blocks that begin at multiples of ``block_rows``.

    Args:
        batches: tensors ``[b, d]`` of any float dtype.
        skip_rows: rows to read and drop at the front; a multiple of ``block_rows``.
        device: where the blocks are delivered.
        block_rows: rows of every block but the last.

    Yields:
        Float32 ``[<= block_rows, d]``: one buffer, filled anew for each block, that the caller may overwrite.
    """
    buffer, filled = torch.empty(0), 0
    for batch in batches:
        rows = batch[skip_rows:]
        skip_rows -= len(batch) - len(rows)
        while len(rows):
            if not buffer.numel():
                buffer = torch.empty(block_rows, rows.shape[1], device=device)
            taken = rows[: block_rows - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            rows = rows[len(taken) :]
            if filled == block_rows:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


class ShiftedGram:
    """Running sums over row blocks: count, ``sum (x - shift)``, ``sum (x - shift)(x - shift)^T``, extremes.

    On the CPU the product of a block goes through numpy, whose ``x.T @ x`` reaches BLAS syrk, half the work of a
    GEMM. On CUDA products are float64, so TF32 never enters; other devices multiply in the blocks' dtype.
    """

    def __init__(self, n_features: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """Start at zero rows of length ``n_features``, to come in blocks of ``dtype``."""
        home = torch.device(device) if torch.device(device).type == "cuda" else torch.device("cpu")
        self.n_rows = 0
        self.shift = torch.zeros(n_features, dtype=dtype, device=home)
        self.sums = torch.zeros(n_features, dtype=torch.float64, device=home)
        self.products = torch.zeros(n_features, n_features, dtype=torch.float64, device=home)
        self.minimum = torch.full((n_features,), torch.inf, dtype=dtype, device=home)
        self.maximum = torch.full((n_features,), -torch.inf, dtype=dtype, device=home)

    def add(self, block: Tensor) -> None:
        """Add a block ``[b, d]``, which is overwritten by its shifted rows; the first one sets the shift."""
        home = self.shift.device
        if self.n_rows == 0:
            self.shift.copy_(exact_mean(block))
        for piece in block.split(max(1, _CACHED // block.shape[1])):
            torch.minimum(self.minimum, piece.amin(0).to(home), out=self.minimum)
            torch.maximum(self.maximum, piece.amax(0).to(home), out=self.maximum)
            piece.sub_(self.shift.to(block.device))
            self.sums += piece.sum(0).to(home)
        self.products += gram(block)
        self.n_rows += len(block)

    def finite(self) -> bool:
        """Say whether every number so far was finite (one host sync on a card)."""
        return bool(torch.isfinite(self.minimum).all() and torch.isfinite(self.maximum).all())

    def mean_and_scatter(self) -> tuple[Tensor, Tensor]:
        """Return mean ``[d]`` and ``sum (x - mean)(x - mean)^T`` ``[d, d]``, float64 on the CPU, exactly symmetric.

        Raises:
            DataError: finite rows whose squares overflow float32.
        """
        offset = self.sums / self.n_rows
        scatter = self.products - self.n_rows * torch.outer(offset, offset)
        scatter = (scatter + scatter.T) / 2
        if not torch.isfinite(scatter).all():
            largest = max(self.maximum.max().item(), -self.minimum.min().item())
            raise DataError(
                f"values up to {largest:.3g} overflow float32 sums of squares; divide the rows by a constant"
            )
        return (self.shift.double() + offset).cpu(), scatter.cpu()

    def state(self) -> dict[str, Tensor]:
        """Return what ``restore`` needs, the row count aside."""
        names = ("shift", "sums", "products", "minimum", "maximum")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Tensor], n_rows: int) -> None:
        """Continue from a saved state after ``n_rows`` rows."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.n_rows = n_rows


def shifted_gram_reference(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scatter of rows ``[n, d]`` the obvious way, all in float64."""
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred


def refuse_nonfinite(batches: Batches) -> None:
    """Walk the rows once more to say where the first NaN or Inf is and how many there are.

    A source may name the place itself through ``locate(row, feature) -> str`` (shard, example, token).

    Raises:
        DataError: with batch, row, feature and count, if there is any.
    """
    first, count, start = "", 0, 0
    for number, batch in enumerate(batches):
        wrong = (~torch.isfinite(batch)).nonzero()
        if len(wrong) and not first:
            row, feature = wrong[0].tolist()
            value = "NaN" if batch[row, feature].isnan() else "Inf"
            place = f"batch {number}, row {start + row}, feature {feature}"
            if (locate := getattr(batches, "locate", None)) is not None:
                place = locate(start + row, feature) or place
            first = f"{place} is {value}"
        count += len(wrong)
        start += len(batch)
    if first:
        raise DataError(f"{first}; {count} entries of {start} rows are not finite: repair them or leave those rows out")


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` of float32 matrices, on the CPU by numpy's BLAS; infinite where it overflows.

    numpy hands ``x.T @ x`` to syrk, half the work; and where one side is thin, 64 x 16 against 4096 columns, it took
    half the time of torch on an EPYC.
    """
    if a.device.type != "cpu":
        return a @ b
    with np.errstate(over="ignore", invalid="ignore"):  # found and named by whoever asked for the product
        return torch.from_numpy(a.numpy() @ b.numpy())


def zero_rows(block: Tensor) -> Tensor:
    """Return the positions ``[m]`` of rows that are exactly zero, on the CPU; looks at one column first."""
    candidates = (block[:, 0] == 0).nonzero().squeeze(1)
    return candidates[~block[candidates].any(1)].cpu()


def exact_mean(block: Tensor) -> Tensor:
    """Return the column means ``[d]`` from float64 sums: for a constant column the constant itself, to the last bit."""
    if block.device.type == "cuda":
        return block.mean(0, dtype=torch.float64)
    with np.errstate(invalid="ignore"):  # infinities are found and named by finite()
        return torch.from_numpy(block.cpu().numpy().mean(0, dtype=np.float64))


def gram(block: Tensor) -> Tensor:
    """Return ``block^T block`` ``[d, d]`` of a float32 block ``[b, d]``: float32 from BLAS syrk, float64 on CUDA."""
    if block.device.type == "cuda":
        block = block.double()
        return block.T @ block
    return product(block.T, block).cpu()
