"""Spherical k-means on the directions of vectors of which only the products are known."""

from typing import Any

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.linalg.seeding import draw_by_weight


def spherical_kmeans(C: Tensor, k: int, iterations: int, start: str, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Cluster directions by cosine (Dhillon and Modha 2001); a centre is the normalised sum of its members' directions.

    Args:
        C: products of the vectors, ``[n, n]`` float64.
        k: clusters.
        iterations: at most so many; stops when nothing moves.
        start: ``kmeans++``, each next seed drawn by ``1 - cos`` to the nearest, or ``random`` vectors.
        seed: of the draw.

    Returns:
        Unit centres as combinations ``[k, n]`` of the vectors, and ``inertia`` (the sum of ``1 - cos``) per iteration,
        ``sizes``, ``iterations`` and the number of ``repaired_clusters``, which were empty and took the worst served.
    """
    n = len(C)
    lengths = C.diagonal().clamp_min(0).sqrt()
    scale = torch.where(lengths > 1e-7 * lengths.max(), 1 / torch.where(lengths > 0, lengths, 1), 0)
    cosines = C * scale[:, None] * scale[None, :]
    members = torch.zeros(k, n, dtype=C.dtype)
    members[torch.arange(k), _seeds(cosines, k, start, seed)] = 1
    labels, inertia, repaired = torch.full((n,), -1), [], 0
    for _ in range(iterations):
        near = _cosines_to(cosines, members)
        found = near.argmax(0)
        repaired += _repair(near, found, k)
        served = near.gather(0, found[None])[0]
        inertia.append(float((1 - served).sum()))
        if torch.equal(found, labels):
            break
        labels = found
        members = torch.zeros(k, n, dtype=C.dtype)
        members[labels, torch.arange(n)] = 1
    norms = ((members @ cosines) * members).sum(1).clamp_min(0).sqrt()
    centers = members * scale / torch.where(norms > 0, norms, 1)[:, None]
    facts = {"inertia": inertia, "sizes": members.sum(1).int().tolist(), "iterations": len(inertia)}
    return centers, facts | {"repaired_clusters": repaired}


def _cosines_to(cosines: Tensor, members: Tensor) -> Tensor:
    """Return the cosine ``[k, n]`` of each vector to each centre."""
    sums = members @ cosines
    norms = (sums * members).sum(1).clamp_min(0).sqrt()
    return sums / torch.where(norms > 0, norms, 1)[:, None]


def _repair(near: Tensor, labels: Tensor, k: int) -> int:
    """Give every empty cluster the worst-served vector of a cluster that has more than one; say how many there were."""
    count = 0
    for j in range(k):
        if bool((labels == j).any()):
            continue
        served = near.gather(0, labels[None])[0].clone()
        sizes = torch.bincount(labels, minlength=k)
        served[sizes[labels] < 2] = torch.inf
        worst = int(served.argmin())
        labels[worst] = j
        near[j, worst] = 1.0  # it becomes its own centre
        count += 1
    return count


def _seeds(cosines: Tensor, k: int, start: str, seed: int) -> Tensor:
    """Return the indices ``[k]`` of the vectors that are the first centres."""
    n, rng = len(cosines), generator(seed, "spherical k-means")
    if start == "random":
        return torch.randperm(n, generator=rng)[:k]
    draws = torch.rand(k, generator=rng, dtype=torch.float64)
    chosen = [int(draws[0] * n)]
    far = 1 - cosines[chosen[0]]
    for j in range(1, k):
        weight = far.clamp_min(0)
        weight[chosen] = 0
        chosen.append(int(draw_by_weight(weight, draws[j : j + 1])))
        far = torch.minimum(far, 1 - cosines[chosen[-1]])
    return torch.tensor(chosen)
