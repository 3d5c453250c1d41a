"""Ordered images with optional masks: what every kind of image data looks like to the rest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eigenloom.errors import ConfigError, StoreError
from eigenloom.sources.ade20k import prepare_ade20k
from eigenloom.sources.folders import FolderImages, prepare_image_folder, prepare_segmentation_folder
from eigenloom.sources.scene_images import SceneImages, prepare_scenes
from eigenloom.store.atomic import explained, read_json, write_json
from eigenloom.store.listing import file_problems

FORMAT = "eigenloom.images"
VERSION = 1


class ImageSet(Protocol):
    """``len(images)`` examples in stored order.

    ``classes`` are the names of the patch labels by stored label, ``void`` the stored label of no class, ``has_masks``
    whether masks exist, ``image_classes`` the names of whole-image classes (empty where there are none).
    """

    classes: tuple[str, ...]
    void: int
    has_masks: bool
    image_classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 ``[H, W, 3]``."""
        ...

    def mask(self, index: int) -> np.ndarray:
        """Return the stored labels of one image's pixels, uint8 ``[H, W]``."""
        ...

    def name(self, index: int) -> str:
        """Return what the example is called: a path below the folder, or the scene's number."""
        ...

    def image_class(self, index: int) -> int | None:
        """Return the position of the example's class in ``image_classes``."""
        ...


PREPARE = {
    "scenes": prepare_scenes,
    "image_folder": prepare_image_folder,
    "segmentation_folder": prepare_segmentation_folder,
    "ade20k": prepare_ade20k,
}
OPEN: dict[str, Callable[[Path, Mapping[str, Any]], ImageSet]] = {
    "scenes": SceneImages,
    "image_folder": FolderImages,
    "segmentation_folder": FolderImages,
    "ade20k": FolderImages,
}


def prepare_images(
    path: str | Path,
    images: Mapping[str, Any],
    *,
    seed: int,
    split: str,
    first: int,
    n_examples: int,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fix which images a split consists of, in which order, and publish the edge ``path`` with its siblings.

    Args:
        path: the edge, ``meta.json``.
        images: ``kind`` and the kind's own options.
        seed: of drawing, or of the order.
        split: name of the split.
        first: how many examples of the seeded order to leave out at the front.
        n_examples: how many to take.
        spec: canonical parameters of the job.
        inputs: path of every input edge -> sha256 hex.

    Returns:
        The document of the edge.

    Raises:
        ConfigError: unknown kind or option.
        DataError: the folder does not hold what the configuration states.
        StoreError: nothing can be written.
    """
    path = Path(path)
    options = {key: value for key, value in images.items() if key != "kind"}
    if images["kind"] not in PREPARE:
        raise ConfigError(f"images: kind {images['kind']!r} is unknown; use one of {', '.join(PREPARE)}")
    with explained(path):
        path.unlink(missing_ok=True)
    facts = PREPARE[images["kind"]](path.parent, options, seed=seed, split=split, first=first, n_examples=n_examples)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": images["kind"],
        "n_examples": n_examples,
        **facts,
        "spec": spec,
        "inputs": dict(inputs or {}),
    }
    write_json(path, document)
    return document


def open_images(path: str | Path) -> ImageSet:
    """Open prepared images by their edge.

    Raises:
        StoreError: the edge or a sibling is missing, damaged or of another version.
    """
    path = Path(path)
    edge = read_json(path)
    if not isinstance(edge, dict) or edge.get("format") != FORMAT or edge.get("version") != VERSION:
        raise StoreError(f"{path}: is not an edge of format {FORMAT!r} version {VERSION}; run the rule that makes it")
    if problems := file_problems(path.parent, edge["files"], verify=False):
        raise StoreError("; ".join(problems) + "; delete the edge and run the rule that makes it")
    return OPEN[edge["kind"]](path.parent, edge)
