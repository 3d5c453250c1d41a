"""Text transformers of the transformers library: the outputs of their blocks for the tokens of packed sequences."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eigenloom.errors import ConfigError
from eigenloom.provenance import file_digest
from eigenloom.sources.extraction import HookedBlocks, find_blocks
from eigenloom.sources.model_files import TextFacts, file_facts, locate, read_text_facts, weights_digest
from eigenloom.sources.pretrained import LIBRARY, empty_module, loaded_module, unchanged

TOKENIZER = re.compile(r"tokenizer.*\.json|special_tokens_map\.json|vocab\..*|merges\.txt|.*\.model")
"""Files that a tokenizer may consist of."""


@dataclass(frozen=True)
class TextModel:
    """A network, what tells it from others, and the dotted path of its blocks where a search finds none or several."""

    module: nn.Module
    architecture: str
    weights_sha256: str
    blocks: str | None = None

    def signature(self, forward_dtype: str, n_tokens: int, bos: bool) -> dict[str, Any]:
        """Return what must agree between two recordings for a basis to move from one to the other."""
        return {
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "tokens": "text",
            "forward_dtype": forward_dtype,
            "n_tokens": n_tokens,
            "bos": bos,
        }


class TokenRecorder(HookedBlocks):
    """Runs a text transformer and keeps the outputs of some of its blocks."""

    def __init__(self, model: TextModel, layers: Sequence[int], device: torch.device, forward_dtype: str = "float32"):
        """Move the network to the device and the dtype, and find its blocks.

        Raises:
            ConfigError: a layer or dtype that does not exist, or blocks that cannot be found.
        """
        super().__init__(model.module, model.blocks, layers, device, forward_dtype)

    @torch.inference_mode()
    def record(self, tokens: Tensor, has_bos: bool) -> Tensor:
        """Return the block outputs ``[b, L, T, D]`` for token numbers int ``[b, T]``, float32, on the device."""
        n_content = tokens.shape[1] - has_bos
        advice = f"{n_content} tokens are due; the network changes the number of tokens and cannot be recorded"
        return self.run(tokens.to(self._device, torch.int64), int(has_bos), n_content, has_bos, advice)


def extract_tokens(recorder: TokenRecorder, tokens: np.ndarray, has_bos: bool, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the block outputs of sequences int ``[n, T]``, float32 ``[b, L, T, D]``, ``batch_size`` at a time."""
    for start in range(0, len(tokens), batch_size):
        yield recorder.record(torch.from_numpy(tokens[start : start + batch_size]), has_bos).cpu().numpy()


def pin_text_model(model: Mapping[str, Any], *, download: bool = False) -> dict[str, Any]:
    """Fix which network a text transformer is: commit, digests of configuration and weights.

    Args:
        model: ``path``, ``revision``, ``blocks``, ``n_tokens``, ``bos``, and the ``shape`` that was planned with.
        download: fetch a hub id that the cache lacks.

    Returns:
        JSON values: what ``open_text_model`` needs and what a signature holds.

    Raises:
        StoreError: files are missing, or refused by the hub.
        ConfigError: a network that cannot be recorded, that is not of the planned shape, or takes fewer tokens.
    """
    directory, commit = locate(model["path"], model["revision"], download=download)
    facts = read_text_facts(directory)
    if TextFacts(**model["shape"]).shape() != facts.shape():
        raise ConfigError(
            f"{directory / 'config.json'}: is {facts.shape()}, not {model['shape']}; correct or remove shape"
        )
    length = model["n_tokens"] + model["bos"]
    if facts.max_tokens is not None and length > facts.max_tokens:
        raise ConfigError(f"{directory}: takes {facts.max_tokens} tokens, not {length}; lower model.n_tokens")
    module = empty_module(directory)
    if (depth := len(find_blocks(module, model["blocks"]))) != facts.depth:
        raise ConfigError(f"model.blocks: {model['blocks']!r} has {depth} blocks, config.json says {facts.depth}")
    files = file_facts(directory)
    return {
        "architecture": f"{LIBRARY}.{type(module).__name__}",
        "path": model["path"],
        "commit": commit,
        "weights_sha256": weights_digest(files),
        "config_sha256": files["config.json"]["sha256"],
        "sources": files,
        "tokenizer": {p.name: file_digest(p) for p in sorted(directory.iterdir()) if TOKENIZER.fullmatch(p.name)},
        "shape": facts.shape(),
        "blocks": model["blocks"],
    }


def open_text_model(path: str | Path, edge: Mapping[str, Any]) -> TextModel:
    """Load the network that an edge names.

    Raises:
        StoreError: files are missing, damaged, or lack weights.
        MismatchError: they are not those that were pinned.
    """
    directory = unchanged(path, edge)
    return TextModel(loaded_module(directory), edge["architecture"], edge["weights_sha256"], edge["blocks"])
