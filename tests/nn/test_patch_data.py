"""Patches as bytes give the network what preprocessed images give it, and labels move along with them."""

import numpy as np
import pytest
import torch
from coloured_patches import ColouredPatches

from eigenloom.errors import DataError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.vit import patchify
from eigenloom.sources.patch_labels import patch_labels
from eigenloom.sources.preprocess import Preprocess

PREPROCESS = Preprocess(4, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


@pytest.fixture
def images():
    return ColouredPatches(5)


@pytest.fixture
def data(images):
    return LabelledPatches.from_images(images, PREPROCESS, torch.device("cpu"))


def test_plain_inputs_are_those_of_recording(images, data):
    assert (len(data), data.grid, data.patches.dtype) == (5, (2, 3), torch.uint8)
    x, labels = data.plain(1, 4)
    expected = patchify(PREPROCESS.scaled(images.pixels[1:4]), 4)
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-6)  # two roundings of numbers up to 4
    assert np.array_equal(labels.numpy(), patch_labels(images.masks[1:4], 4))


def test_augmentation_moves_labels_along_and_scales_channels(images, data):
    chosen, shifts = torch.tensor([3, 0]), [torch.tensor([1, 0]), torch.tensor([2, 1])]
    gain, offset = torch.tensor([[1.5, 1.0, 0.5]]).repeat(2, 1), torch.tensor([[0.1, 0.0, -0.2]]).repeat(2, 1)
    x, labels = data.batch(chosen, shifts, gain, offset)
    for i in range(2):
        rolled = np.roll(images.pixels[chosen[i]], [-4 * int(s[i]) for s in shifts], (0, 1))
        mask = np.roll(images.masks[chosen[i]], [-4 * int(s[i]) for s in shifts], (0, 1))
        scaled = PREPROCESS.scaled(rolled[None]) * gain[0].view(1, 3, 1, 1) + offset[0].view(1, 3, 1, 1)
        torch.testing.assert_close(x[i], patchify(scaled, 4)[0], rtol=0, atol=4e-6)
        assert np.array_equal(labels[i].numpy(), patch_labels(mask, 4))


def test_void_is_weighted(data):
    assert data.label_weights(0.3).tolist() == pytest.approx([0.3, 1, 1])


def test_refusals(images):
    images.pixels = [*images.pixels[:4], np.zeros((12, 12, 3), np.uint8)]
    with pytest.raises(DataError, match="2 different sizes after preprocessing.* set preprocess.resize to square"):
        LabelledPatches.from_images(images, PREPROCESS, torch.device("cpu"))
    images.has_masks = False
    with pytest.raises(DataError, match="no masks"):
        LabelledPatches.from_images(images, PREPROCESS, torch.device("cpu"))
