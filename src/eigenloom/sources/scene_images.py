"""The embedded scenes as a set of images on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.errors import ConfigError
from eigenloom.provenance import canonical_json
from eigenloom.sources.scenes import CLASSES, VOID, SceneStyle, draw_scenes
from eigenloom.store.atomic import atomic_file


def prepare_scenes(
    directory: Path, options: Mapping[str, Any], *, seed: int, split: str, first: int, n_examples: int
) -> dict[str, Any]:
    """Draw the scenes of a split into ``images.npy`` and ``masks.npy``; return what the edge says of them.

    ``files.json`` lists their names, as for every kind of images.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    try:
        style = SceneStyle(**options)
    except TypeError as error:
        raise ConfigError(f"scenes: {error}") from None
    images, masks = draw_scenes(style, seed, split, first, n_examples)
    files = {}
    for name, array in {"images.npy": images, "masks.npy": masks}.items():
        with atomic_file(directory / name) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
        files[name] = {"bytes": file.n_bytes, "sha256": file.sha256}
    with atomic_file(directory / "files.json") as file:
        names = [scene_name(index) for index in range(first, first + n_examples)]
        file.write((canonical_json({"images": names}) + "\n").encode())
    files["files.json"] = {"bytes": file.n_bytes, "sha256": file.sha256}
    return {"classes": list(CLASSES), "void": VOID, "has_masks": True, "image_classes": [], "files": files}


def scene_name(number: int) -> str:
    """Return what a scene is called."""
    return f"scene-{number:06d}"


class SceneImages:
    """Scenes read from their arrays; an ``ImageSet``."""

    def __init__(self, directory: Path, edge: Mapping[str, Any]):
        """Map the arrays beside an edge."""
        self.classes = tuple(edge["classes"])
        self.void = edge["void"]
        self.has_masks = True
        self.image_classes: tuple[str, ...] = ()
        self._first = edge["spec"]["first"] if edge["spec"] else 0
        self._images = np.load(directory / "images.npy", mmap_mode="r", allow_pickle=False)
        self._masks = np.load(directory / "masks.npy", mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        """Return one scene, uint8 ``[canvas, canvas, 3]``."""
        return np.asarray(self._images[index])

    def mask(self, index: int) -> np.ndarray:
        """Return the labels of one scene's pixels."""
        return np.asarray(self._masks[index])

    def name(self, index: int) -> str:
        """Return the scene's number."""
        return scene_name(self._first + index)

    def image_class(self, index: int) -> int | None:
        """Scenes have no class of their own."""
        del index
        return None
