"""Folders and scenes become ordered image sets; what cannot be used is listed."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources.folders import list_images
from eigenloom.sources.images import open_images, prepare_images
from eigenloom.sources.preprocess import Preprocess

CLASSES = {"sky": [3], "ground": [0, 7]}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def prepare(directory, images, n=4, first=0, seed=0):
    prepare_images(
        directory / "meta.json", images, seed=seed, split="fit_train", first=first, n_examples=n, spec={"first": first}
    )
    return open_images(directory / "meta.json")


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{c}/{i:02d}.{suffix}" for c in ("n01", "n02") for i, suffix in enumerate(["png", "JPEG", "webp"])]
    random.Random(1).shuffle(names)
    for name in names:
        save(tmp_path / "data" / name, rng.integers(0, 255, (8, 12, 3), dtype=np.uint8))
    save(tmp_path / "data/n01/.hidden.png", np.zeros((8, 12, 3), np.uint8))
    (tmp_path / "data/n01/notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def segmentation_folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        save(tmp_path / f"seg/images/a/{i}.png", rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        save(tmp_path / f"seg/masks/a/{i}.png", rng.choice([0, 3, 7, 255], (8, 8)).astype(np.uint8))
    return tmp_path


def seg_options(tmp_path, **changes):
    return {"kind": "segmentation_folder", "root": str(tmp_path / "seg"), "classes": CLASSES, "void": [255], **changes}


def test_scenes_round_trip(tmp_path):
    images = prepare(tmp_path, {"kind": "scenes", "canvas": 32, "zooms": [2], "digits": [1, 2]}, n=3, first=5)
    assert (len(images), images.classes[:2], images.void, images.has_masks) == (3, ("void", "0"), 0, True)
    assert images.image(0).shape == (32, 32, 3)
    assert images.mask(2).max() > 0
    assert images.name(1) == "scene-000006"
    assert json.loads((tmp_path / "files.json").read_text())["images"] == [images.name(i) for i in range(3)]
    again = prepare(tmp_path / "again", {"kind": "scenes", "canvas": 32, "zooms": [2], "digits": [1, 2]}, n=3, first=5)
    assert np.array_equal(images.image(2), again.image(2))


def test_image_folder(image_folder):
    images = prepare(image_folder / "out", {"kind": "image_folder", "root": str(image_folder / "data")}, n=6)
    names = [images.name(i) for i in range(6)]
    assert sorted(names) == sorted(f"n0{c}/{i:02d}.{s}" for c in (1, 2) for i, s in enumerate(["png", "JPEG", "webp"]))
    assert names != sorted(names)
    assert [images.image_classes[images.image_class(i)] for i in range(6)] == [name[:3] for name in names]
    assert images.image(0).shape == (8, 12, 3)
    with pytest.raises(DataError, match="patch labels need a segmentation_folder"):
        images.mask(0)


def test_linked_folders_are_followed_but_not_in_circles(image_folder):
    (image_folder / "elsewhere").mkdir()
    save(image_folder / "elsewhere/deep/7.png", np.zeros((8, 12, 3), np.uint8))
    (image_folder / "data/n03").symlink_to(image_folder / "elsewhere")
    (image_folder / "data/n01/back").symlink_to(image_folder / "data")
    names = list_images(image_folder / "data")
    assert len(names) == 7
    assert names[-1] == "n03/deep/7.png"


def test_image_classes_are_those_of_the_folder_not_of_the_split(image_folder):
    options = {"kind": "image_folder", "root": str(image_folder / "data")}
    for first in range(6):
        assert prepare(image_folder / str(first), options, n=1, first=first).image_classes == ("n01", "n02")


def test_a_subset_is_a_prefix_and_cuts_do_not_overlap(image_folder):
    options = {"kind": "image_folder", "root": str(image_folder / "data")}
    whole, prefix, rest = (prepare(image_folder / str(i), options, n=n, first=f) for i, (n, f) in
                           enumerate([(6, 0), (4, 0), (2, 4)]))  # fmt: skip
    names = [whole.name(i) for i in range(6)]
    assert [prefix.name(i) for i in range(4)] + [rest.name(i) for i in range(2)] == names
    other = prepare(image_folder / "other", options, n=6, seed=1)
    assert [other.name(i) for i in range(6)] != names


def test_segmentation_labels_follow_the_list_of_classes(segmentation_folder):
    images = prepare(segmentation_folder / "out", seg_options(segmentation_folder))
    assert images.classes == ("void", "sky", "ground")
    raw = np.asarray(Image.open(segmentation_folder / "seg/masks" / images.name(0).removeprefix("images/")))
    expected = np.select([raw == 255, raw == 3, (raw == 0) | (raw == 7)], [0, 1, 2])
    assert np.array_equal(images.mask(0), expected)


def test_palette_masks_are_read_as_indices(segmentation_folder):
    for path in (segmentation_folder / "seg/masks/a").iterdir():
        palette = Image.fromarray(np.full((8, 8), 3, np.uint8), mode=None).convert("P")
        palette.putpalette([9] * 768)
        palette.putdata([3] * 64)
        palette.save(path)
    images = prepare(segmentation_folder / "out", seg_options(segmentation_folder))
    assert np.array_equal(images.mask(0), np.ones((8, 8)))


def test_unknown_mask_id_names_file_and_id(segmentation_folder):
    images = prepare(segmentation_folder / "out", seg_options(segmentation_folder, void=[]))
    with pytest.raises(DataError, match=r"masks/a/\d\.png: mask id 255 is in neither classes nor void"):
        [images.mask(i) for i in range(4)]


def break_pairs(root):
    (root / "seg/masks/a/1.png").unlink()
    save(root / "seg/masks/a/9.png", np.zeros((8, 8), np.uint8))


def break_size(root):
    save(root / "seg/masks/a/1.png", np.zeros((8, 9), np.uint8))


def break_stem(root):
    Image.open(root / "seg/images/a/1.png").save(root / "seg/images/a/1.jpg")


def break_colour(root):
    save(root / "seg/masks/a/1.png", np.zeros((8, 8, 3), np.uint8))


def break_file(root):
    (root / "seg/images/a/1.png").write_bytes(b"not a png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_pairs, r"2 file\(s\) cannot be used: a/1.png has no mask; a/9.png is a mask without an image"),
        (break_stem, r"1 file\(s\) cannot be used: a/1.jpg has a namesake"),
        (break_size, r"a/1.png is 8 x 8, its mask 9 x 8"),
        (break_colour, r"a/1.png its mask has mode RGB"),
        (break_file, r"a/1.png cannot be read as an image"),
    ],
)
def test_files_that_cannot_be_used_are_listed(segmentation_folder, damage, words):
    damage(segmentation_folder)
    with pytest.raises(DataError, match=words):
        prepare(segmentation_folder / "out", seg_options(segmentation_folder))
    assert not (segmentation_folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"kind": "movies"}, ConfigError, "kind 'movies' is unknown; use one of scenes, image_folder"),
        ({"colour": 1}, ConfigError, "unknown option 'colour'"),
        ({"classes": {}}, ConfigError, "0 classes; 1 to 255 fit"),
        ({"classes": {str(i): [] for i in range(256)}}, ConfigError, "256 classes; 1 to 255 fit"),
        ({"void": [3]}, ConfigError, "mask id 3 is listed twice"),
        ({"void": [256]}, ConfigError, r"mask id 256 is not in 0\.\.255"),
        ({"void": [-1]}, ConfigError, r"mask id -1 is not in 0\.\.255"),
        ({"root": "/nowhere"}, StoreError, "no such folder; set images"),
    ],
)
def test_bad_options(segmentation_folder, changes, error, words):
    with pytest.raises(error, match=words):
        prepare(segmentation_folder / "out", seg_options(segmentation_folder, **changes))


def test_too_few_images_says_both_numbers(image_folder):
    with pytest.raises(DataError, match="holds 6 images .*, but the configuration takes 7 from number 0 on"):
        prepare(image_folder / "out", {"kind": "image_folder", "root": str(image_folder / "data")}, n=7)


def test_damaged_edges(tmp_path):
    prepare(tmp_path, {"kind": "scenes", "canvas": 32, "zooms": [2]}, n=1)
    (tmp_path / "masks.npy").unlink()
    with pytest.raises(StoreError, match=r"masks\.npy: missing"):
        open_images(tmp_path / "meta.json")
    (tmp_path / "meta.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(StoreError, match=r"is not an edge of format 'eigenloom\.images'"):
        open_images(tmp_path / "meta.json")


@pytest.mark.parametrize(
    ("resize", "size", "grid"),
    [("grid", (480, 640), (16, 16)), ("grid", (100, 400), (8, 32)), ("grid", (400, 100), (32, 8)),
     ("square", (50, 90), (16, 16)), ("none", (32, 48), (2, 3))],
)  # fmt: skip
def test_preprocess_grids(resize, size, grid):
    preprocess = Preprocess(16, resize, 256)
    assert preprocess.grid(*size) == grid
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert preprocess.image(image).shape == (3, 16 * grid[0], 16 * grid[1])
    assert set(np.unique(preprocess.mask(image[..., 0] // 128 * 9))) <= {0, 9}


def test_preprocess_scales_channels():
    preprocess = Preprocess(2, mean=(0.5, 0.0, 1.0), std=(0.25, 1.0, 0.5))
    image = np.full((2, 2, 3), 255, np.uint8)
    assert preprocess.image(image)[:, 0, 0].tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(DataError, match="3 x 2 pixels is not a whole number of 2 x 2 patches; set preprocess.resize"):
        preprocess.image(np.zeros((3, 2, 3), np.uint8))
    with pytest.raises(ConfigError, match="resize 'crop' is unknown"):
        Preprocess(2, "crop")
    with pytest.raises(ConfigError, match="resize grid needs n_patches of at least 1, not None"):
        Preprocess(2, "grid")
    assert Preprocess(**json.loads(json.dumps(preprocess.parameters()))) == preprocess
    assert Preprocess(2, "none", 7).parameters()["n_patches"] is None  # of no effect, so not in signatures
