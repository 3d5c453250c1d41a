"""MoBE's objective, trained by our own code as a rival: one Adam run on adapters, softmax codes and bank.

Objective and training as in arXiv 2508.05257 and its released script: weights divided by their standard deviation for
the loss but not for the start, which is the SVD of the stack of each contiguous group; codes ``softmax(one-hot)``; Adam
with rate 0.07 and no schedule; the best of every 200th epoch. Groups may differ in size by one here. ``even`` codes are
a start of ours, better on some problems, so that the rival is not beaten for its start alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.experts.model import ACTIVATION, bases, squared_error
from eigenloom.experts.settings import at_least, check_sizes, one_of

RATE = 0.07
CHECK_EVERY = 200


@dataclass(frozen=True, eq=False)
class MoBEArm:
    """Fields: ``bank``, ``codes``, ``adapters`` as the weights are; ``relative_error``; ``curve``, (epoch, error)."""

    bank: Tensor
    codes: Tensor
    adapters: Tensor
    relative_error: float
    curve: tuple[tuple[int, float], ...]


def group_starts(w: Tensor, rank: int, num_bases: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return adapters, logits and bank: the SVD of the stack of each of ``m`` contiguous groups.

    Both factors carry square roots of the singular values; logits are 1 for an expert's own group, else 0.
    """
    n, p, d = w.shape
    adapters, bank, logits = w.new_empty(n, p, rank), w.new_empty(num_bases, rank, d), w.new_zeros(n, num_bases)
    for j, members in enumerate(torch.arange(n).tensor_split(num_bases)):
        u, s, vt = torch.linalg.svd(w[members].flatten(0, 1), full_matrices=False)
        root = s[:rank].sqrt()
        adapters[members] = (u[:, :rank] * root).unflatten(0, (len(members), p))
        bank[j] = root[:, None] * vt[:rank]
        logits[members, j] = 1
    return adapters, logits, bank


def train_mobe(
    w: Tensor, rank: int, num_bases: int, *, activation: str = "silu", epochs: int = 2000, even: bool = False
) -> MoBEArm:
    """Train the rival on experts ``[E, p, d]`` float32, all of them in every step.

    Args:
        w: experts.
        rank: rows of an atom.
        num_bases: number of atoms.
        activation: ``silu`` or ``tanh``.
        epochs: Adam steps.
        even: start from nearly equal codes, logits a tenth of a Gaussian, instead of ``softmax(one-hot)``.

    Raises:
        ConfigError: sizes that cannot be, or an activation other than ``silu`` and ``tanh``.
    """
    check_sizes(rank, num_bases, len(w), (w.shape[1], w.shape[2]))
    one_of("activation", activation, ("silu", "tanh"))
    at_least("epochs", epochs, 1)
    scale = w.std()
    target = w / scale
    adapters, logits, bank = group_starts(w, rank, num_bases)
    if even:
        logits = 0.1 * torch.randn(logits.shape, generator=generator(0, "even codes"))
    leaves = [t.requires_grad_() for t in (adapters, logits, bank)]
    optimizer = torch.optim.Adam(leaves, lr=RATE)
    best: tuple[float, list[Tensor]] = (float("inf"), [])
    curve = []
    total = float(target.square().sum(dtype=torch.float64))
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        mixed = (torch.softmax(logits, 1) @ bank.flatten(1)).unflatten(1, bank.shape[1:])
        loss = torch.nn.functional.mse_loss(adapters @ ACTIVATION[activation](mixed), target)
        loss.backward()
        optimizer.step()
        if epoch % CHECK_EVERY == 0 or epoch == epochs:
            with torch.no_grad():
                m = bases(torch.softmax(logits, 1), bank, activation)
                error = (float(squared_error(target, adapters, m).sum()) / total) ** 0.5
            curve.append((epoch, error))
            if error < best[0]:
                best = error, [t.detach().clone() for t in leaves]
    a, found, atoms = best[1]
    return MoBEArm(atoms, torch.softmax(found, 1), a * scale, best[0], tuple(curve))
