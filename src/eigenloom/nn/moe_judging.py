"""Trained mixtures of experts with other matrices in the place of their experts: what they still predict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.errors import DataError
from eigenloom.nn.checkpoint import read_model_edge
from eigenloom.nn.digits import Digits
from eigenloom.nn.moe import SmallMoE
from eigenloom.nn.moe_checkpoint import open_moe, replace_experts
from eigenloom.nn.moe_training import judge_logits

FORMAT = "eigenloom.experts"
VERSION = 1
ROW_KEYS = ("method", "size", "parameters", "training", "relative_error", "per_expert", "accuracy", "nll", "kl")
"""Of a row of results: who, at which size, its share of the parameters, which training, and what was found."""


class MoEJudge:
    """One training's network and its test images."""

    def __init__(self, edge: Path) -> None:
        """Open the network of an edge, and predict the test images with it.

        Raises:
            StoreError: a file is missing or damaged.
        """
        spec = read_model_edge(edge)["spec"]
        self.training = edge.parent.name
        self._digits = Digits.split(spec["data"]["n_test"], spec["data"]["seed"])
        self._directory = edge.parent
        original = open_moe(edge.parent)
        self.n_layers = len(original.layers)
        self._original = self._predicted(original)

    def experts(self, family: str) -> Tensor:
        """Return the network's own ``gate``, ``up`` or ``down``, ``[layers x E, p, d]``."""
        return torch.cat([getattr(block.experts, family).detach() for block in open_moe(self._directory).layers])

    def row(self, method: str, size: str, parameters: float, families: Mapping[str, Tensor]) -> dict[str, Any]:
        """Judge the network with replaced experts.

        Args:
            method: what made the matrices.
            size: at which size, or empty.
            parameters: of the replaced families, relative to their own.
            families: ``gate``, ``up``, ``down`` -> ``[layers x E, p, d]``; empty judges the network itself.

        Returns:
            A row with ``ROW_KEYS``; errors are relative Frobenius norms, of all replaced experts together and of each.

        Raises:
            DataError: matrices of other shapes, NaN or Inf.
        """
        module = open_moe(self._directory)
        squared, total, per_expert = 0.0, 0.0, {}
        for family, matrices in families.items():
            own = self.experts(family).double()
            if matrices.shape != own.shape or not torch.isfinite(matrices).all():
                raise DataError(
                    f"{method} {size}: {family} of shape {tuple(matrices.shape)}, where finite {tuple(own.shape)} is"
                    " needed; fit the bank again"
                )
            errors, sizes = (own - matrices.double()).square().sum((1, 2)), own.square().sum((1, 2))
            squared, total = squared + float(errors.sum()), total + float(sizes.sum())
            per_expert[family] = [round(value, 6) for value in (errors / sizes).sqrt().tolist()]
        replace_experts(module, families)
        found = judge_logits(self._predicted(module), self._digits.test_y, self._original)
        error = (squared / total) ** 0.5 if total else 0.0
        values = (method, size, parameters, self.training, error, per_expert)
        return dict(zip(ROW_KEYS, values, strict=False)) | asdict(found)

    @torch.no_grad()
    def _predicted(self, module: SmallMoE) -> Tensor:
        return module(self._digits.test_x)


def controls(judge: MoEJudge, families: Sequence[str]) -> list[dict[str, Any]]:
    """Judge what no compression may fall to: the network itself, experts replaced by their mean per layer, and zeroed.

    All families are zeroed; the mean replaces those that banks replace.
    """
    n_layers = judge.n_layers
    means = {}
    for family in families:
        by_layer = judge.experts(family).unflatten(0, (n_layers, -1))
        means[family] = by_layer.mean(1, keepdim=True).expand_as(by_layer).flatten(0, 1).contiguous()
    n_experts = len(next(iter(means.values()))) // n_layers
    nothing = {family: torch.zeros_like(judge.experts(family)) for family in ("gate", "up", "down")}
    return [
        judge.row("dense", "", 1.0, {}),
        judge.row("mean expert", "", 1 / n_experts, means),
        judge.row("zeroed", "", 0.0, nothing),
    ]


def results(moe: str, method: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a ``metrics.json``: of which network, by which bank (or the baselines), its rows, and ``more``."""
    return {"format": FORMAT, "version": VERSION, "moe": moe, "bank": method, "rows": list(rows), "files": {}, **more}
