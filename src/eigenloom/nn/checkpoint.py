"""The small ViT on disk: ``config.json`` and ``model.safetensors``, opened by the edge that lists them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors

from eigenloom.errors import StoreError
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.sources.extraction import VisionModel
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import explained, read_json, write_bytes, write_json
from eigenloom.store.listing import file_problems

FORMAT = "eigenloom.model"
VERSION = 1
ARCHITECTURE = "eigenloom.vit"


def describe(config: ViTConfig, preprocess: Preprocess) -> dict[str, Any]:
    """Return what ``config.json`` holds."""
    return {**asdict(config), "grid": list(config.grid), "preprocess": preprocess.parameters()}


def write_model(directory: str | Path, module: SmallViT, preprocess: Preprocess) -> dict[str, Any]:
    """Write ``config.json`` and ``model.safetensors``; return name -> bytes and sha256.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    directory = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(module.state_dict().items())}
    digests = {
        "config.json": write_json(directory / "config.json", describe(module.config, preprocess)),
        "model.safetensors": write_bytes(directory / "model.safetensors", format_safetensors(tensors)),
    }
    return {name: {"bytes": (directory / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}


def read_model_edge(path: str | Path) -> dict[str, Any]:
    """Read the edge of any model and check its header and its siblings' sizes.

    Raises:
        StoreError: missing, damaged, foreign, of another version, or with siblings that are.
    """
    path = Path(path)
    edge = read_json(path)
    if not isinstance(edge, dict) or edge.get("format") != FORMAT or edge.get("version") != VERSION:
        raise StoreError(f"{path}: is not an edge of format {FORMAT!r} version {VERSION}; run the rule that makes it")
    if problems := file_problems(path.parent, edge["files"], verify=False):
        raise StoreError("; ".join(problems) + f"; delete {path} and run the rule that makes it")
    return edge


def open_vit(path: str | Path, edge: Mapping[str, Any]) -> VisionModel:
    """Open a trained small ViT.

    Args:
        path: its edge, ``meta.json``.
        edge: what the edge holds.

    Raises:
        StoreError: a file is no safetensors file, or does not hold the weights its configuration calls for.
    """
    directory = Path(path).parent
    parameters = read_json(directory / "config.json")
    preprocess = Preprocess(**parameters.pop("preprocess"))
    module = SmallViT(ViTConfig(**parameters))
    weights = directory / "model.safetensors"
    try:
        with explained(weights):
            tensors = parse_safetensors(weights.read_bytes())
        module.load_state_dict(tensors)
    except StoreError:
        raise
    except Exception as error:  # safetensors raises its own type; torch a RuntimeError with names and shapes
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{weights}: does not hold this network ({reason}); run the rule that makes it") from None
    return VisionModel(module, preprocess, ARCHITECTURE, edge["files"]["model.safetensors"]["sha256"])
