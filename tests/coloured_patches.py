"""A planted segmentation problem: the colour of a patch tells its label, and half the patches are grey void."""

import numpy as np

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
