"""k-means beside faiss, SuperKMeans, scikit-learn and torch: assignment, Lloyd, inertia, mini-batches, seeding."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from harness import compare
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from eigenloom.bases.kmeans import KMeans
from eigenloom.batches import generator
from eigenloom.linalg.assignment import Assigner, assign_reference
from eigenloom.linalg.seeding import greedy_kmeans_plusplus
from eigenloom.sources.arrays import ArrayRows

Work = Callable[[], Any]


def installed(name: str) -> bool:
    """Say whether a peer can be imported."""
    return importlib.util.find_spec(name) is not None


def clustered(n: int, d: int, n_sources: int, strong: bool, seed: int = 0) -> Tensor:
    """Draw rows with power-law spectrum and cluster sizes and four features whose mean is ten sigma.

    Strong: the sources are about three times as far apart as they are wide; weak: overlapping.
    """
    random = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, d + 1).pow(-0.5)
    centers = torch.randn(n_sources, d, generator=random) * scales
    sizes = torch.arange(1, n_sources + 1).pow(-0.7)
    labels = torch.multinomial(sizes, n, replacement=True, generator=random)
    width = 0.3 if strong else 2.0
    x = centers[labels] + width * torch.randn(n, d, generator=random) * scales
    x[:, :4] += 10 * scales[:4]
    return x


def run(full: bool) -> list[dict[str, Any]]:
    """Return one record per job and shape."""
    if installed("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
    shapes = [(1024, 4096, 4096), (1024, 1024, 8192), (256, 4096, 8192), (256, 1024, 16384), (128, 256, 65536)]
    records = [assignment(d, k, n, full) for d, k, n in (shapes if full else shapes[3:])]
    records += [
        lloyd(*shape, full) for shape in ([(16384, 1024, 1024), (16384, 128, 1024)] if full else [(8192, 128, 256)])
    ]
    sets = {"A": (True, 47, 512), "B": (True, 390, 128), "C": (False, 390, 128), "D": (False, 23, 512)}
    for name, (strong, rows_per_cluster, k) in sets.items():
        k = k if full else k // 4
        records += equal_time(name, clustered(rows_per_cluster * k, 128, 2 * k, strong), k, full)
    records.append(minibatch(*((131072, 128, 1024) if full else (16384, 64, 256)), full))
    records += [
        seeding(*shape, full) for shape in ([(10240, 256, 1024), (20480, 1024, 2048)] if full else [(2560, 128, 256)])
    ]
    return records


def assignment(d: int, k: int, n: int, full: bool) -> dict[str, Any]:
    """Nearest of ``k`` centres for ``n`` rows."""
    x, centers = clustered(n, d, 2 * k, strong=True), clustered(k, d, 2 * k, strong=True, seed=1)
    rows, table = x.numpy(), centers.numpy()
    ours, screen = Assigner(centers), Assigner(centers, "screen")
    some = x[:1024]
    distances = torch.cdist(some.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist")

    def naive() -> Tensor:
        products = (x @ centers.T).mul_(-2).add_(centers.square().sum(1)).add_(x.square().sum(1, keepdim=True))
        return products.clamp_min_(0).sqrt_().argmin(1)

    def quality(labels: Any) -> Mapping[str, Any]:
        chosen = torch.as_tensor(np.asarray(labels))[:1024].long()
        lost = distances.gather(1, chosen[:, None])[:, 0] / distances.amin(1) - 1
        return {"labels farther than the nearest by 1e-5": float((lost > 1e-5).double().mean())}

    peers: dict[str, Work | None] = {
        "eigenloom": lambda: ours(x).labels,
        "eigenloom, two nearest": lambda: ours(x, gaps=True).labels,
        "eigenloom, unproven screen": lambda: screen(x).labels,
        "faiss IndexFlatL2": _faiss_search(rows, table),
        "scikit-learn argmin": lambda: pairwise_distances_argmin(rows, table),
        "torch cdist + argmin": lambda: torch.cdist(x, centers).argmin(1),
        "torch mm, sqrt, argmin": naive,
    }
    out, half = np.empty((n, k), np.float32), (x.bfloat16(), centers.bfloat16())
    return compare(
        "k-means assignment",
        peers,
        rounds=7 if full else 5,
        settings={"n": n, "d": d, "k": k},
        quality=quality,
        limits={"sgemm": lambda: np.matmul(rows, table.T, out=out), "bf16 GEMM": lambda: half[0] @ half[1].T},
        target="1.0x faiss, 1.2x scikit-learn, 1.3x cdist",
    )


def _faiss_search(rows: np.ndarray, table: np.ndarray) -> Work | None:
    """Return an exact search by faiss."""
    if not installed("faiss"):
        return None
    import faiss

    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(table)
    return lambda: index.search(rows, 1)[1][:, 0]


def _faiss_fit(rows: np.ndarray, k: int, n_iter: int, start: np.ndarray | None = None) -> Callable[[int], Any] | None:
    """Return a fit by faiss on all rows."""
    if not installed("faiss"):
        return None
    import faiss

    def fit(seed: int) -> np.ndarray:
        peer = faiss.Kmeans(
            rows.shape[1], k, niter=n_iter, seed=seed, max_points_per_centroid=10**9, min_points_per_centroid=1
        )
        peer.train(rows, init_centroids=start)
        return peer.centroids

    return fit


def _super_fit(rows: np.ndarray, k: int, n_iter: int) -> Callable[[int], Any] | None:
    """Return a fit by SuperKMeans on all rows, without early stop."""
    if not installed("superkmeans"):
        return None
    from superkmeans import SuperKMeans

    def fit(seed: int) -> np.ndarray:
        peer = SuperKMeans(
            k, rows.shape[1], iters=n_iter, sampling_fraction=1.0, hierarchical=False, early_termination=False,
            max_points_per_cluster=10**6, n_threads=torch.get_num_threads(), seed=seed,
        )  # fmt: skip
        return peer.train(rows)

    return fit


def _seeded(fit: Callable[[int], Any] | None) -> Work | None:
    """Fix the seed of a fit, where there is one."""
    return None if fit is None else lambda: fit(1)


def _inertia_of(x: Tensor) -> Callable[[Any], float]:
    """Return the function that measures centres by float64 distances."""
    return lambda centers: float(assign_reference(x, torch.as_tensor(centers)).sq_distances.double().sum())


def lloyd(n: int, d: int, k: int, full: bool) -> dict[str, Any]:
    """Ten Lloyd iterations from the same random rows (SuperKMeans: its own)."""
    x = clustered(n, d, 2 * k, strong=True)
    rows, start = x.numpy(), x[torch.randperm(n, generator=generator(0, "bench"))[:k]].clone()
    inertia, source = _inertia_of(x), ArrayRows(x)
    settings = {"init": start, "max_iter": 10, "tol": 0.0, "relocate": 0.0}
    peers: dict[str, Work | None] = {
        "eigenloom": lambda: KMeans.fit(source, seed=0, **settings).cluster_centers,
        "eigenloom, screen": lambda: KMeans.fit(source, seed=0, precision="screen", **settings).cluster_centers,
        "faiss Kmeans": _seeded(_faiss_fit(rows, k, 10, start.numpy())),
        "SuperKMeans": _seeded(_super_fit(rows, k, 10)),
        "scikit-learn KMeans": lambda: SklearnKMeans(
            k, init=start.numpy(), n_init=1, max_iter=10, tol=0.0, algorithm="lloyd"
        ).fit(rows).cluster_centers_,
    }  # fmt: skip
    return compare(
        "10 Lloyd iterations",
        peers,
        rounds=5 if full else 3,
        settings={"n": n, "d": d, "k": k, "eigenloom": "and a closing pass with counts and utility"},
        quality=lambda centers: {"inertia": inertia(centers)},
        target="1.05x faiss without AMX",
    )


def equal_time(name: str, x: Tensor, k: int, full: bool) -> list[dict[str, Any]]:
    """Final inertia of whole fits, with their times: who is better at whose time. Inertia is the mean of seeds."""
    rows, source, inertia = x.numpy(), ArrayRows(x), _inertia_of(x)

    def ours(**parameters: Any) -> Callable[[int], Any]:
        return lambda seed: KMeans.fit(source, seed=seed, n_clusters=k, **parameters).cluster_centers

    def batched(seed: int) -> np.ndarray:
        peer = MiniBatchKMeans(k, n_init=1, random_state=seed)
        for epoch in range(5):
            order = torch.randperm(len(rows), generator=generator(seed, "bench", epoch)).numpy()
            for batch in np.array_split(order, max(1, len(rows) // max(1024, k))):
                peer.partial_fit(rows[batch])
        return peer.cluster_centers_

    fits: dict[str, Callable[[int], Any] | None] = {
        "eigenloom": ours(n_init=1, max_iter=25),
        "eigenloom, 12 passes": ours(n_init=1, max_iter=12),
        "eigenloom, default": ours(),
        "eigenloom, no relocation": ours(n_init=1, max_iter=25, relocate=0.0),
        "faiss Kmeans, 25 iterations": _faiss_fit(rows, k, 25),
        "faiss Kmeans, 100 iterations": _faiss_fit(rows, k, 100),
        "SuperKMeans, 25 iterations": _super_fit(rows, k, 25),
        "scikit-learn KMeans": lambda seed: SklearnKMeans(k, n_init=1, random_state=seed).fit(rows).cluster_centers_,
        "MiniBatchKMeans.fit": lambda seed: MiniBatchKMeans(k, n_init=3, random_state=seed).fit(rows).cluster_centers_,
        "MiniBatchKMeans.partial_fit": batched,
    }
    seeds = range(1, 6 if full else 4)
    found = {n: [inertia(fit(seed)) for seed in seeds] for n, fit in fits.items() if fit is not None}
    best = min(min(values) for values in found.values())
    record = compare(
        f"fit of set {name}",
        {n: None if fit is None else (lambda n=n, fit=fit: (n, fit(1))) for n, fit in fits.items()},
        rounds=3 if full else 1,
        settings={"n": len(x), "d": x.shape[1], "k": k, "seeds": len(seeds)},
        quality=lambda result: {
            "excess % over the best found, mean": round(100 * (float(np.mean(found[result[0]])) / best - 1), 3),
            "least": round(100 * (min(found[result[0]]) / best - 1), 3),
        },
        target="inertia <= every peer + 0.1 % at the peer's time",
    )
    return [record]


def minibatch(n: int, d: int, k: int, full: bool) -> dict[str, Any]:
    """Three epochs of mini-batches of 8192 (quick: 2048) rows from the same seeds, and one pass that assigns."""
    size = 8192 if full else 2048
    x = clustered(n, d, 2 * k, strong=True)
    rows, start, inertia = x.numpy(), x[:k].clone(), _inertia_of(x)
    source = ArrayRows(x)

    def peer() -> np.ndarray:
        found = MiniBatchKMeans(k, init=start.numpy(), n_init=1, batch_size=size, reassignment_ratio=0.0)
        for epoch in range(3):
            order = torch.randperm(n, generator=generator(epoch, "bench")).numpy()
            for batch in np.array_split(order, n // size):
                found.partial_fit(rows[batch])
        found.predict(rows)
        return found.cluster_centers_

    def ours() -> Tensor:
        return KMeans.fit(
            source, seed=0, init=start, algorithm="minibatch", learning_rate="count", batch_size=size, minibatch_iter=3,
            polish_iter=0, relocate=0.0,
        ).cluster_centers  # fmt: skip

    return compare(
        "mini-batch epochs",
        {"eigenloom": ours, "MiniBatchKMeans.partial_fit": peer},
        rounds=5 if full else 3,
        settings={"n": n, "d": d, "k": k, "batch": size, "epochs": 3},
        quality=lambda centers: {"inertia": inertia(centers)},
        target="2.2x partial_fit",
    )


def seeding(n: int, d: int, k: int, full: bool) -> dict[str, Any]:
    """Greedy k-means++ on the same rows, with equally many trials."""
    x = clustered(n, d, 2 * k, strong=True)
    rows, inertia = x.numpy(), _inertia_of(x)
    products = torch.empty(n, 2 + int(np.log(k)))

    def limit() -> None:
        for _ in range(k):
            torch.mm(x, x[: products.shape[1]].T, out=products)

    return compare(
        "greedy k-means++",
        {
            "eigenloom": lambda: x[greedy_kmeans_plusplus(x, k, generator(0, "bench"))],
            "scikit-learn kmeans_plusplus": lambda: kmeans_plusplus(rows, k, random_state=0)[0],
        },
        rounds=3,
        settings={"n": n, "d": d, "k": k},
        quality=lambda centers: {"potential": inertia(centers)},
        limits={"the products": limit},
        target="1.5x scikit-learn",
    )
