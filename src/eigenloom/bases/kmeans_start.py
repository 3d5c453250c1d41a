"""The centres a k-means fit starts from: seedings compared on a reservoir before any meets the full data."""

import torch
from torch import Tensor

from eigenloom.bases.kmeans_settings import Settings
from eigenloom.bases.projection import known_moments
from eigenloom.batches import Batches, generator
from eigenloom.errors import ConfigError, DataError
from eigenloom.linalg.accumulate import refuse_nonfinite
from eigenloom.linalg.assignment import Assigner
from eigenloom.linalg.order_free import add_by_label, quantum
from eigenloom.linalg.seeding import greedy_kmeans_plusplus
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

RESERVOIR_PASSES = 5


def largest_magnitudes(batches: Batches) -> Tensor:
    """Return ``max |x|`` of each feature ``[d]`` float64, from known moments or else one read.

    Raises:
        DataError: NaN or Inf, named by place; a single row; every feature constant.
    """
    if batches.n_rows < 2:
        raise DataError(f"{batches.n_rows} row cannot be clustered; at least 2 are needed")
    if (moments := known_moments(batches)) is not None and not moments.n_nonfinite:
        minimum, maximum = moments.minimum, moments.maximum
    else:
        ranges = [(batch.amin(0), batch.amax(0)) for batch in batches]
        minimum = torch.stack([low for low, _ in ranges]).amin(0)
        maximum = torch.stack([high for _, high in ranges]).amax(0)
        if not (minimum.isfinite() & maximum.isfinite()).all():
            refuse_nonfinite(batches)
    if torch.equal(minimum, maximum):
        raise DataError(f"all {len(minimum)} features are constant over {batches.n_rows} rows: nothing to fit")
    return torch.maximum(-minimum, maximum).double()


def initial_centers(
    batches: Batches,
    settings: Settings,
    *,
    seed: int,
    device: torch.device,
    snapshots: Snapshots,
    saved: tuple[dict[str, Tensor], dict[str, float]] | None,
    progress: Progress,
) -> Tensor:
    """Return ``[K, d]`` float32 on ``device``.

    Of ``n_init`` seedings each gets five Lloyd passes on the reservoir and is scored on a second, disjoint sample
    where there are rows for one; the best continues. A single seeding, and any when ``max_iter`` is 0, is taken as
    it is. ``saved`` is the snapshot of an interrupted search.

    Raises:
        ConfigError: given centres of another width.
    """
    if isinstance(settings.init, Tensor):
        if settings.init.shape[1] != batches.n_features:
            raise ConfigError(
                f"init: centres have {settings.init.shape[1]} features where rows have {batches.n_features}"
            )
        return settings.init.to(device, torch.float32).clone()
    tries = settings.n_init if settings.max_iter > 0 else 1
    wanted = settings.init_rows * (2 if tries > 1 else 1)
    sample = batches.sample(min(wanted, batches.n_rows), generator(seed, "reservoir")).to(device)
    reservoir, unseen = sample[: settings.init_rows], sample[settings.init_rows :]
    judges = unseen if len(unseen) >= settings.n_clusters else reservoir
    best, score, first = None, torch.inf, 0
    if saved is not None:
        best, score, first = saved[0]["centers"].to(device), saved[1]["score"], int(saved[1]["seeding"])
    for number in range(first, tries):
        if best is not None:
            snapshots.tick({"centers": best}, {"phase": "seeding", "seeding": number, "score": score})
        centers = reservoir[_seeds(reservoir, settings, seed, number).to(device)]
        if tries == 1:
            return centers
        centers = _refined(centers, reservoir, settings.precision)
        inertia = float(Assigner(centers)(judges).sq_distances.sum(dtype=torch.float64))
        progress.log("seeding", number, inertia=inertia / len(judges))
        if inertia < score or best is None:
            best, score = centers, inertia
    assert best is not None
    return best


def _seeds(reservoir: Tensor, settings: Settings, seed: int, number: int) -> Tensor:
    """Return the indices of one seeding's rows."""
    random = generator(seed, "seeding", number)
    if settings.init == "random":
        return torch.randperm(len(reservoir), generator=random)[: settings.n_clusters]
    return greedy_kmeans_plusplus(reservoir, settings.n_clusters, random)


def _refined(centers: Tensor, rows: Tensor, precision: str) -> Tensor:
    """Return the centres after a few Lloyd passes over rows in memory."""
    q = quantum(rows.abs().amax(0), len(rows))
    for _ in range(RESERVOIR_PASSES):
        labels = Assigner(centers, precision)(rows).labels
        sums = torch.zeros_like(centers, dtype=torch.float64)
        add_by_label(sums, rows, labels, q)
        counts = torch.bincount(labels, minlength=len(centers))[:, None]
        centers = torch.where(counts > 0, (sums / counts.clamp_min(1)).float(), centers)
    return centers
