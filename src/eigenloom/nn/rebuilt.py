"""Networks judged from checkpoint files: what a rebuilt vector is worth as a model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors

from eigenloom.errors import StoreError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.segmentation import judge
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.sources.images import open_images
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import explained, read_json


class Judge:
    """Labels the patches of some images by whatever weights a file holds."""

    def __init__(self, model: Path, images: Path, n_images: int, device: torch.device) -> None:
        """Take the edge of a trained network, whose shape counts, and the edge of labelled images, the first of them.

        Raises:
            StoreError: one of the files is missing or damaged.
            DataError: the images have no masks.
        """
        parameters = read_json(model.with_name("config.json"))
        preprocess = Preprocess(**parameters.pop("preprocess"))
        self._module = SmallViT(ViTConfig(**parameters)).to(device)
        data = LabelledPatches.from_images(open_images(images), preprocess, device)
        self._data = replace(data, patches=data.patches[:n_images], labels=data.labels[:n_images])

    def accuracy(self, weights: Path) -> float:
        """Return the share of patches labelled right by the weights of a safetensors file.

        Raises:
            StoreError: the file does not hold this network.
        """
        with explained(weights):
            text = weights.read_bytes()
        try:
            self._module.load_state_dict(parse_safetensors(text))
        except Exception as error:  # safetensors raises its own type; torch a RuntimeError with names and shapes
            reason = " ".join(str(error).split())[:200]
            raise StoreError(f"{weights}: does not hold this network ({reason}); run the rule that makes it") from None
        return judge(self._module, self._data, self._data, void_weight=1.0).accuracy


def snapshots_of(edge: Mapping[str, Any], path: Path) -> dict[Path, int]:
    """Return the checkpoints that a training left, file -> step, in time order."""
    return {path.with_name(name): step for name, step in edge["snapshots"].items()}
