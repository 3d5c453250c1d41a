"""Checkpoints along a training: the network's weights after fixed steps, published when the training is done."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as format_safetensors

from eigenloom.errors import StoreError
from eigenloom.nn.vit import SmallViT
from eigenloom.provenance import canonical_json, file_digest, text_digest
from eigenloom.store.atomic import explained, write_bytes


def snapshot_steps(steps: int, n_snapshots: int) -> dict[str, int]:
    """Return file name -> step of ``n_snapshots`` checkpoints at equal distances, the last after the last step."""
    return {
        f"snapshot-{i:02d}.safetensors": round(steps * i / n_snapshots) for i in range(1, n_snapshots + 1)
    }  # fmt: skip


class Trajectory:
    """Keeps weights while a training runs; call it after each step, and ``publish`` at the end.

    Files wait beside the training's own unfinished work, in a folder of its identity: a training that is stopped and
    resumed finds those of the steps it does not repeat, and never those of another training.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], steps: Mapping[str, int]) -> None:
        """Name the folder of unfinished work, whose work it is, and the steps: file name -> step."""
        self._parent = folder
        self._folder = folder / text_digest(canonical_json(identity))[:16]
        self._steps = steps

    def __call__(self, step: int, model: SmallViT) -> None:
        """Write the weights if the step is one of those kept.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        for name, wanted in self._steps.items():
            if wanted == step:
                state = {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(model.state_dict().items())}
                write_bytes(self._folder / name, format_safetensors(state))

    def publish(self, directory: Path) -> dict[str, dict[str, Any]]:
        """Move the files to their place; return name -> bytes and sha256.

        Raises:
            StoreError: one is missing, because somebody deleted unfinished work.
        """
        facts = {}
        for name, step in self._steps.items():
            if not (self._folder / name).is_file():
                raise StoreError(f"{self._folder / name}: the weights after step {step} are missing;"
                                 f" delete {self._parent.parent} and run the same command again")  # fmt: skip
            with explained(directory / name):
                directory.mkdir(parents=True, exist_ok=True)
                os.replace(self._folder / name, directory / name)
            facts[name] = {"bytes": (directory / name).stat().st_size, "sha256": file_digest(directory / name)}
        shutil.rmtree(self._parent, ignore_errors=True)
        return facts
