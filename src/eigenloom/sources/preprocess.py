"""From stored pixels to what a model takes: resize, scale to [0, 1], subtract the mean, divide by the deviation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eigenloom.errors import ConfigError, DataError

RESIZES = ("none", "square", "grid")


@dataclass(frozen=True)
class Preprocess:
    """The geometry and scaling of one model's input.

    Fields: ``patch`` pixels per patch side; ``resize``: ``none`` takes the image as it is, ``square`` makes
    ``sqrt(n_patches)`` patches each way, ``grid`` the factor pair of ``n_patches`` whose columns/rows ratio is nearest
    the image's; ``n_patches`` is None with ``none``; ``mean`` and ``std`` per channel, in units of [0, 1].
    """

    patch: int
    resize: str = "none"
    n_patches: int | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: an unknown kind of resize, a patch count that is missing or no square, a deviation that is
                not positive.
        """
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.resize not in RESIZES:
            raise ConfigError(f"preprocess: resize {self.resize!r} is unknown; use one of {', '.join(RESIZES)}")
        if self.resize != "none" and (self.n_patches is None or self.n_patches < 1):
            raise ConfigError(f"preprocess: resize {self.resize} needs n_patches of at least 1, not {self.n_patches}")
        if self.resize == "none":
            object.__setattr__(self, "n_patches", None)
        if self.resize == "square" and isqrt(self.n_patches or 0) ** 2 != self.n_patches:
            raise ConfigError(f"preprocess: resize square needs a square number of patches, not {self.n_patches}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError("preprocess: mean and std are three numbers each, std positive")

    def parameters(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``Preprocess(**parameters)`` is equal."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches for an image of that size.

        Raises:
            DataError: without resizing, the image is not a whole number of patches.
        """
        if self.resize == "none":
            if height % self.patch or width % self.patch:
                raise DataError(
                    f"an image of {height} x {width} pixels is not a whole number of {self.patch} x {self.patch}"
                    " patches; set preprocess.resize to square or grid"
                )
            return height // self.patch, width // self.patch
        n_patches = self.n_patches or 1
        if self.resize == "square":
            return isqrt(n_patches), isqrt(n_patches)
        pairs = [(r, n_patches // r) for r in range(1, n_patches + 1) if n_patches % r == 0]
        return min(pairs, key=lambda pair: abs(pair[1] / pair[0] - width / height))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Resize an image uint8 ``[H, W, 3]`` to whole patches (Lanczos)."""
        return self._resized(image, Image.Resampling.LANCZOS)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Give a mask uint8 ``[H, W]`` the image's geometry (nearest neighbour)."""
        return self._resized(mask, Image.Resampling.NEAREST)

    def _resized(self, array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        """Resize where the size differs."""
        rows, columns = self.grid(*array.shape[:2])
        size = (columns * self.patch, rows * self.patch)
        if size == (array.shape[1], array.shape[0]):
            return array
        return np.asarray(Image.fromarray(array).resize(size, how))

    def image(self, image: np.ndarray) -> Tensor:
        """Turn an image uint8 ``[H, W, 3]`` into a model input float32 ``[3, h, w]``."""
        return self.scaled(self.pixels(image)[None])[0]

    def scaled(self, images: np.ndarray) -> Tensor:
        """Scale images of equal, final size: uint8 ``[n, h, w, 3]`` -> float32 ``[n, 3, h, w]``."""
        pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 255
        return (pixels - _channels(self.mean)) / _channels(self.std)


def _channels(values: Sequence[float]) -> Tensor:
    """Shape three numbers for broadcasting over ``[n, 3, h, w]``."""
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
