"""What one walk over rows adds up for k-means. Every sum is exact, so blocks may come in any order, on any process."""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from eigenloom.bases.kmeans_relocation import choose_moves
from eigenloom.linalg.assignment import Nearest
from eigenloom.linalg.order_free import add_by_label, quantize, quantum


@dataclass(frozen=True)
class Quanta:
    """The powers of two of which rows (``[d]``, per feature) and squared distances are taken as multiples."""

    rows: Tensor
    distances: Tensor

    @classmethod
    def of(cls, largest: Tensor, n_rows: int) -> Self:
        """Derive them from bounds ``[d]`` float64 on the magnitude of each feature of all rows and centres."""
        return cls(quantum(largest, n_rows), quantum(1.01 * (2 * largest).square().sum(), n_rows))


@dataclass
class Tally:
    """Sums over rows assigned so far.

    ``sums [K, d]`` float64, ``counts [K]`` int64, ``utility [K]`` float64 (sum of gaps to the second-best centre),
    ``inertia [1]`` float64; and a reservoir of ``m`` rows sampled by squared distance: ``keys [m]`` float64,
    infinite where there is none, ``rows [m, d]`` and ``sq_distances [m]`` float32.
    """

    sums: Tensor
    counts: Tensor
    utility: Tensor
    inertia: Tensor
    keys: Tensor
    rows: Tensor
    sq_distances: Tensor

    @classmethod
    def empty(cls, centers: Tensor, n_reserved: int) -> Self:
        """Start from zero, for ``centers`` ``[K, d]`` and on their device."""
        zero = torch.zeros(len(centers), dtype=torch.float64, device=centers.device)
        return cls(
            sums=torch.zeros_like(centers, dtype=torch.float64),
            counts=zero.long(),
            utility=zero,
            inertia=torch.zeros_like(zero[:1]),
            keys=zero.new_full((n_reserved,), torch.inf),
            rows=centers.new_zeros(n_reserved, centers.shape[1]),
            sq_distances=centers.new_zeros(n_reserved),
        )

    def add(self, x: Tensor, nearest: Nearest, quanta: Quanta, generator: torch.Generator | None) -> None:
        """Count rows ``x`` ``[b, d]``; ``generator`` is this block's and draws the reservoir's keys."""
        labels, distances, gaps = nearest
        add_by_label(self.sums, x, labels, quanta.rows)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.inertia += quantize(distances, quanta.distances).sum()
        if len(gaps) and len(self.counts) > 1:
            add_by_label(self.utility, gaps, labels, quanta.distances)
        if len(self.keys):
            draws = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
            self._reserve(draws.neg_().log1p_().neg_() / distances.double(), x, distances)

    def _reserve(self, keys: Tensor, x: Tensor, distances: Tensor) -> None:
        """Keep the rows with the smallest keys: an exponential over the weight samples by weight without repeats.

        Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).
        """
        size = len(self.keys)
        keys, kept = torch.where(keys.isnan(), torch.inf, keys).topk(min(size, len(x)), largest=False)
        order = torch.cat([self.keys, keys]).topk(size, largest=False).indices
        if x.is_cuda:  # copying all is cheaper than asking the host
            self.keys = torch.cat([self.keys, keys])[order]
            self.rows = torch.cat([self.rows, x[kept]])[order]
            self.sq_distances = torch.cat([self.sq_distances, distances[kept]])[order]
            return
        come = order[order >= size] - size
        leave = torch.ones(size, dtype=torch.bool).index_fill_(0, order[order < size], False).nonzero()[:, 0]
        self.keys[leave] = keys[come]
        self.rows.index_copy_(0, leave, x.index_select(0, kept[come]))
        self.sq_distances[leave] = distances[kept[come]]

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields under ``tally.`` names, for a snapshot."""
        return {f"tally.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], device: torch.device) -> Self:
        """Undo ``tensors``."""
        return cls(**{field.name: tensors[f"tally.{field.name}"].to(device) for field in fields(cls)})

    def merge_processes(self) -> None:
        """Add up over all processes of ``torch.distributed``, if there are several; the order changes no bit."""
        if world_size() == 1:
            return
        for total in (self.sums, self.counts, self.utility, self.inertia):
            dist.all_reduce(total)
        if len(self.keys):
            shares = [[torch.empty_like(own) for _ in range(world_size())] for own in self._reservoir()]
            for own, share in zip(self._reservoir(), shares, strict=True):
                dist.all_gather(share, own.contiguous())
            keys, rows, distances = (torch.cat(share) for share in shares)
            self.keys, order = keys.topk(len(self.keys), largest=False)
            self.rows, self.sq_distances = rows[order], distances[order]

    def _reservoir(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is sampled, as opposed to summed."""
        return self.keys, self.rows, self.sq_distances

    def means(self, centers: Tensor) -> Tensor:
        """Return the mean of each cluster ``[K, d]`` float32; an empty one keeps its centre."""
        counts = self.counts[:, None]
        return torch.where(counts > 0, (self.sums / counts.clamp_min(1)).to(torch.float32), centers)

    def relocate(self, centers: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Move at most ``most`` centres to reserved rows where that gains more than it loses.

        Returns:
            The centres, and the indices of those moved.
        """
        keys, order = self.keys.sort()  # whoever reserved them, in whatever order
        order = order[keys.isfinite()]
        rows = self.rows[order]
        moved, places = choose_moves(rows, self.sq_distances[order], float(self.inertia), self.utility, most)
        return centers.index_copy(0, moved, rows[places].to(centers.dtype)), moved


def utilisation_of(counts: Tensor) -> float:
    """Return ``H(counts / n) / ln K`` of cluster sizes ``[K]``; 1 for a single cluster."""
    if len(counts) == 1:
        return 1.0
    shares = counts.double() / counts.sum()
    return float(torch.special.entr(shares).sum()) / math.log(len(counts))


def world_size() -> int:
    """Return the number of processes that share this fit."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return dist.get_rank() if world_size() > 1 else 0


def shared_centers(centers: Tensor) -> Tensor:
    """Return the centres of process 0 on every process."""
    if world_size() > 1:
        dist.broadcast(centers, 0)
    return centers
