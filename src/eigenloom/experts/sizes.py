"""How large a bank is, before anything is fitted."""


def parameter_share(n_experts: int, shape: tuple[int, int], rank: int, num_bases: int) -> float:
    """Return ``r/d + (m/E)(r/p) + m/(pd)``: parameters of adapters, atoms and codes over those of the weights.

    Args:
        n_experts: ``E``.
        shape: ``(p, d)``; exchanged where ``p > d``, since then the transposes are factored.
        rank: ``r``.
        num_bases: ``m``.
    """
    p, d = sorted(shape)
    return rank / d + (num_bases / n_experts) * (rank / p) + num_bases / (p * d)
