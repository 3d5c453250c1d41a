"""``scenes``: bundled photographs with bundled handwritten digits pasted in, and a mask that says where.

Every pixel comes from scikit-learn's two sample photographs and its 1797 digits (8 x 8, values 0..16). Scene ``i``
of a split is a function of ``(seed, split, i)`` alone, so it does not depend on how many there are. Digit instances
are disjoint between splits; the photographs are shared, which is harmless: they are void.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from eigenloom.errors import ConfigError

SPLITS = ("fit_train", "fit_val", "probe_train", "probe_val")
SHARES = (0.50, 0.15, 0.20, 0.15)
CLASSES = ("void", *(str(digit) for digit in range(10)))
VOID = 0
CELLS = 8
"""Side of a stored digit, in cells."""

CONTRAST = 0.6
INK_GAIN = 1.25
FOOTPRINT = 4
TRIES = 20


@dataclass(frozen=True)
class SceneStyle:
    """What a scene looks like: canvas side and patch side in pixels, how many digits, and their zooms."""

    canvas: int = 64
    patch: int = 8
    digits: tuple[int, int] = (2, 4)
    zooms: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        """Check the sizes against one another.

        Raises:
            ConfigError: a digit does not fit, or the canvas is not a whole number of patches.
        """
        object.__setattr__(self, "digits", tuple(self.digits))
        object.__setattr__(self, "zooms", tuple(self.zooms))
        if self.canvas % self.patch:
            raise ConfigError(f"scenes: canvas {self.canvas} is not a multiple of patch {self.patch}")
        if self.canvas > min(min(photo.shape[:2]) for photo in photographs()):
            raise ConfigError(f"scenes: canvas {self.canvas} is larger than the photographs (427 x 640)")
        if not self.zooms or min(self.zooms) < 1 or max(self.zooms) * CELLS > self.canvas:
            raise ConfigError(f"scenes: zooms {list(self.zooms)} must be 1..{self.canvas // CELLS} for this canvas")
        if not 1 <= self.digits[0] <= self.digits[1]:
            raise ConfigError(f"scenes: digits {list(self.digits)} must be [low, high] with 1 <= low <= high")


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """Return the bundled photographs, uint8 ``[427, 640, 3]`` each."""
    return tuple(np.asarray(image, dtype=np.uint8) for image in load_sample_images().images)


@cache
def instances(seed: int, split: str) -> Mapping[int, Sequence[np.ndarray]]:
    """Return per class the 8 x 8 digits (values 0..16) that belong to a split.

    Per class a seeded permutation of the instances is cut into the four splits' shares.

    Raises:
        ConfigError: an unknown split.
    """
    number = split_number(split)
    digits = load_digits()
    found = {}
    for label in range(10):
        ids = np.flatnonzero(digits.target == label)
        ids = np.random.default_rng([seed, 1000 + label]).permutation(ids)
        edges = np.rint(np.cumsum((0, *SHARES)) * len(ids)).astype(int)
        found[label] = [digits.images[i] for i in ids[edges[number] : edges[number + 1]]]
    return found


def split_number(split: str) -> int:
    """Return the position of a split.

    Raises:
        ConfigError: it is not one of the four.
    """
    if split not in SPLITS:
        raise ConfigError(f"scenes: {split!r} is not a split; use one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


def draw_scene(style: SceneStyle, seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        style: sizes.
        seed: of the data set.
        split: decides which digit instances may appear.
        index: the scene's number within the split.

    Returns:
        The image, uint8 ``[canvas, canvas, 3]``, and its mask, uint8 ``[canvas, canvas]``: 0 void, digit c is c + 1.
    """
    rng = np.random.default_rng([seed, split_number(split), index])
    image = background(style.canvas, rng)
    mask = np.zeros((style.canvas, style.canvas), dtype=np.uint8)
    taken = np.zeros_like(mask, dtype=bool)
    pool = instances(seed, split)
    for _ in range(rng.integers(style.digits[0], style.digits[1] + 1)):
        label = int(rng.integers(10))
        digit = pool[label][int(rng.integers(len(pool[label])))]
        side = CELLS * int(rng.choice(style.zooms))
        box = free_box(style, side, taken, rng)
        if box is None:
            continue
        taken[box] = True
        image[box] = paste(image[box], digit, rng)
        mask[box] = np.where(footprint(digit, side), label + 1, mask[box])
    return np.rint(image).astype(np.uint8), mask


def background(canvas: int, rng: np.random.Generator) -> np.ndarray:
    """Crop a photograph at random, mirrored or not, with part of its contrast; float ``[canvas, canvas, 3]``."""
    photo = photographs()[rng.integers(len(photographs()))]
    top, left = (int(rng.integers(size - canvas + 1)) for size in photo.shape[:2])
    crop = photo[top : top + canvas, left : left + canvas].astype(np.float64)
    if rng.integers(2):
        crop = crop[:, ::-1]
    mean = crop.mean((0, 1))
    return mean + CONTRAST * (crop - mean)


def free_box(style: SceneStyle, side: int, taken: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Find a box on the patch lattice that overlaps no earlier one; None after some tries."""
    places = (style.canvas - side) // style.patch + 1
    for _ in range(TRIES):
        top, left = (style.patch * int(p) for p in rng.integers(places, size=2))
        box = (slice(top, top + side), slice(left, left + side))
        if not taken[box].any():
            return box
    return None


def paste(under: np.ndarray, digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend a digit's ink over a box: light on dark, dark on light."""
    weights = interpolation(under.shape[0])
    alpha = np.clip(INK_GAIN * (weights @ (digit / 16) @ weights.T), 0, 1)[..., None]
    low, high = (190, 256) if under.mean() < 128 else (0, 66)
    color = rng.integers(low, high, size=3)
    return (1 - alpha) * under + alpha * color


@cache
def interpolation(side: int) -> np.ndarray:
    """Return the ``side x 8`` matrix of bilinear interpolation between cell centres, edges held."""
    position = np.clip((np.arange(side) + 0.5) * CELLS / side - 0.5, 0, CELLS - 1)
    left = np.minimum(position.astype(int), CELLS - 2)
    weights = np.zeros((side, CELLS))
    rows = np.arange(side)
    weights[rows, left] = 1 - (position - left)
    weights[rows, left + 1] = position - left
    return weights


def footprint(digit: np.ndarray, side: int) -> np.ndarray:
    """Return where a digit lies in its box, bool ``[side, side]``: inked cells, widened by one cell, enlarged."""
    inked = np.pad(digit >= FOOTPRINT, 1)
    shifted = [inked[i : i + CELLS, j : j + CELLS] for i in range(3) for j in range(3)]
    widened = np.logical_or.reduce(shifted)
    zoom = side // CELLS
    return widened.repeat(zoom, 0).repeat(zoom, 1)


def draw_scenes(style: SceneStyle, seed: int, split: str, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes ``first .. first + n - 1``: images uint8 ``[n, c, c, 3]``, masks uint8 ``[n, c, c]``."""
    images = np.empty((n, style.canvas, style.canvas, 3), dtype=np.uint8)
    masks = np.empty(images.shape[:3], dtype=np.uint8)
    for i in range(n):
        images[i], masks[i] = draw_scene(style, seed, split, first + i)
    return images, masks
