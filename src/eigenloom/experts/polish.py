"""Variable projection with L-BFGS: the problem of one activation, its preconditioner, and a run that can be resumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenloom.experts.adapters import fit_adapters
from eigenloom.experts.blocks import BankSystem, code_matrices
from eigenloom.experts.lbfgs import Descent, Preconditioner
from eigenloom.experts.model import ACTIVATION, mix, slopes
from eigenloom.experts.parameters import CodeParameters
from eigenloom.experts.source import Tiles
from eigenloom.experts.varpro import value_and_gradient

REFRESH = 25
"""Iterations from one preconditioner to the next."""
_DAMPING = 1e-3
_DIRECT = 1024
"""Largest ``m r`` for which atoms are preconditioned together, not one by one."""
_LARGE = 5_000_000


@dataclass(frozen=True)
class Problem:
    """The error of a family as a function of one vector: the codes' free numbers, then the bank."""

    tiles: Tiles
    activation: str
    parameters: CodeParameters
    bank_shape: tuple[int, int, int]
    ridge: float

    def pack(self, codes: Tensor, bank: Tensor) -> Tensor:
        """Return the vector of codes and bank."""
        return torch.cat([self.parameters.free(codes).flatten(), bank.flatten()])

    def unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes ``[E, m]`` and bank ``[m, r, d]``."""
        free, bank = self._split(x)
        return self.parameters.codes(free), bank

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Return value and gradient."""
        free, bank = self._split(x)
        codes = self.parameters.codes(free)
        value, by_codes, by_bank = value_and_gradient(self.tiles, codes, bank, self.activation, self.ridge)
        return value, torch.cat([self.parameters.pull_back(free, by_codes).flatten(), by_bank.flatten()])

    def preconditioner(self, x: Tensor) -> Preconditioner:
        """Return the inverse of the two diagonal blocks of the Gauss-Newton matrix at ``x``, adapters held, damped.

        These are the systems that alternation solves exactly; descents preconditioned by them need about a third of the
        evaluations. The slopes of an activation enter by their products' mean over columns.
        """
        free, bank = self._split(x)
        codes = self.parameters.codes(free)
        jacobian = self.parameters.jacobian(free).double()
        grams, inverses = [], []
        for part, w in self.tiles:
            mixed = mix(codes[part], bank)
            a = fit_adapters(w, ACTIVATION[self.activation](mixed), self.ridge)
            gram = (a.mT @ a).double()
            if self.activation != "identity":
                slope = slopes(self.activation, mixed)
                gram *= (slope @ slope.mT).double() / slope.shape[2]
            j = jacobian[part]
            inverses.append(_damped_inverse(j.mT @ code_matrices(gram, bank) @ j).to(w.dtype))
            grams.append(gram)
        system = BankSystem(torch.cat(grams), codes.double(), bank[..., :1].double())
        m, r, d = self.bank_shape
        joint = m * r <= _DIRECT
        blocks = system.matrix()[None] if joint else system.diagonal_blocks()
        of_codes, of_bank = torch.cat(inverses), _damped_inverse(blocks).to(x.dtype)
        n_free = free.numel()

        def apply(gradient: Tensor) -> Tensor:
            first = (of_codes @ gradient[:n_free].view(free.shape)[..., None]).flatten()
            columns = gradient[n_free:].view(1, m * r, d) if joint else gradient[n_free:].view(m, r, d)
            return torch.cat([first, (of_bank @ columns).flatten()]) / 2

        return apply

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = self.tiles.n_experts * self.bank_shape[0]
        return x[:n].view(self.tiles.n_experts, -1), x[n:].view(self.bank_shape)


def _damped_inverse(blocks: Tensor) -> Tensor:
    """Invert positive semidefinite blocks after adding a share of their mean diagonal."""
    mean = blocks.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    damping = torch.where(mean > 0, _DAMPING * mean, 1.0)
    return torch.cholesky_inverse(torch.linalg.cholesky(blocks + damping[:, None, None] * eye))


class Run:
    """One descent of one problem under a name; its whole state can be saved and restored."""

    def __init__(
        self, name: str, problem: Problem, descent: Descent, iterations: int = 0, anchor: Tensor | None = None
    ):
        """Take over a descent; ``anchor`` is where the preconditioner was made."""
        self.name, self.problem, self.descent, self.iterations = name, problem, descent, iterations
        self._anchor = anchor
        self._precondition = None if anchor is None else problem.preconditioner(anchor)

    @classmethod
    def begin(cls, name: str, problem: Problem, codes: Tensor, bank: Tensor) -> "Run":
        """Start from codes and bank."""
        x = problem.pack(codes, bank)
        return cls(name, problem, Descent.start(problem, x, history=10 if x.numel() <= _LARGE else 5))

    def iterate(self) -> None:
        """Make one step of the descent."""
        if self._precondition is None or self.iterations % REFRESH == 0:
            self._anchor = self.descent.x
            self._precondition = self.problem.preconditioner(self._anchor)
        self.descent.iterate(self.problem, self._precondition)
        self.iterations += 1

    @property
    def point(self) -> tuple[Tensor, Tensor]:
        """Codes and bank."""
        return self.problem.unpack(self.descent.x)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values."""
        d = self.descent
        tensors = {"x": d.x, "gradient": d.gradient, "value": torch.tensor([d.value], dtype=torch.float64)}
        if d.steps:
            tensors |= {"steps": torch.stack(d.steps), "changes": torch.stack(d.changes)}
        if self._anchor is not None:
            tensors["anchor"] = self._anchor
        facts = {"name": self.name, "activation": self.problem.activation, "history": d.history, "stalled": d.stalled}
        return tensors, {**facts, "evaluations": d.evaluations, "iterations": self.iterations}

    @classmethod
    def restored(cls, problem: Problem, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "Run":
        """Undo ``state``."""
        # Copies, since products of the same numbers at another alignment may round differently.
        at = {name: tensor.to(problem.tiles.device).clone() for name, tensor in tensors.items()}
        steps, changes = ([t.clone() for t in at[name]] if name in at else [] for name in ("steps", "changes"))
        descent = Descent(
            at["x"], float(tensors["value"]), at["gradient"], facts["history"], steps, changes, facts["evaluations"],
            facts["stalled"],
        )  # fmt: skip
        return cls(facts["name"], problem, descent, facts["iterations"], at.get("anchor"))
