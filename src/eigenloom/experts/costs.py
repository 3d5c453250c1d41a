"""What a seeding costs in floating-point operations, counted from shapes: the same on every machine.

Constants are those of textbooks (Golub & Van Loan): 9 n^3 for a symmetric eigendecomposition, 22 n^3 for an SVD.
"""

from eigenloom.experts.alignment import REPRESENTATIVES
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.settings import SeedingMethod

EIGH, SVD = 9.0, 22.0


def seeding_operations(
    method: str, n_experts: int, shape: tuple[int, int], rank: int, num_bases: int, rounds: int, kmeans_iters: int = 0
) -> float:
    """Count what ``seed_bank`` does for one family, adapters left out.

    Args:
        method: a value of ``SeedingMethod``.
        n_experts: ``E``.
        shape: ``(p, d)`` as factored, ``p <= d``.
        rank: ``r``.
        num_bases: ``m``.
        rounds: of alignment, as made.
        kmeans_iters: rounds of k-means, as made.

    Returns:
        Operations: proxies (``E p^2 d`` where Gram matrices are formed), alignment (``r^2 d`` and ``r^3`` per expert
        and round), then ``E^2 r d + E^3`` for the dictionary, ``m`` times ``E^3`` if it is greedy.
    """
    (p, d), e, r = shape, n_experts, rank
    grams = 2.0 * e * p * p * d
    proxies = {
        SeedingMethod.SVD: grams + e * (EIGH * p**3 + 2.0 * r * p * d),
        SeedingMethod.LEFT_GRAM_PCA: grams + EIGH * p**3 + 2.0 * e * r * p * d,
    }.get(SeedingMethod(method), 2.0 * e * p * d)
    turning = 4.0 * r * r * d + SVD * r**3
    alignment = (4.0 * e * r * r * d if rounds else 0.0) + (
        min(e, REPRESENTATIVES) * rounds + e * bool(rounds)
    ) * turning
    eigh = EIGH * e**3 * (num_bases if method == SeedingMethod.RESIDUAL_GREEDY else 1)
    return proxies + alignment + 2.0 * e * e * r * d + eigh + 2.0 * kmeans_iters * num_bases * e * e


def operations_of(bank: ExpertBank) -> float:
    """Count what the seeding of a trained bank cost, from what it remembers of it."""
    told = bank.metrics["seeding"]
    p, d = sorted(bank.shape)
    rounds, kmeans = len(told.get("procrustes_objective", ())), int(told.get("iterations", 0))
    return seeding_operations(told["method"], bank.n_experts, (p, d), bank.rank, bank.num_bases, rounds, kmeans)
