"""The walks over the data that move centres: Lloyd passes and mini-batch epochs, resumable at every block."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from eigenloom.bases.kmeans_settings import Settings
from eigenloom.bases.kmeans_tally import Quanta, Tally, rank, utilisation_of, world_size
from eigenloom.batches import Batches, generator
from eigenloom.linalg.accumulate import row_blocks
from eigenloom.linalg.assignment import Assigner
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

BLOCK_ROWS = 2048
RELOCATING_PASSES = 10  # after the first, whose centres are still raw seeds
RESERVED_ROWS = 4096
QUIET_PASSES = 2
CACHE_SHARE = 0.7


@dataclass
class State:
    """Tensors that later steps depend on.

    ``best_*`` is what the Lloyd pass of least inertia measured. The histories have one entry per pass, mini-batch
    epochs included; ``lr_history`` has minimum, median and maximum. ``means``, ``mass`` and ``rates`` serve the
    mini-batches: float64 centres, the weight behind each, and the last rate of each (NaN where untouched).
    """

    centers: Tensor
    best_centers: Tensor
    best_counts: Tensor
    best_utility: Tensor
    best_inertia: Tensor
    inertia_history: Tensor
    utilisation_history: Tensor
    relocated_history: Tensor
    lr_history: Tensor
    means: Tensor
    mass: Tensor
    rates: Tensor

    @classmethod
    def first(cls, centers: Tensor, learning_rate: str) -> Self:
        """Start from initial centres, with nothing measured."""
        zero = torch.zeros(len(centers), dtype=torch.float64, device=centers.device)
        series = torch.zeros(0, dtype=torch.float64)
        return cls(
            centers=centers,
            best_centers=centers,
            best_counts=zero.long(),
            best_utility=zero,
            best_inertia=torch.full((), torch.inf, dtype=torch.float64),
            inertia_history=series,
            utilisation_history=series,
            relocated_history=series.long(),
            lr_history=series.reshape(0, 3),
            means=centers.double(),
            mass=zero + float(learning_rate == "ema"),
            rates=zero * torch.nan,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all fields, for a snapshot, whose format wants them apart in memory."""
        return {f"state.{field.name}": getattr(self, field.name).clone() for field in fields(self)}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], device: torch.device) -> Self:
        """Undo ``tensors``; histories and the best inertia live on the CPU."""
        names = [field.name for field in fields(cls)]
        host = {name for name in names if name.endswith("_history")} | {"best_inertia"}
        return cls(**{name: tensors[f"state.{name}"].to("cpu" if name in host else device) for name in names})


