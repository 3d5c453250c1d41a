"""How rows spread over clusters, as ``reconstruction.json`` tells it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Document = Mapping[str, Any]


def cluster_use(reconstruction: Document) -> Document | None:
    """Return the utilisation of a basis whose features are clusters, None of another or where it was not measured."""
    return reconstruction["utilisation"].get("onehot")


def sizes(document: Document) -> list[tuple[float, int]]:
    """List (rows of a cluster, number of such clusters) by falling size, those without rows last.

    Empty for bases whose features are not clusters. Many clusters come as a histogram; the geometric middle of a bin
    stands for its clusters.
    """
    use = cluster_use(document)
    if use is None:
        return []
    if "counts" in use:
        return [(float(count), 1) for count in sorted(use["counts"], reverse=True)]
    edges, numbers = use["histogram"]["edges"], use["histogram"]["features"]
    middles = [math.sqrt(low * high) for low, high in pairwise(edges)]
    full = [(middle, number) for middle, number in zip(middles, numbers, strict=True) if number]
    dead = use["total"]["dead"]
    return full[::-1] + ([(0.0, dead)] if dead else [])


def in_even_shares(found: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """Return positions in percent of all clusters, and sizes in even shares, up to the last cluster with rows."""
    n_clusters, n_rows = sum(number for _, number in found), sum(size * number for size, number in found)
    x, y, passed = [], [], 0
    for size, number in found:
        if size > 0:
            x.append(100 * (passed + number / 2) / n_clusters)
            y.append(size * n_clusters / n_rows)
        passed += number
    return x, y
