"""What a fit of Nystrom kernel PCA reads: landmarks from a pool of rows, then one pass of sums."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eigenloom.bases.kernel_pca_settings import Settings
from eigenloom.batches import Batches, generator
from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import ShiftedGram, exact_mean, refuse_nonfinite, row_blocks
from eigenloom.linalg.kernels import Kernel, KernelRows, kernel_of, median_gamma
from eigenloom.linalg.landmarks import choose_landmarks
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

GAMMA_ROWS = 2048
POOL_FACTOR = 10
_CACHED = 1 << 18


class Start(NamedTuple):
    """What the pass begins with: resolved ``gamma``, shifted ``landmarks [m, d]``, ``shift [d]``; kernel dtype."""

    gamma: float
    landmarks: Tensor
    shift: Tensor


def start(batches: Batches, settings: Settings, seed: int, device: torch.device) -> Start:
    """Draw a pool of rows, resolve gamma from its first 2048, and choose landmarks.

    The pool has ten rows per landmark; where landmarks are uniform or given it has only what is needed.

    Raises:
        DataError: NaN or Inf in the pool (place and count), or all its rows equal where gamma needs a distance.
        ConfigError: see ``Settings.landmark_count``.
    """
    n_landmarks = settings.landmark_count(batches)
    given = settings.landmark_choice if isinstance(settings.landmark_choice, Tensor) else None
    automatic = settings.kernel == "rbf" and settings.gamma == "auto"
    factor = 0 if given is not None else 1 if settings.landmark_choice == "uniform" else POOL_FACTOR
    wanted = max(factor * n_landmarks, GAMMA_ROWS if automatic else 0)
    pool = torch.empty(0, batches.n_features)
    if wanted:
        pool = batches.sample(min(wanted, batches.n_rows), generator(seed, "landmarks"))
        if not torch.isfinite(pool).all():
            refuse_nonfinite(batches)
    if automatic:
        gamma = median_gamma(pool[:GAMMA_ROWS].to(device))
    elif settings.gamma == "auto":
        gamma = 1 / batches.n_features if settings.kernel == "poly" else 1.0
    else:
        gamma = float(settings.gamma) if settings.kernel != "linear" else 1.0
    kernel = kernel_of(settings.kernel, gamma, settings.degree, settings.coef0)
    if given is not None:
        landmarks = given.detach().cpu().float()
    else:
        assert isinstance(settings.landmark_choice, str)
        pool = pool[: max(factor * n_landmarks, n_landmarks)].to(device)
        chosen = choose_landmarks(settings.landmark_choice, pool, n_landmarks, kernel, generator(seed, "seeding"))
        landmarks = pool[chosen.to(device)].cpu()
    return Start(gamma, *shifted(kernel, landmarks.to(settings.dtype)))


def shifted(kernel: Kernel, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Return landmarks ``[m, d]`` minus their mean, and the mean ``[d]``; 0 where that would change the kernel."""
    shift = torch.zeros_like(landmarks[0])
    if kernel.shift_invariant:
        shift = landmarks.mean(0, dtype=torch.float64).to(landmarks.dtype)
    return landmarks - shift, shift


