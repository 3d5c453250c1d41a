"""A planted segmentation problem: the colour of a patch tells its label, and half the patches are grey void."""

import numpy as np
from PIL import Image

from eigenloom.sources.images import prepare_images

MODEL = {
    "kind": "vit", "width": 16, "depth": 3, "heads": 2, "patch": 4, "steps": 30, "batch_size": 8, "warmup": 5,
    "optimizer": {"kind": "adamw", "lr": 0.004, "betas": [0.9, 0.98], "weight_decay": 0.05, "clip": 1.0},
    "void_weight": 0.3, "bar": {"below_prior": True},
    "preprocess": {"resize": "none", "n_patches": None, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}  # fmt: skip
"""The specification of a network that learns them."""
COLOURS = np.array([[128, 128, 128], [230, 30, 30], [30, 30, 230]])


class ColouredPatches:
    """Images of 8 x 12 pixels, patches of 4 x 4, two classes and void; an ``ImageSet``."""

    classes, void, has_masks, image_classes = ("void", "red", "blue"), 0, True, ()

    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, (n, 2, 3), p=[0.5, 0.25, 0.25])
        self.masks = labels.repeat(4, 1).repeat(4, 2).astype(np.uint8)
        noise = rng.normal(0, 15, (n, 8, 12, 3))
        self.pixels = np.clip(COLOURS[self.masks] + noise, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]

    def mask(self, index):
        return self.masks[index]


def prepare_coloured(root, split, n, seed):
    """Write such images below ``root`` and the edge of the split; return its path."""
    pictures, folder = ColouredPatches(n, seed), root / split
    for i in range(n):
        for kind, array in (("images", pictures.image(i)), ("masks", pictures.mask(i))):
            path = folder / kind / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    options = {"kind": "segmentation_folder", "root": str(folder), "classes": {"red": [1], "blue": [2]}, "void": [0]}
    edge = root / "images" / split / "meta.json"
    prepare_images(edge, options, seed=0, split=split, first=0, n_examples=n)
    return edge
