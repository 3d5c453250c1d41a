"""ADE20K in both layouts: pairs, labels, void, names of classes; what is not of the data set is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from ade20k_miniatures import FULL_CLASSES, full_release, save, scene_parsing
from PIL import Image

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources.ade20k import CLASSES
from eigenloom.sources.images import open_images, prepare_images

ROOT = Path(__file__).resolve().parents[2]


def prepare(folder, n=3, **options):
    images = {"kind": "ade20k", "root": str(folder), "part": "training", **options}
    edge = folder.parent / "out/meta.json"
    prepare_images(edge, images, seed=0, split="fit_train", first=0, n_examples=n)
    return open_images(edge)


@pytest.fixture
def scenes(tmp_path):
    scene_parsing(tmp_path / "ade", {"training": 3, "validation": 2})
    return tmp_path / "ade"


@pytest.fixture
def full(tmp_path):
    full_release(tmp_path / "ade", {"training": 3, "validation": 2})
    return tmp_path / "ade"


def test_the_classes_are_those_of_the_paper_scale_experiment():
    config = yaml.safe_load((ROOT / "workflow/experiments/paper-scale/config.yaml").read_text())
    stated = config["sources"]["imagenet"]["images"]["ade-training"]["classes"]
    assert {name: [i] for i, name in enumerate(CLASSES, 1)} == stated
    assert len(set(CLASSES)) == 150


def test_scene_parsing(scenes):
    images = prepare(scenes)
    assert images.classes == ("void", *CLASSES)
    for i in range(3):
        assert images.name(i).startswith("images/training/ADE_training_")
        stem = Path(images.name(i)).stem
        ids = np.asarray(Image.open(scenes / f"annotations/training/{stem}.png"))
        assert np.array_equal(images.mask(i), ids)
        assert images.mask(i).max() == 150
        assert images.image(i).shape == (64, 64, 3)
    assert len(prepare(scenes, n=2, part="validation")) == 2


def test_the_full_release(full):
    images = prepare(full, layout="full", classes=[[name, ids] for name, ids in FULL_CLASSES.items()])
    assert images.classes == ("void", "sky", "wall")
    for i in range(3):
        colours = np.asarray(Image.open(full / images.name(i).replace(".jpg", "_seg.png"))).astype(int)
        numbers = np.array([[red // 10 * 256 + green for red, green, _ in row] for row in colours])
        expected = np.select([numbers == 2420, (numbers == 2978) | (numbers == 300)], [1, 2])
        assert np.array_equal(images.mask(i), expected)
        assert {0, 1, 2} == set(np.unique(images.mask(i)))


def test_the_older_folders_of_the_full_release(full):
    (full / "images/ADE/training").rename(full / "images/training")
    (full / "images/ADE/validation").rename(full / "images/validation")
    (full / "images/ADE").rmdir()
    assert prepare(full, layout="full", classes=FULL_CLASSES).name(0).startswith("images/training/urban/street/ADE_")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"part": "test"}, ConfigError, "no part 'test' of a layout 'scene-parsing'; parts are training, validation"),
        ({"layout": "half"}, ConfigError, "layouts scene-parsing, full"),
        ({"layout": "full"}, ConfigError, "the layout full of ade20k needs classes: name -> numbers in its masks"),
        ({"classes": {"a": [1]}}, ConfigError, "the layout scene-parsing of ade20k has its own 150 classes"),
        ({"layout": "full", "classes": {"a": [6656]}}, ConfigError, r"mask id 6656 is not in 0\.\.6655"),
        ({"layout": "full", "classes": {"a": [1]}}, DataError, "has no mask"),
        ({"root": "/nowhere"}, StoreError, "/nowhere/images/training: no such folder; set images"),
        ({"depth": 3}, ConfigError, "unknown option 'depth'"),
    ],
)
def test_bad_options(scenes, options, error, words):
    with pytest.raises(error, match=words):
        prepare(scenes, **options)


def test_a_layout_taken_for_the_other_is_named(full):
    with pytest.raises(StoreError, match="images/training: no such folder"):
        prepare(full)
    (path,) = (full / "images/ADE/training").rglob("*00000001_seg.png")
    save(path, np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"ADE_training_00000001.jpg its mask has mode L; colour is needed"):
        prepare(full, layout="full", classes=FULL_CLASSES)


def test_an_id_beyond_the_150_classes_is_an_error(scenes):
    for path in (scenes / "annotations/training").iterdir():
        save(path, np.full((64, 64), 151, np.uint8))
    with pytest.raises(DataError, match="mask id 151 is in neither classes nor void"):
        prepare(scenes).mask(0)


def test_pairs_that_are_incomplete_are_listed(scenes):
    (scenes / "annotations/training/ADE_training_00000001.png").unlink()
    with pytest.raises(DataError, match=r"1 file\(s\) cannot be used: ADE_training_00000001.jpg has no mask"):
        prepare(scenes)