class KernelSums:
    """Running sums over row blocks: of kernel rows, their products, and their products with the rows themselves.

    With ``k`` the kernel row of ``x``, shifted by the mean of the first block: ``sum k``, ``sum k k^T``, ``sum k (x -
    origin)^T`` (if ``decoder``), ``sum x - origin``, ``sum k(x, x)``, and the extremes of ``x``. Products are formed in
    the landmarks' dtype and added in float64.
    """

    def __init__(self, kernel: Kernel, begin: Start, decoder: bool, device: torch.device):
        """Start at zero rows."""
        n_landmarks, n_features = begin.landmarks.shape
        self._kernel, self._decoder = kernel, decoder
        self._rows = KernelRows(kernel, begin.landmarks.to(device), begin.shift.to(device))
        self.gram = ShiftedGram(n_landmarks, device, begin.landmarks.dtype)
        home = self.gram.shift.device
        self.cross = torch.zeros(n_landmarks if decoder else 0, n_features, dtype=torch.float64, device=home)
        self.origin = torch.zeros(n_features, device=home)
        self.sums = torch.zeros(n_features, dtype=torch.float64, device=home)
        self.diagonal = torch.zeros(1, dtype=torch.float64, device=home)
        self.minimum = torch.full((n_features,), torch.inf, device=home)
        self.maximum = torch.full((n_features,), -torch.inf, device=home)

    def add(self, block: Tensor) -> None:
        """Add float32 rows ``[b, d]``, which are overwritten."""
        home = self.origin.device
        kernel_rows = self._rows(block)
        if self.gram.n_rows == 0:
            self.origin.copy_(exact_mean(block))
        self.gram.add(kernel_rows)
        for piece in block.split(max(1, _CACHED // block.shape[1])):
            torch.minimum(self.minimum, piece.amin(0).to(home), out=self.minimum)
            torch.maximum(self.maximum, piece.amax(0).to(home), out=self.maximum)
            self.diagonal += self._kernel.diagonal(torch.linalg.vecdot(piece, piece)).sum().to(home)
            piece.sub_(self.origin.to(block.device))
            self.sums += piece.sum(0).to(home)
        if self._decoder:
            self.cross += _product(kernel_rows, block.to(kernel_rows.dtype)).to(home)

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        return self.gram.n_rows

    def finite(self) -> bool:
        """Say whether rows and kernel values were finite so far (a host sync on a card)."""
        return self._rows_finite() and self.gram.finite() and bool(torch.isfinite(self.diagonal))

    def refuse(self, batches: Batches) -> None:
        """Say what is wrong with the rows of these sums, if anything is.

        Raises:
            DataError: NaN or Inf; kernel values that overflow; features that are all constant.
        """
        if not self._rows_finite():
            refuse_nonfinite(batches)
        if not self.finite():
            largest = max(self.maximum.max().item(), -self.minimum.min().item())
            name = type(self._kernel).__name__.lower()
            raise DataError(
                f"rows with values up to {largest:.3g} overflow the {name} kernel; standardize them, lower gamma or "
                "degree, or choose rbf"
            )
        if torch.equal(self.minimum, self.maximum):
            raise DataError(f"all {len(self.sums)} features are constant over {self.n_rows} rows: nothing to fit")

    def state(self) -> dict[str, Tensor]:
        """Return what ``restore`` needs, the row count aside."""
        names = ("cross", "origin", "sums", "diagonal", "minimum", "maximum")
        gram = {f"gram.{name}": tensor for name, tensor in self.gram.state().items()}
        return gram | {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Tensor], n_rows: int) -> None:
        """Continue from a saved state after ``n_rows`` rows."""
        self.gram.restore({name: state[f"gram.{name}"] for name in self.gram.state()}, n_rows)
        for name, tensor in self.state().items():
            if not name.startswith("gram."):
                tensor.copy_(state[name])

    def _rows_finite(self) -> bool:
        return bool(torch.isfinite(self.minimum).all() and torch.isfinite(self.maximum).all())


def accumulate(
    batches: Batches, settings: Settings, seed: int, device: torch.device, snapshots: Snapshots, progress: Progress
) -> tuple[Start, KernelSums]:
    """Choose landmarks and make the one pass over all rows, or resume it.

    Raises:
        DataError: see ``start`` and ``KernelSums.refuse``.
        Interrupted: a SIGTERM arrived and the state was saved.
    """
    saved = snapshots.load()
    if saved is None:
        begin = start(batches, settings, seed, device)
    else:
        begin = Start(saved[1]["gamma"], saved[0]["landmarks"], saved[0]["shift"])
    kernel = kernel_of(settings.kernel, begin.gamma, settings.degree, settings.coef0)
    sums = KernelSums(kernel, begin, settings.preimage == "all", device)
    if saved is not None:
        sums.restore(saved[0], saved[1]["rows"])
    stream = progress.track(batches, "kernel PCA", batches.n_rows)
    for block in row_blocks(stream, skip_rows=sums.n_rows, device=device):
        sums.add(block)
        if not (block.is_cuda or sums.finite()):
            break
        if snapshots.due():
            state = {**sums.state(), "landmarks": begin.landmarks, "shift": begin.shift}
            snapshots.tick(state, {"rows": sums.n_rows, "gamma": begin.gamma})
    sums.refuse(batches)
    return begin, sums


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left^T right``; on the CPU by numpy's BLAS."""
    if left.is_cpu:
        with np.errstate(over="ignore", invalid="ignore"):  # found and named by ``refuse``
            return torch.from_numpy(left.numpy().T @ right.numpy())
    return left.T @ right
