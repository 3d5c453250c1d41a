"""ADE20K in both of its layouts, a few small images each, with masks that tests can recompute."""

from pathlib import Path

import numpy as np
from PIL import Image

FULL_CLASSES = {"sky": [2420], "wall": [2978, 300]}
"""Numbers as the full release has them: ``floor(R/10) * 256 + G``."""


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Make an image whose colours follow its mask, so that a network's rows know something of the classes."""
    base = np.stack([(ids * 67) % 256, (ids * 131) % 256, (ids * 29) % 256], axis=-1)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def mask(rng: np.random.Generator, choices: list[int], side: int, patch: int) -> np.ndarray:
    """Draw an id per patch, and move a corner of pixels to another id."""
    ids = rng.choice(choices, (side // patch, side // patch)).repeat(patch, 0).repeat(patch, 1)
    ids[: patch // 2, : patch // 2] = choices[-1]
    return ids


def scene_parsing(root: Path, counts: dict[str, int], side: int = 64, patch: int = 16) -> None:
    """Write ``images/PART/*.jpg`` and ``annotations/PART/*.png``: 0 void, then the first classes."""
    rng = np.random.default_rng(0)
    for part, n in counts.items():
        for i in range(n):
            ids = mask(rng, [0, 1, 2, 3, 150], side, patch)
            save(root / f"images/{part}/ADE_{part}_{i:08d}.jpg", picture(rng, ids))
            save(root / f"annotations/{part}/ADE_{part}_{i:08d}.png", ids.astype(np.uint8))


def full_release(root: Path, counts: dict[str, int], side: int = 64, patch: int = 16) -> None:
    """Write ``images/ADE/PART/SCENE/*.jpg`` with ``*_seg.png`` beside them, and what else the release puts there."""
    rng = np.random.default_rng(0)
    for part, n in counts.items():
        for i in range(n):
            ids = mask(rng, [0, 300, 2420, 2978, 5], side, patch)
            stem = root / f"images/ADE/{part}/urban/street/ADE_{part}_{i:08d}"
            save(stem.with_suffix(".jpg"), picture(rng, ids))
            blue = rng.integers(0, 256, ids.shape)  # instances, which are nobody's class
            red = ids // 256 * 10 + rng.integers(0, 10, ids.shape)
            save(stem.with_name(f"{stem.name}_seg.png"), np.stack([red, ids % 256, blue], -1).astype(np.uint8))
            save(stem.with_name(f"{stem.name}_parts_1.png"), np.zeros((side, side, 3), np.uint8))
            save(stem / "instance_000.png", np.zeros((side, side), np.uint8))
            stem.with_suffix(".json").write_text("{}")