class Trainer:
    """Moves the centres of one fit until they rest; ``state`` then holds the best and the histories."""

    def __init__(
        self,
        batches: Batches,
        settings: Settings,
        state: State,
        *,
        seed: int,
        largest: Tensor,
        snapshots: Snapshots,
        progress: Progress,
    ):
        """Note what does not change; ``largest`` ``[d]`` float64 bounds each feature of rows and centres."""
        self.state = state
        self._batches, self._settings, self._seed = batches, settings, seed
        self._snapshots, self._progress = snapshots, progress
        self._device = state.centers.device
        self._quanta = Quanta.of(largest.to(self._device), batches.n_rows)
        self._position: dict[str, Any] = {"phase": settings.algorithm, "step": 0, "rows": 0, "quiet": 0}
        self._tally: Tally | None = None
        self._cache: list[Tensor] = []
        self._caching = _fits_on(self._device, batches)

    def restore(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        """Continue where a snapshot was taken."""
        self._position = dict(position)
        self._tally = Tally.restored(tensors, self._device)

    def run(self) -> None:
        """Walk until the passes are used up or the inertia rests."""
        settings = self._settings
        while self._position["phase"] == "minibatch":
            self._epoch()
        limit = settings.polish_iter if settings.algorithm == "minibatch" else settings.max_iter
        while self._position["phase"] == "lloyd":
            self._pass(limit)
        if settings.precision == "screen":  # so far labels were approximate; the artifact's figures must not be
            self.state.centers = self.state.best_centers
            self._keep_best(self._measured("exact", 0), always=True)
            self._record(moved=0, rate=0.0)

    def _pass(self, limit: int) -> None:
        """Measure the centres and, unless that was the last pass, move them to the means."""
        state, step = self.state, self._position["step"]
        n_reserved = self._n_reserved() if step + 1 < limit else 0
        tally = self._measured(self._settings.precision, n_reserved)
        inertia = self._keep_best(tally)
        if step and not state.relocated_history[-1]:
            gain = float(state.inertia_history[-1]) - inertia
            self._position["quiet"] = self._position["quiet"] + 1 if gain <= self._settings.tol * inertia else 0
        if step == limit or self._position["quiet"] == QUIET_PASSES or inertia == 0:
            self._position["phase"] = "closing"
            self._record(moved=0, rate=0.0)
            return
        centers, moved = tally.relocate(tally.means(state.centers), self._most_moves())
        state.centers = centers
        self._record(moved=len(moved), rate=1.0)

    def _measured(self, precision: str, n_reserved: int) -> Tally:
        """Assign all rows to the centres as they are and return the sums over all processes."""
        tally = self._open_tally(n_reserved)
        assign = Assigner(self.state.centers, precision)
        first = self._position["rows"] // BLOCK_ROWS
        for number, block in enumerate(self._walk(self._blocks(), f"pass {len(self.state.inertia_history)}"), first):
            if number % world_size() == rank():
                tally.add(block, assign(block, gaps=True), self._quanta, self._draws(number, n_reserved))
        tally.merge_processes()
        return tally

    def _keep_best(self, tally: Tally, always: bool = False) -> float:
        """Keep centres, counts and utility if no pass had less inertia; return the inertia."""
        inertia, state = float(tally.inertia), self.state
        if always or inertia < float(state.best_inertia):
            state.best_centers, state.best_inertia = state.centers, torch.tensor(inertia, dtype=torch.float64)
            state.best_counts, state.best_utility = tally.counts, tally.utility
        return inertia

    def _epoch(self) -> None:
        """Move the centres batch by batch through the rows in shuffled order."""
        state, settings, step = self.state, self._settings, self._position["step"]
        n_reserved = self._n_reserved()
        tally = self._open_tally(n_reserved)
        order = generator(self._seed, "shuffle", step)
        shuffled = self._batches.shuffled(order, self._position["rows"])
        stream = row_blocks(shuffled, device=self._device, block_rows=settings.batch_size)
        first = self._position["rows"] // settings.batch_size
        for number, batch in enumerate(self._walk(stream, f"epoch {step}"), first):
            before = tally.counts.clone()
            tally.sums.zero_()
            assign = Assigner(state.means.to(torch.float32), settings.precision)
            blocks = batch.split(BLOCK_ROWS)
            for place in range(rank(), len(blocks), world_size()):
                rows = blocks[place]
                draws = self._draws(number << 16 | place, n_reserved)
                tally.add(rows, assign(rows, gaps=n_reserved > 0), self._quanta, draws)
            counts = tally.counts - before
            if world_size() > 1:
                dist.all_reduce(tally.sums)
                dist.all_reduce(counts)
            self._step(tally.sums, counts)
        tally.merge_processes()
        means, moved = tally.relocate(state.means, self._most_moves())
        state.means, state.mass = means, state.mass.index_fill(0, moved, float(settings.learning_rate == "ema"))
        self._record(moved=len(moved), rate=None)
        if step + 1 == settings.minibatch_iter:
            state.centers = state.means.to(torch.float32)
            self._position |= {"phase": "lloyd", "step": 0}

    def _step(self, sums: Tensor, counts: Tensor) -> None:
        """Move the centres that the batch touched towards its means; all have some rate, 0 where untouched."""
        state, settings = self.state, self._settings
        touched, weights = counts > 0, counts.double()
        keep, weight = {"count": (1.0, 1.0), "decay": (settings.decay, 1.0), "ema": (1 - settings.ema, settings.ema)}[
            settings.learning_rate
        ]
        state.mass = torch.where(touched, keep * state.mass + weight * weights, state.mass)
        rate = torch.where(touched, weight * weights / state.mass, 0.0)
        means = sums / counts.clamp_min(1)[:, None]
        state.means = state.means + rate[:, None] * (means - state.means)
        state.rates = torch.where(touched, rate, state.rates)

    def _n_reserved(self) -> int:
        """Return how many rows to reserve for relocation in this pass."""
        early = 1 <= len(self.state.inertia_history) <= RELOCATING_PASSES
        return min(RESERVED_ROWS, len(self.state.centers)) if early and self._most_moves() else 0

    def _most_moves(self) -> int:
        """Return how many centres may move between two passes."""
        return int(self._settings.relocate * len(self.state.centers))

    def _open_tally(self, n_reserved: int) -> Tally:
        """Return the sums to go on with: those of the snapshot, or zeros at the start of a pass."""
        if self._tally is None:
            self._tally = Tally.empty(self.state.centers, n_reserved)
        return self._tally

    def _draws(self, number: int, n_reserved: int) -> torch.Generator | None:
        """Return the generator of block ``number`` of this pass, if rows are reserved."""
        index = (len(self.state.inertia_history) << 32) + number
        return generator(self._seed, "relocate", index) if n_reserved else None

    def _blocks(self) -> Iterator[Tensor]:
        """Yield the rows in stored order in blocks of a fixed grid, from where this pass stands.

        Where they fit in the memory of a CUDA device they are kept there after the first full pass.
        """
        skip = self._position["rows"]
        if len(self._cache) * BLOCK_ROWS >= self._batches.n_rows:
            yield from self._cache[skip // BLOCK_ROWS :]
            return
        self._cache.clear()
        for block in row_blocks(self._batches, skip_rows=skip, device=self._device, block_rows=BLOCK_ROWS):
            if self._caching and not skip:
                self._cache.append(block.clone())
            yield block

    def _walk(self, stream: Iterator[Tensor], label: str) -> Iterator[Tensor]:
        """Yield blocks, counting their rows; after each one the fit can be resumed."""
        for block in self._progress.track(stream, f"k-means {label}", self._batches.n_rows):
            yield block
            self._position["rows"] += len(block)
            if self._snapshots.due():
                assert self._tally is not None
                self._snapshots.tick(self.state.tensors() | self._tally.tensors(), self._position)

    def _record(self, moved: int, rate: float | None) -> None:
        """Close a pass: append to the histories, log, and stand at the start of the next one."""
        tally, state = self._tally, self.state
        assert tally is not None
        used = state.rates[~state.rates.isnan()].cpu() if rate is None else torch.full((1,), rate, dtype=torch.float64)
        rates = torch.stack([used.min(), used.median(), used.max()])
        inertia, utilisation = tally.inertia.cpu(), torch.tensor([utilisation_of(tally.counts)], dtype=torch.float64)
        self._progress.log(
            "kmeans", len(state.inertia_history), inertia=float(inertia), lr_min=float(rates[0]),
            lr_median=float(rates[1]), lr_max=float(rates[2]), utilisation=float(utilisation), relocated=moved,
        )  # fmt: skip
        state.inertia_history = torch.cat([state.inertia_history, inertia])
        state.utilisation_history = torch.cat([state.utilisation_history, utilisation])
        state.relocated_history = torch.cat([state.relocated_history, torch.tensor([moved])])
        state.lr_history = torch.cat([state.lr_history, rates[None]])
        state.rates = torch.full_like(state.rates, torch.nan)
        self._tally = None
        self._position |= {"step": self._position["step"] + 1, "rows": 0}


def _fits_on(device: torch.device, batches: Batches) -> bool:
    """Say whether all rows fit in 70 % of the free memory of a CUDA device."""
    if device.type != "cuda" or world_size() > 1:
        return False
    return 4 * batches.n_rows * batches.n_features <= CACHE_SHARE * torch.cuda.mem_get_info(device)[0]
