"""Vision transformers of the transformers library, from a folder or the Hugging Face cache, as networks to record.

Weights are read where they lie and never copied. Only safetensors are read, and code that comes with a checkpoint is
never run.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.sources.extraction import VisionModel, count_prefix, find_blocks
from eigenloom.sources.model_files import INSTALL, file_facts, locate, read_facts, weights_digest
from eigenloom.sources.preprocess import Preprocess

LIBRARY = "transformers"
TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""``model_type`` of checkpoints of two towers -> the class that loads the one for images."""
AFTER_THE_BLOCKS = ("pooler", "head", "classifier")
"""First names of weights that no block's output depends on: a checkpoint may lack them."""
FACTS = ("architecture", "width", "depth", "patch", "has_cls")


def pin_model(model: Mapping[str, Any], *, download: bool = False) -> dict[str, Any]:
    """Fix which network a model is: commit, digests of configuration and weights, what it takes.

    Args:
        model: ``path``, ``revision``, ``blocks``, ``cls``, ``preprocess`` (of which ``mean`` and ``std`` may be None:
            the model's own), and the ``shape`` that was planned with.
        download: fetch a hub id that the cache lacks.

    Returns:
        JSON values: what ``open_pretrained`` needs and what a signature holds.

    Raises:
        StoreError: files are missing, or refused by the hub.
        ConfigError: a network that cannot be recorded; one that is not of the planned shape; no mean and deviation.
    """
    directory, commit = locate(model["path"], model["revision"], download=download)
    facts = read_facts(directory, model["cls"])
    if facts.shape() != model["shape"]:
        differs = [f"{key} {facts.shape()[key]}, not {model['shape'][key]}" for key in FACTS if
                   facts.shape()[key] != model["shape"][key]]  # fmt: skip
        raise ConfigError(f"{directory / 'config.json'}: {'; '.join(differs)}; correct or remove model.shape")
    scaling = {key: model["preprocess"][key] or getattr(facts, key) for key in ("mean", "std")}
    if None in scaling.values():
        raise ConfigError(f"{directory}: no preprocessor_config.json states image_mean and image_std; set mean and std")
    preprocess = Preprocess(facts.patch, **{**model["preprocess"], **scaling})
    module = empty_module(directory)
    if (depth := len(find_blocks(module, model["blocks"]))) != facts.depth:
        raise ConfigError(f"model.blocks: {model['blocks']!r} has {depth} blocks, config.json says {facts.depth}")
    if (found := count_prefix(module, model["cls"])[1]) != facts.has_cls:  # the plan went by the architecture's name
        verb = "has a" if found else "has no"
        raise ConfigError(f"{directory}: {type(module).__name__} {verb} CLS token; set model.cls: {str(found).lower()}")
    files = file_facts(directory)
    return {
        "architecture": f"{LIBRARY}.{type(module).__name__}",
        "family": facts.family,
        "path": model["path"],
        "commit": commit,
        "weights_sha256": weights_digest(files),
        "config_sha256": files["config.json"]["sha256"],
        "sources": files,
        "shape": facts.shape(),
        "preprocess": preprocess.parameters(),
        "blocks": model["blocks"],
        "cls": model["cls"],
    }


def open_pretrained(path: str | Path, edge: Mapping[str, Any]) -> VisionModel:
    """Load the network that an edge names.

    Args:
        path: the edge, ``meta.json``.
        edge: what it holds, see ``pin_model``.

    Raises:
        StoreError: files are missing, damaged, or lack weights.
        MismatchError: they are not those that were pinned.
    """
    directory = unchanged(path, edge)
    module = loaded_module(directory)
    preprocess = Preprocess(**edge["preprocess"])
    return VisionModel(
        module, preprocess, edge["architecture"], edge["weights_sha256"], blocks=edge["blocks"], cls=edge["cls"]
    )


def unchanged(path: str | Path, edge: Mapping[str, Any]) -> Path:
    """Return the folder of the network that an edge names, after comparing its files with the edge.

    Raises:
        StoreError: files are missing.
        MismatchError: they are not those that were pinned.
    """
    directory, _ = locate(edge["path"], edge["commit"])
    files, pinned = file_facts(directory), edge["sources"]
    if changed := [name for name in sorted(files.keys() | pinned.keys()) if files.get(name) != pinned.get(name)]:
        raise MismatchError(
            f"{directory}: {', '.join(changed)} changed since {path} was made; restore the files, or delete {path} and"
            " run again"
        )
    return directory


def _library() -> Any:
    """Import transformers where it is needed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(LIBRARY)
    except ImportError:
        raise ConfigError(f"a pretrained model needs the package {LIBRARY}; {INSTALL}") from None


def _class(directory: Path) -> tuple[Any, Any]:
    """Return the class that loads a folder, and its configuration."""
    library = _library()
    try:
        config = library.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{directory}: transformers {library.__version__} does not know this model ({reason}); code that comes"
            " with a model is never run"
        ) from None
    tower = TOWERS.get(config.model_type)
    return (getattr(library, tower), config.vision_config) if tower else (library.AutoModel, config)


def empty_module(directory: Path) -> nn.Module:
    """Build the network without weights, on no device.

    Raises:
        ConfigError: transformers does not know it, or is not installed.
    """
    maker, config = _class(directory)
    with torch.device("meta"):
        return maker(config) if maker is not _library().AutoModel else maker.from_config(config)


def loaded_module(directory: Path) -> nn.Module:
    """Build the network with its weights in float32.

    Raises:
        StoreError: weights are damaged, missing, or of other shapes.
    """
    maker, _ = _class(directory)
    try:
        module, found = maker.from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise types of their own
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{directory}: does not hold this network ({reason}); download it again") from None
    missing = sorted(name for name in found["missing_keys"] if not _is_after_the_blocks(name))
    if wrong := missing + sorted(str(entry) for entry in found["mismatched_keys"]):
        shown = ", ".join(wrong[:5])
        raise StoreError(f"{directory}: weights lack {len(wrong)} tensors of this network ({shown}); download it again")
    return module.eval()


def _is_after_the_blocks(name: str) -> bool:
    """Say whether a weight is that of a head or pooler."""
    return any(part in AFTER_THE_BLOCKS for part in name.split("."))
