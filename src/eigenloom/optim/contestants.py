"""Optimizers of the race, as the configuration words them: rules of ``SpectraTEON``, and torch's Muon as a peer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from eigenloom.optim.router import param_groups
from eigenloom.optim.spectra_teon import SpectraTEON

TORCH_MUON = "torch-muon"


def contestant(
    entry: Mapping[str, Any], lr: float, adamw_lr: float, weight_decay: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the factory of an entry of the race.

    Args:
        entry: ``algorithm``, a rule of ``SpectraTEON`` or ``torch-muon``, and keys of ``SpectraTEON`` or of its router.
        lr: of the matrices.
        adamw_lr: of everything else.
        weight_decay: of all but biases, norms and embeddings.
    """
    keys = {key: value for key, value in entry.items() if key != "algorithm"}
    if entry["algorithm"] == TORCH_MUON:
        return lambda module: MuonWithAdamW(module, lr, adamw_lr, weight_decay)
    rates = {"lr": lr, "adamw_lr": adamw_lr, "weight_decay": weight_decay}
    return lambda module: SpectraTEON.from_model(module, algorithm=entry["algorithm"], **rates, **keys)


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` for what the router calls matrices, ``torch.optim.AdamW`` for the rest."""

    def __init__(self, module: nn.Module, lr: float, adamw_lr: float, weight_decay: float):
        """Divide the parameters as ``param_groups`` does and make both."""
        groups = [{**g, "params": [p for _, p in g["params"]]} for g in param_groups(module, algorithm="muon")]
        rest: list[dict[str, Any]] = [
            {k: g[k] for k in ("params", "weight_decay") if k in g} for g in groups if g["algorithm"] == "adamw"
        ]
        matrices = [p for g in groups if g["algorithm"] == "muon" for p in g["params"]]
        super().__init__([{"params": [p for g in groups for p in g["params"]]}], {})
        keys: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **keys),
            torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=weight_decay),
        ]
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss
