"""The embedded data are what the documentation says, whatever machine or process draws them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eigenloom.errors import ConfigError
from eigenloom.sources.patch_labels import patch_labels
from eigenloom.sources.scenes import SPLITS, SceneStyle, draw_scene, draw_scenes, footprint, instances, interpolation


@pytest.fixture(scope="module")
def drawn():
    return draw_scenes(SceneStyle(), 0, "fit_train", 0, 400)


def test_shapes_and_labels(drawn):
    images, masks = drawn
    assert (images.shape, images.dtype) == ((400, 64, 64, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((400, 64, 64), np.uint8)
    assert set(np.unique(masks)) == set(range(11))


def test_a_scene_does_not_depend_on_how_many_there_are(drawn):
    images, masks = draw_scenes(SceneStyle(), 0, "fit_train", 37, 3)
    assert np.array_equal(images, drawn[0][37:40])
    assert np.array_equal(masks, drawn[1][37:40])
    assert not np.array_equal(images[0], draw_scene(SceneStyle(), 1, "fit_train", 37)[0])
    assert not np.array_equal(images[0], draw_scene(SceneStyle(), 0, "fit_val", 37)[0])


def test_facts_of_the_default_style(drawn):
    """Shares seen on 600 scenes: void .64, void tied with a digit .042, mixed .185; the bands are 5 sigma and more."""
    masks = drawn[1]
    cut = masks.reshape(-1, 8, 8, 8, 8).swapaxes(2, 3).reshape(-1, 64)
    inked = (cut > 0).sum(1)
    labels = patch_labels(masks, 8)
    assert abs((labels == 0).mean() - 0.64) < 0.03
    assert abs((inked == 32).mean() - 0.04) < 0.015
    assert abs(((inked > 0) & (inked < 64)).mean() - 0.19) < 0.03
    assert all(len(set(patch[patch > 0])) <= 1 for patch in cut)
    assert ((labels > 0).any(1)).all()


def test_digits_are_disjoint_between_splits():
    seen = [
        {digit.tobytes() + bytes([label]) for label, digits in instances(0, split).items() for digit in digits}
        for split in SPLITS
    ]
    counts = [sum(len(digits) for digits in instances(0, split).values()) for split in SPLITS]
    assert sum(counts) == 1797
    assert [round(count / 1797, 2) for count in counts] == pytest.approx([0.50, 0.15, 0.20, 0.15], abs=0.01)
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            assert not first & second


def test_another_process_draws_the_same_bytes(drawn):
    code = (
        "import hashlib; from eigenloom.sources.scenes import SceneStyle, draw_scenes;"
        "i, m = draw_scenes(SceneStyle(), 0, 'fit_train', 0, 5);"
        "print(hashlib.sha256(i.tobytes() + m.tobytes()).hexdigest())"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(drawn[0][:5].tobytes() + drawn[1][:5].tobytes()).hexdigest()


def test_interpolation_is_bilinear():
    weights = interpolation(16)
    assert np.allclose(weights.sum(1), 1)
    assert np.allclose(weights[0, :2], [1, 0])  # before the first cell's centre its value is held
    assert np.allclose(weights[1, :2], [0.75, 0.25])  # pixel centre .75 of a cell: a quarter past the first centre
    assert np.allclose(weights @ np.arange(8.0), np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7))


def test_footprint_widens_by_one_cell():
    digit = np.zeros((8, 8))
    digit[3, 0] = 4
    digit[6, 6] = 3.9
    expected = np.zeros((16, 16), dtype=bool)
    expected[4:10, 0:4] = True
    assert np.array_equal(footprint(digit, 16), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"canvas": 60}, "canvas 60 is not a multiple of patch 8"),
        ({"canvas": 640}, "larger than the photographs"),
        ({"zooms": (9,)}, r"zooms \[9\] must be 1..8"),
        ({"digits": (3, 2)}, r"digits \[3, 2\] must be"),
    ],
)
def test_styles_that_cannot_be_drawn(options, words):
    with pytest.raises(ConfigError, match=words):
        SceneStyle(**options)
