"""The small mixture of experts on disk, under the names of Qwen's checkpoints: ``config.json``, ``model.safetensors``.

Every expert is a tensor of its own, ``model.layers.{L}.mlp.experts.{i}.gate_proj.weight``, so that whatever reads the
experts of real checkpoints reads these as well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.nn.moe import MoEConfig, SmallMoE
from eigenloom.store.atomic import explained, read_json, write_bytes, write_json

ARCHITECTURE = "eigenloom.moe"
MODEL_TYPE = "eigenloom_moe"
FAMILIES = ("gate", "up", "down")
HEADER = {"format": "pt"}


def write_moe(directory: str | Path, module: SmallMoE) -> dict[str, Any]:
    """Write ``config.json`` and ``model.safetensors``; return name -> bytes and sha256.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    directory = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(named_tensors(module))}
    digests = {
        "config.json": write_json(directory / "config.json", {"model_type": MODEL_TYPE, **asdict(module.config)}),
        "model.safetensors": write_bytes(directory / "model.safetensors", format_safetensors(tensors, HEADER)),
    }
    return {name: {"bytes": (directory / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}


def open_moe(directory: str | Path) -> SmallMoE:
    """Open a network that ``write_moe`` wrote, ready to predict.

    Raises:
        StoreError: a file is missing, damaged, or of another network.
    """
    directory = Path(directory)
    parameters = read_json(directory / "config.json")
    if not isinstance(parameters, dict) or parameters.pop("model_type", None) != MODEL_TYPE:
        raise StoreError(
            f"{directory / 'config.json'}: is not of model_type {MODEL_TYPE!r}; run the rule that makes it"
        )
    module = SmallMoE(MoEConfig(**parameters))
    weights = directory / "model.safetensors"
    try:
        with explained(weights):
            tensors = parse_safetensors(weights.read_bytes())
        for name, target in named_tensors(module):
            stored = tensors.pop(name)
            if stored.shape != target.shape:
                raise ValueError(f"{name} has shape {tuple(stored.shape)}, not {tuple(target.shape)}")
            target.copy_(stored)
    except StoreError:
        raise
    except Exception as error:  # safetensors raises its own type; a missing name is a KeyError
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{weights}: does not hold this network ({reason}); run the rule that makes it") from None
    if tensors:
        raise StoreError(
            f"{weights}: holds {sorted(tensors)[0]!r}, which this network lacks; run the rule that makes it"
        )
    return module.eval()


def named_tensors(module: SmallMoE) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters under the names of a checkpoint, those of experts as views of the stacked ones."""
    for layer, block in enumerate(module.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", block.norm.weight.data
        yield f"{at}.mlp.gate.weight", block.experts.router.data
        for family in FAMILIES:
            for i, matrix in enumerate(getattr(block.experts, family).data):
                yield f"{at}.mlp.experts.{i}.{family}_proj.weight", matrix
    for name in ("weight", "bias"):
        yield f"model.embed.{name}", getattr(module.embed, name).data
        yield f"lm_head.{name}", getattr(module.head, name).data
    yield "model.norm.weight", module.norm.weight.data


@torch.no_grad()
def replace_experts(module: SmallMoE, families: Mapping[str, Tensor]) -> None:
    """Put other matrices in the place of a network's experts.

    Args:
        module: changed in place.
        families: ``gate``, ``up`` or ``down`` -> ``[layers x E, p, d]`` (down: ``[layers x E, d, p]``), in the order of
            layers, then experts.
    """
    n = module.config.num_experts
    for family, matrices in families.items():
        for layer, block in enumerate(module.layers):
            getattr(block.experts, family).copy_(matrices[layer * n : (layer + 1) * n])
