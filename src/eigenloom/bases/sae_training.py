"""One training of a Top-K sparse autoencoder: gradients by hand, Adam, and what happens to elements that never fire.

After Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike & Wu 2024 ("Scaling and evaluating sparse
autoencoders"). Rows are centred by their mean and divided by one number, so that learning rates mean the same for all
data; elements have unit length after every step, and the part of their gradient along themselves is dropped first.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from eigenloom.bases.sae_settings import Settings

NAMES = ("encoder", "encoder_bias", "decoder", "bias")
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
FALLING = 0.2
"""Share of the steps over which the learning rate falls to 0."""
LOOK = 16
"""Steps from one look for dead elements to the next."""


@dataclass
class State:
    """All that the next step depends on.

    ``encoder [k, d]``, ``encoder_bias [k]``, ``decoder [k, d]`` of unit rows, ``bias [d]`` float32, with Adam's two
    moments of each behind one another; ``idle [k]`` int64, rows met since an element last had an entry; ``auxiliary``,
    whether some are dead; ``sums [3]`` float64 of the pass so far: squared error, squared rows, entries;
    ``history [passes, 3]``: the share unexplained, entries per row, dead elements.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    bias: Tensor
    first: Tensor
    second: Tensor
    idle: Tensor
    auxiliary: Tensor
    sums: Tensor
    history: Tensor

    @classmethod
    def start(cls, encoder: Tensor, decoder: Tensor, device: torch.device) -> Self:
        """Begin with no bias and no past."""
        k, d = decoder.shape
        n_numbers = 2 * k * d + k + d
        return cls(
            encoder=encoder.to(device),
            encoder_bias=torch.zeros(k, device=device),
            decoder=decoder.to(device),
            bias=torch.zeros(d, device=device),
            first=torch.zeros(n_numbers, device=device),
            second=torch.zeros(n_numbers, device=device),
            idle=torch.zeros(k, dtype=torch.int64, device=device),
            auxiliary=torch.zeros((), dtype=torch.bool),
            sums=torch.zeros(3, dtype=torch.float64, device=device),
            history=torch.zeros(0, 3, dtype=torch.float64),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all fields, for a snapshot."""
        return {f"state.{field.name}": getattr(self, field.name).clone() for field in fields(self)}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], device: torch.device) -> Self:
        """Undo ``tensors``."""
        host = ("auxiliary", "history")
        names = [field.name for field in fields(cls)]
        return cls(**{name: tensors[f"state.{name}"].to("cpu" if name in host else device) for name in names})


class Trainer:
    """Takes steps; ``state`` holds what has been reached."""

    def __init__(self, settings: Settings, state: State):
        """Take what does not change."""
        self.state, self._settings = state, settings
        k, d = state.decoder.shape
        self._n_aux = min(k, max(1, d // 2) if settings.n_aux is None else settings.n_aux)

    def step(self, rows: Tensor, number: int) -> None:
        """Take one step on centred and scaled rows ``[b, d]``; steps count from 0."""
        state = self.state
        centred = rows - state.bias
        drive = torch.addmm(state.encoder_bias, centred, state.encoder.T)
        values, indices = drive.topk(self._settings.n_active, dim=1)
        codes = torch.zeros_like(drive).scatter_(1, indices, values.relu_())
        residual = centred - codes @ state.decoder
        fired = codes > 0
        gradients = self._gradients(centred, codes, fired, residual * (-2 / rows.numel()))
        if number % LOOK == 0:
            state.auxiliary = (state.idle >= self._settings.dead_after).any().cpu()
        if state.auxiliary and self._n_aux and self._settings.aux_weight:
            self._revive(centred, drive, residual, gradients)
        self._descend(gradients, number)
        state.idle.add_(len(rows)).masked_fill_(fired.any(0), 0)
        state.sums += torch.stack(
            [t.to(torch.float64) for t in (residual.square().sum(), rows.square().sum(), fired.sum())]
        )

    def close_pass(self, n_rows: int) -> None:
        """Write the line of a pass over ``n_rows`` rows into the history."""
        state = self.state
        error, total, entries = state.sums.tolist()
        dead = float((state.idle >= self._settings.dead_after).sum())
        line = torch.tensor([[error / max(total, 1e-300), entries / n_rows, dead]], dtype=torch.float64)
        state.history, state.sums = torch.cat([state.history, line]), torch.zeros_like(state.sums)

    def _gradients(self, centred: Tensor, codes: Tensor, fired: Tensor, outward: Tensor) -> dict[str, Tensor]:
        """Return the gradient of each part from that of the reconstruction, ``outward [b, d]``."""
        inward = (outward @ self.state.decoder.T).mul_(fired)
        return {
            "encoder": inward.T @ centred,
            "encoder_bias": inward.sum(0),
            "decoder": codes.T @ outward,
            "bias": outward.sum(0) - inward.sum(0) @ self.state.encoder,
        }

    def _revive(self, centred: Tensor, drive: Tensor, residual: Tensor, gradients: dict[str, Tensor]) -> None:
        """Add the gradients by which dead elements learn to explain what the living leave (AuxK)."""
        living = self.state.idle < self._settings.dead_after
        values, indices = drive.masked_fill(living, 0.0).topk(self._n_aux, dim=1)
        codes = torch.zeros_like(drive).scatter_(1, indices, values.relu_())
        left = residual - codes @ self.state.decoder
        weight = -2 * self._settings.aux_weight / residual.square().sum().clamp_min(1e-30)
        own = self._gradients(centred, codes, codes > 0, left * weight)
        for name in ("encoder", "encoder_bias", "decoder"):
            gradients[name] += own[name]

    def _descend(self, gradients: dict[str, Tensor], number: int) -> None:
        """Let Adam move all parts; elements are then of unit length again."""
        state, decoder = self.state, self.state.decoder
        gradients["decoder"] -= (gradients["decoder"] * decoder).sum(1, keepdim=True) * decoder
        flat = torch.cat([gradients[name].flatten() for name in NAMES])
        state.first.lerp_(flat, 1 - BETA1)
        state.second.mul_(BETA2).addcmul_(flat, flat, value=1 - BETA2)
        size = (state.second / (1 - BETA2 ** (number + 1))).sqrt_().add_(EPS)
        moves = (state.first / size).mul_(-self._rate(number) / (1 - BETA1 ** (number + 1)))
        sizes = [getattr(state, name).numel() for name in NAMES]
        for name, move in zip(NAMES, moves.split(sizes), strict=True):
            part = getattr(state, name)
            part += move.view_as(part)
        state.decoder /= state.decoder.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def _rate(self, number: int) -> float:
        """Return the learning rate of a step: rising, level, falling."""
        settings = self._settings
        rising = (number + 1) / max(settings.warmup, 1)
        falling = (settings.steps - number) / max(FALLING * settings.steps, 1.0)
        return settings.lr * min(1.0, rising, falling)
