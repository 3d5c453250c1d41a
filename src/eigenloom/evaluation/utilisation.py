"""How evenly the features of a basis are used: what reveals a fit that has collapsed."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("eigenloom")
COLLAPSED = 2.0
"""An effective number of features below this is a collapse."""
LISTED = 4096
"""Up to this many features the report gets every count."""
N_BINS = 64


@dataclass(frozen=True)
class Utilisation:
    """Facts about counts of use, ``p = counts / sum``.

    Fields: ``dead``, features never used; ``share_largest``, the share of all uses that the most used 1 % of the
    features have (at least one feature); ``entropy``, ``H(p) / ln k``; ``effective``, ``exp(H(p))``; ``collapsed``.
    """

    dead: int
    share_largest: float
    entropy: float
    effective: float
    collapsed: bool


def utilisation(counts: Tensor) -> Utilisation:
    """Summarise how often each feature was used.

    Args:
        counts: ``[k]`` integers, rows in which the feature is not zero.

    Of one feature entropy and effective number are 1; of features that nobody uses they are 0.
    """
    k, total = len(counts), int(counts.sum())
    dead = int((counts == 0).sum())
    if total == 0:
        return Utilisation(dead, 0.0, 0.0, 0.0, collapsed=True)
    p = counts.to(torch.float64) / total
    entropy = float(-torch.special.xlogy(p, p).sum())
    share = float(p.sort(descending=True).values[: math.ceil(k / 100)].sum())
    effective = math.exp(entropy)
    relative = entropy / math.log(k) if k > 1 else 1.0
    return Utilisation(dead, share, relative, effective, collapsed=k > 1 and effective < COLLAPSED)


def describe(name: str, per_shard: Sequence[Tensor]) -> dict[str, Any]:
    """Return the JSON of one coding's utilisation: in total, per shard, and the counts behind it.

    Args:
        name: of the coding, for the log.
        per_shard: counts ``[k]`` of each shard, in order.

    Returns:
        ``total`` and ``per_shard`` as ``Utilisation``; ``counts`` for at most 4096 features, else ``histogram`` with
        ``edges`` (65, geometric from 1 to the largest count) and ``features`` (64), dead ones left out.
    """
    counts = torch.stack(list(per_shard)).sum(0)
    total = utilisation(counts)
    if total.collapsed:
        logger.error("%s has collapsed: of %d features %.2f are in use effectively", name, len(counts), total.effective)
    distribution: dict[str, Any] = {"counts": counts.tolist()}
    if len(counts) > LISTED:
        used = counts[counts > 0].to(torch.float64).numpy()
        edges = np.geomspace(1.0, max(used.max(initial=0.0), 2.0), N_BINS + 1)
        features = np.histogram(used, bins=edges)[0]
        distribution = {"histogram": {"edges": edges.tolist(), "features": features.tolist()}}
    return {
        "total": asdict(total),
        "per_shard": [asdict(utilisation(shard)) for shard in per_shard],
        **distribution,
    }
