"""One alternating sweep of the linear model: adapters, codes, bank, each exactly, in one pass over the experts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.blocks import BankSystem, code_systems, solve_bank
from eigenloom.experts.coders import (
    least_squares,
    nonnegative,
    objective,
    orthogonal_matching_pursuit,
    soft_threshold_codes,
    softmax_codes,
)
from eigenloom.experts.model import mix, squared_norm
from eigenloom.experts.source import Tiles


@dataclass(frozen=True)
class CodeRule:
    """How codes are solved: the trainer's ``kind``, at most ``support`` nonzeros, or a soft limit.

    ``knob`` is an l1 penalty for signed codes, a temperature for those on the simplex; 0 is neither.
    """

    kind: str
    support: int | None = None
    knob: float = 0.0

    def solve(self, H: Tensor, h: Tensor, current: Tensor) -> Tensor:
        """Return codes ``[b, m]`` float64; none of them is worse than a feasible current one."""
        if self.kind == "sparse":
            assert self.support is not None
            found = orthogonal_matching_pursuit(H, h, self.support)
            kept = (current != 0).sum(1) <= self.support
            worse = kept & (objective(H, h, found) > objective(H, h, current))
            return torch.where(worse[:, None], current, found)
        if self.kind == "signed":
            return soft_threshold_codes(H, h, self.knob, current) if self.knob else least_squares(H, h)
        found = nonnegative(H, h, simplex=self.kind == "simplex")
        return softmax_codes(found, self.knob) if self.kind == "simplex" and self.knob else found


def sweep(tiles: Tiles, codes: Tensor, bank: Tensor, rule: CodeRule, ridge: float) -> tuple[float, Tensor, Tensor]:
    """Return ``F`` before the sweep, adapters refitted, and codes ``[E, m]`` and bank ``[m, r, d]`` after it.

    A_i first, then the codes given A_i; both only look at one expert. Then the bank, from sums over all.
    """
    before = 0.0
    grams, found = [], []
    right = torch.zeros(bank.shape, dtype=torch.float64, device=bank.device)
    for part, w in tiles:
        m = mix(codes[part], bank)
        a = fit_adapters(w, m, ridge)
        before += squared_norm(torch.baddbmm(w, a, m, alpha=-1))
        gram, cross = a.mT @ a, a.mT @ w
        H, h = code_systems(gram, cross, bank)
        alpha = rule.solve(H, h, codes[part].double())
        right += (alpha.T @ cross.double().flatten(1)).view_as(right)
        grams.append(gram.double())
        found.append(alpha)
    system = BankSystem(torch.cat(grams), torch.cat(found), right)
    return before, *rescaled(system.codes, solve_bank(system, bank), bank.dtype, rule.kind == "simplex")


def rescaled(codes: Tensor, bank: Tensor, dtype: torch.dtype, shared: bool = False) -> tuple[Tensor, Tensor]:
    """Give atoms unit norm and codes the rest, or with ``shared`` all atoms one scale, as codes that sum to 1 need."""
    norms = bank.flatten(1).norm(dim=1)
    if shared:
        return codes.to(dtype), (bank / norms.square().mean().sqrt().clamp_min(1e-30)).to(dtype)
    norms = torch.where(norms > 0, norms, 1)
    return (codes * norms).to(dtype), (bank / norms[:, None, None]).to(dtype)
