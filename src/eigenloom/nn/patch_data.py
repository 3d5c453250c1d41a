"""Images cut into patches once, kept as bytes, with a label per patch: what patch segmentation trains on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import DataError
from eigenloom.nn.vit import patchify
from eigenloom.sources.images import ImageSet
from eigenloom.sources.patch_labels import patch_labels
from eigenloom.sources.preprocess import Preprocess


@dataclass(frozen=True)
class LabelledPatches:
    """Patches uint8 ``[n, P, 3 patch^2]`` and labels int64 ``[n, P]``, on one device.

    ``grid`` is rows and columns; ``classes`` are the names by label, ``void`` the label of no class; ``scale`` and
    ``shift`` ``[3]`` turn bytes into the network's input, channel by channel.
    """

    patches: Tensor
    labels: Tensor
    grid: tuple[int, int]
    classes: tuple[str, ...]
    void: int
    scale: Tensor
    shift: Tensor

    @classmethod
    def from_images(cls, images: ImageSet, preprocess: Preprocess, device: torch.device) -> Self:
        """Preprocess, cut and label all images.

        Raises:
            DataError: there are no masks, or images differ in their grids.
        """
        if not images.has_masks:
            raise DataError("these images have no masks, and patches cannot be labelled; use scenes or a"
                            " segmentation_folder")  # fmt: skip
        pixels = [preprocess.pixels(images.image(i)) for i in range(len(images))]
        if len(shapes := {p.shape for p in pixels}) > 1:
            raise DataError(
                f"images have {len(shapes)} different sizes after preprocessing, but positions are learned for one"
                " grid; set preprocess.resize to square"
            )
        masks = np.stack([preprocess.mask(images.mask(i)) for i in range(len(images))])
        labels = patch_labels(masks, preprocess.patch, images.void)
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        return cls(
            patches=patchify(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), preprocess.patch).to(device),
            labels=torch.from_numpy(labels.astype(np.int64)).to(device),
            grid=preprocess.grid(*pixels[0].shape[:2]),
            classes=tuple(images.classes),
            void=images.void,
            scale=(1 / (255 * std)).to(device),
            shift=(-mean / std).to(device),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.patches)

    def label_weights(self, void_weight: float) -> Tensor:
        """Return the loss weight of each label, float32 ``[n_labels]``: one, and ``void_weight`` for void."""
        weights = torch.ones(len(self.classes), device=self.patches.device)
        weights[self.void] = void_weight
        return weights

    def inputs(self, patches: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        """Scale bytes ``[b, P, 3 patch^2]`` to the network's input, contrast and brightness ``[b, 3]`` changed."""
        b, n_patches, width = patches.shape
        factor = (gain * self.scale)[:, None, :, None]
        summand = (gain * self.shift + offset)[:, None, :, None]
        scaled = patches.to(torch.float32).view(b, n_patches, 3, width // 3).mul_(factor).add_(summand)
        return scaled.view(b, n_patches, width)

    def plain(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return network inputs float32 ``[b, P, 3 patch^2]`` and labels ``[b, P]`` of a slice, as they are."""
        patches = self.patches[start:stop]
        ones = torch.ones(len(patches), 3, device=patches.device)
        return self.inputs(patches, ones, torch.zeros_like(ones)), self.labels[start:stop]

    def batch(self, chosen: Tensor, shifts: Sequence[Tensor], gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented inputs float32 ``[b, P, 3 patch^2]`` and labels int64 ``[b, P]``.

        Args:
            chosen: numbers of the images ``[b]``, on the CPU like all arguments.
            shifts: whole patches ``[b]`` by which rows and columns move round, labels along with them.
            gain: factor ``[b, 3]`` per channel of the network's input.
            offset: summand ``[b, 3]``.
        """
        device = self.patches.device
        rows, columns = ((torch.arange(n) + s[:, None]) % n for n, s in zip(self.grid, shifts, strict=True))
        places = (rows[:, :, None] * self.grid[1] + columns[:, None, :]).flatten(1).to(device)
        images = chosen[:, None].to(device)
        return self.inputs(self.patches[images, places], gain.to(device), offset.to(device)), self.labels[
            images, places
        ]
