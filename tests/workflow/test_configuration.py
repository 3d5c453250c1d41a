"""Every mistake gets one line that names the key, what was found and what would be right."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from configuration import check, schema
from eigenloom.store.protocol import Metadata, metadata_bytes
from plan import Plan

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = [ROOT / "config.yaml", *sorted((ROOT / "workflow/experiments").glob("*/config.yaml"))]


def load(path: Path = EXPERIMENTS[0]) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default configuration with one value put in at a dotted path; ``...`` takes it out."""
    config = load()
    *parents, key = path.split("/")
    node = config
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_shipped_configurations_are_valid(path):
    assert check(load(path)) == []


def test_the_default_configuration_names_every_key_and_comments_on_it():
    config = load()
    filled = copy.deepcopy(config)
    check(filled)
    assert set(config["sources"]["scenes"]["model"]) == set(filled["sources"]["scenes"]["model"])
    assert set(config["sources"]["stars"]) == set(filled["sources"]["stars"])
    assert set(config["sources"]["stars"]["spectra"]) == set(filled["sources"]["stars"]["spectra"])
    assert set(config["probe"]) == set(filled["probe"])
    assert set(config["encode"]) == set(filled["encode"])
    assert set(config) == set(filled)
    text = (ROOT / "config.yaml").read_text().splitlines()
    for key in schema()["properties"]:
        (line,) = (n for n, words in enumerate(text) if words.startswith(f"{key}:"))
        assert "#" in "".join(text[line : line + 2]), key


def test_every_property_is_described():
    shared = schema()["$defs"]

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, child in (node.get("properties") or {}).items():
                named = shared.get(child.get("$ref", "").rpartition("/")[2], {})
                assert child.get("description") or named.get("description"), f"{path}.{name}"
                assert "additionalProperties" in child or child.get("type") != "object", f"{path}.{name}"
            for name, child in node.items():
                walk(child, f"{path}.{name}")
        if isinstance(node, list):
            for child in node:
                walk(child, path)

    walk(schema(), "")


def test_defaults_come_from_the_kind_alone():
    config = changed("bases", {"a": {"kind": "kmeans", "sources": ["scenes"]}, "b": {"kind": "pca"}})
    assert check(config) == []
    assert config["bases"]["a"]["n_clusters"] == 4096
    assert "n_clusters" not in config["bases"]["b"]
    assert config["bases"]["b"]["codings"] == ["topk", "dense"]
    again = copy.deepcopy(config)
    assert check(again) == []
    assert again == config


SCENES, STARS = "sources/scenes", "sources/stars"
CUT = {"images": "scenes", "n_examples": 10}
MOE = "experts/digits-moe"
COLLECTION = "weights/collections/trajectory"
BAD_VALUES = [
    ("bases/kmeans-256/n_clutsers", 3, "bases.kmeans-256: unknown key `n_clutsers`; did you mean `n_clusters`?"),
    ("sede", 1, "unknown key `sede`; did you mean `seed`?"),
    ("bases/pca/zzz", 1, "bases.pca: unknown key `zzz`; known: kind, codings, sources, n_components, whiten, tol,"),
    ("name", ..., "missing key `name`"),
    ("name", "Big_Name", "name: `Big_Name` is not a name: lower-case letters, digits and single hyphens"),
    ("bases/a.b", {"kind": "pca"}, "bases: `a.b` is not a name: lower-case letters, digits and single hyphens"),
    ("seed", -1, "seed: -1 is below the least value 0"),
    ("seed", 1.5, "seed: 1.5 is not a whole number"),
    ("seed", True, "seed: true is not a whole number"),
    ("device", "gpu", "device: `gpu` is not a device: auto, cpu, mps, cuda or cuda:N"),
    ("standardize", "standart", "standardize: 'standart' is not a choice; did you mean `standard`?"),
    ("bases", {}, "bases: is empty, at least 1 entry is needed"),
    ("bases", None, "bases: null is not a mapping"),
    ("bases/pca", {"kind": "pcs"}, "bases.pca.kind: 'pcs' is not a choice; did you mean `pca`?"),
    ("bases/pca", {"codings": ["dense"]}, "bases.pca: missing key `kind`; known: kmeans, pca, kernel_pca, robust_pca"),
    ("bases/pca", 3, "bases.pca: 3 is not a mapping"),
    ("probe/l2", "1e-8", "probe.l2: '1e-8' is not a number; YAML wants a dot before the exponent, as in 1.0e-8"),
    ("bases/robust-pca/noise_std", "1e-2", "noise_std: `1e-2` is neither a number (YAML wants"),
    ("bases/robust-pca/noise_std", -1, "bases.robust-pca.noise_std: -1 is below the least value 0"),
    ("probe/l2", 0, "probe.l2: 0 is not above 0"),
    ("probe/bins", 1000000, "probe.bins: 1000000 is above the greatest value 65536"),
    ("weights/runs/gentle/optimizer/betas", [1.0, 0.9], "weights.runs.gentle.optimizer.betas.0: 1.0 is not below 1"),
    (f"{SCENES}/images/scenes/digits", [2], "images.scenes.digits: [2] has 1 entries, at least 2"),
    (f"{SCENES}/images/scenes/digits", [1, 2, 3], "digits: [1, 2, 3] has 3 entries, at most 2 are allowed"),
    (f"{SCENES}/layers", [1, 1], "sources.scenes.layers: [1, 1] lists an entry twice"),
    (f"{SCENES}/splits/probe_val", ..., "splits: `probe_train` and `probe_val` come together or not at all"),
    (f"{SCENES}/splits/test", CUT, "unknown key `test`; known: fit_train, fit_val, probe_train, probe_val"),
    (f"{SCENES}/images/scenes", {"kind": "image_folder"}, "sources.scenes.images.scenes: missing key `root`"),
    ("bases/sae/n_active", 400, "bases.sae.n_active: 400, but n_components is 384"),
    ("bases/a", {"kind": "dictionary", "n_components": 9}, "bases.a: missing key `path`"),
    (
        "bases/a",
        {"kind": "dictionary", "path": "data/sae.safetensors", "n_components": 9, "sources": ["scenes"]},
        "bases.a.path: one file for layer-01, layer-03 of scenes; put `{layer}` where they differ",
    ),
    (
        "bases/a",
        {"kind": "dictionary", "path": "/data/{layer}", "n_components": 9},
        "bases.a.path: `/data/{layer}` must be relative to the repository; link a folder elsewhere below `data/`",
    ),
    (
        "bases/a",
        {"kind": "dictionary", "path": "data/{layer}", "n_components": 9, "activation": "topk"},
        "bases.a.n_active: goes with `activation: topk`, and only with it",
    ),
    (
        "bases/a",
        {"kind": "dictionary", "path": "data/{layer}", "n_components": 9, "threshold": 1.0},
        "bases.a.threshold: goes with `activation: jumprelu`, and only with it",
    ),
    (
        f"{SCENES}/images/scenes",
        {"kind": "image_folder", "root": "/data"},
        "images.scenes.root: `/data` must be relative to the repository; link a folder elsewhere below `data/`",
    ),
    (f"{SCENES}/kind", "spectre", "sources.scenes.kind: 'spectre' is not a choice; did you mean `spectra`?"),
    (f"{STARS}/layers", [0], "sources.stars: unknown key `layers`; "),
    (f"{STARS}/normalise", "mean", "sources.stars.normalise: 'mean' is not a choice; did you mean `median`?"),
    (f"{STARS}/spectra/n_pixel", 9, "sources.stars.spectra: unknown key `n_pixel`; did you mean `n_pixels`?"),
    (f"{STARS}/spectra", {"kind": "hdf5"}, "sources.stars.spectra: missing key `path`"),
    (f"{STARS}/spectra/kind", "hdf", "sources.stars.spectra.kind: 'hdf' is not a choice; did you mean `hdf5`?"),
    (f"{STARS}/classes", {"bins": 3}, "sources.stars.classes: missing key `label`"),
    (f"{STARS}/classes/label", "", "sources.stars.classes.label: is empty"),
    (f"{STARS}/classes/bins", 1, "sources.stars.classes.bins: 1 is below the least value 2"),
    ("bases/pca/sources", [], "bases.pca.sources: [] has 0 entries, at least 1"),
]  # fmt: skip
CONTRADICTIONS = [
    (f"{SCENES}/layers", [1, 4], "sources.scenes.layers: no layer 4; 0-based: the last of 4 is 3"),
    ("bases/pca/codings", ["onehot"], "pca.codings: `onehot` (onehot) does not fit pca, whose codes are projections"),
    ("bases/pca/codings", ["tok"], "codings: no coding is called `tok`; those that fit: topk, matched, dense"),
    ("bases/kmeans-256/n_clusters", 128001, "n_clusters: 128001, but fit_train of scenes has 128000 rows"),
    ("bases/kernel-pca/n_landmarks", 1001, "n_landmarks: 1001, but fit_train of stars has 1000 rows"),
    ("bases/kernel-pca/n_components", 801, "bases.kernel-pca.n_components: 801, but n_landmarks is 800"),
    ("bases/robust-pca/n_components", 97, "bases.robust-pca.n_components: 97, but rows of scenes have length 96"),
    ("bases/pca/n_components", 97, "bases.pca.n_components: 97, but rows of scenes have length 96"),
    ("bases/kmeans-064/init_rows", 63, "bases.kmeans-064.init_rows: 63 rows cannot seed 64 clusters"),
    ("bases/pca-random", {"kind": "pca"}, "bases.pca-random: this is the name of the floor of `pca`; rename it"),
    ("bases/pca", {"kind": "pca", "n_components": 1, "codings": ["topk"], "sources": ["scenes"]},
     "bases.pca.codings: every k keeps all entries of scenes; add `dense` or a smaller k"),
    ("codings/nearest-00016", {"kind": "dense"}, "`nearest-00016` is also made by codings.nearest"),
    ("bases/pca/sources", ["star"], "bases.pca.sources: no source is called `star`; known: scenes, stars"),
    ("bases/kmeans-064/n_clusters", 128001, "kmeans-064.n_clusters: 128001, but fit_train of scenes has 128000 rows"),
    (f"{STARS}/classes", ..., "sources.stars.classes: probes need classes; name a label, as in `classes: {label"),
    (f"{STARS}/classes/label", "teff", "simulated stars have no `teff`; known: T_eff, log_g, M_H, rv, snr"),
    (f"{STARS}/classes/bins", [1, 3, 2], "sources.stars.classes.bins: [1, 3, 2] must ascend"),
    (f"{STARS}/splits/fit_val/n_examples", 251, "sources.stars.splits: ask for 2001 spectra, but n_spectra is 2000"),
    (f"{STARS}/spectra/snr", [9, 9], "sources.stars.spectra.snr: 9 is not below 9"),
    (f"{STARS}/spectra", {"kind": "hdf5", "path": "data/no.h5"},
     "sources.stars.spectra.path: data/no.h5: no such file"),
    (f"{SCENES}/splits/fit_val/images", "photos", "images: no set of images is called `photos`; known: scenes"),
    (f"{SCENES}/model", {"kind": "trained", "source": "x"}, "source: `x` trains no network; sources that do: none"),
    (f"{SCENES}/model/width", 98, "sources.scenes.model.width: 98 must be a multiple of heads (4) and of 4"),
    (f"{SCENES}/model/patch", 7, "sources.scenes.model.patch: 64 pixels are not a multiple of 7"),
    (f"{SCENES}/model/warmup", 1001, "sources.scenes.model.warmup: 1001 is more than the 1000 steps"),
    (f"{SCENES}/model/preprocess/resize", "square", "n_patches: goes with `resize: square`, and only with it"),
    (f"{SCENES}/model/preprocess", {"resize": "square", "n_patches": 10}, "n_patches: 10 is no square number"),
    (f"{SCENES}/images/scenes/patch", 7, "sources.scenes.images.scenes.canvas: 64 is not a multiple of patch, 7"),
    (f"{SCENES}/images/scenes/digits", [4, 2], "sources.scenes.images.scenes.digits: 4 is more than 2"),
    (f"{SCENES}/images/scenes/zooms", [9], "images.scenes.zooms: a digit of 72 pixels does not fit a canvas of 64"),
    (f"{MOE}/sizes", [[33, 8]], "experts.digits-moe.sizes: rank 33 is above the lesser side of the experts, 32"),
    (f"{MOE}/sizes", [[8, 33]], "experts.digits-moe.sizes: 33 bases for 32 experts"),
    (f"{MOE}/sizes", [[8]], "experts.digits-moe.sizes.0: [8] has 1 entries, at least 2 are needed"),
    (f"{MOE}/model/num_experts_per_tok", 17, "experts.digits-moe.model.num_experts_per_tok: 17 of 16 experts"),
    (f"{MOE}/banks/trainings", {}, "banks.trainings: this directory belongs to the trainings; rename the bank"),
    (f"{MOE}/banks/svd/codes", "sparse", "banks.svd.support: sparse codes need it"),
    (f"{MOE}/banks/svd/support", 9, "banks.svd.support: 9, more than the fewest bases of `sizes`, 8"),
    (f"{MOE}/banks/svd/seeding", "ts-pca", "banks.svd.seeding: 'ts-pca' is not a choice; did you mean `ts_pca`?"),
    ("experts/scenes", {"banks": {"a": {}}}, "experts.scenes: `scenes` is the name of a source or of a directory"),
    ("weights/runs/gentle/source", "x", "weights.runs.gentle.source: `x` trains no network; sources that do: scenes"),
    ("weights/runs/reseeded/steps", 15, "weights.runs.reseeded.steps: 15 steps cannot leave 16 checkpoints"),
    (f"{COLLECTION}/source", "x", "collections.trajectory.source: `x` trains no network; sources that do: scenes"),
    (f"{COLLECTION}/runs", ["y"], "trajectory.runs: no run of scenes is called `y`; known: reseeded, gentle"),
    (f"{COLLECTION}/n_components", 12, "n_components: 12, but 12 fitted checkpoints have rank 11"),
    (f"{COLLECTION}/k", [9], "weights.collections.trajectory.k: 9 is more than n_components, 8"),
    (f"{COLLECTION}/block_size", 3000, "weights.collections.trajectory.block_size: 3000 is no power of two"),
    (f"{COLLECTION}/held_out", 99, "trajectory.held_out: none of 16 checkpoints would be left out"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "line"), [*BAD_VALUES, *CONTRADICTIONS], ids=lambda x: str(x)[:40])
def test_a_mistake_is_one_line(path, value, line):
    lines = check(changed(path, value))
    assert len(lines) == 1, lines
    assert line in lines[0]


def recorded(root: Path, **changes: Any) -> dict[str, Any]:
    """A configuration with recordings below ``root``; ``changes`` are those of the description of fit_val."""
    config = load()
    splits = ("fit_train", "fit_val", "probe_train", "probe_val")
    for split in splits:
        (root / split).mkdir()
        facts = {"layers": (0, 2), "d_model": 96, "ckpt": "x"} | (changes if split == "fit_val" else {})
        metadata = Metadata("dinov2", facts["ckpt"], facts["layers"], 64, True, facts["d_model"], 500, 2**20, "", "a")
        (root / split / "metadata.json").write_bytes(metadata_bytes(metadata))
        (root / split / "labels.bin").write_bytes(b"")
    paths = {split: {"path": f"{os.path.relpath(root)}/{split}"} for split in splits}
    config["sources"]["taken"] = {"kind": "recorded", "splits": paths, "classes": ["a", "b"]}
    return config


def test_recordings_are_looked_at_when_planning(tmp_path):
    config = recorded(tmp_path)
    assert check(copy.deepcopy(config)) == []
    taken = config["sources"]["taken"]
    here = os.path.relpath(tmp_path)
    for change, lines in {
        ("layers", (1, 2)): [f"layers: no layer 1 in {here}/fit_train; stored are 0, 2 (0-based)"],
        ("void", 2): ["void: 2, but there are 2 classes, counted from 0"],
        ("classes", None): ["classes: probes need the names of the labels, or their number"],
    }.items():
        edited = copy.deepcopy(config)
        key, value = change
        edited["sources"]["taken"][key] = list(value) if isinstance(value, tuple) else value
        assert check(edited) == [f"sources.taken.{line}" for line in lines]
    taken["splits"]["fit_val"]["path"] = f"{here}/fit_train/../fit_train"
    assert check(copy.deepcopy(config)) == ["sources.taken.splits.fit_val.path: is the recording that fit_train is"]
    taken["splits"]["fit_val"]["path"] = f"{here}/gone"
    (line,) = check(copy.deepcopy(config))
    assert line.startswith(f"sources.taken.splits.fit_val.path: {here}/gone/metadata.json: no such file")
    (tmp_path / "probe_val/labels.bin").unlink()
    (tmp_path / "probe_train/metadata.json").write_text('{"protocol": "1.1"}')
    assert len(check(copy.deepcopy(config))) == 3
    assert any("protocol 1.1 is refused" in line for line in check(config))


def test_recordings_of_one_source_belong_together(tmp_path):
    lines = check(recorded(tmp_path, d_model=97, ckpt="y", layers=(0,)))
    assert lines == [
        "sources.taken.splits.fit_val.path: its ckpt is 'y', but that of fit_train is 'x'",
        "sources.taken.splits.fit_val.path: its layers is (0,), but that of fit_train is (0, 2)",
        "sources.taken.splits.fit_val.path: its d_model is 97, but that of fit_train is 96",
    ]


def folders(**changes: Any) -> dict[str, Any]:
    """A configuration of a source with folders, recorded with the network of the scenes."""
    config = load()
    config["bases"]["pca"]["codings"] = ["dense"]
    config["sources"]["photos"] = {
        "images": {
            "plain": {"kind": "image_folder", "root": "data/plain"},
            "masked": {"kind": "segmentation_folder", "root": "data/masked", "classes": {"sky": [1], "sea": [2, 3]}},
            **changes.pop("images", {}),
        },
        "splits": {
            "fit_train": {"images": "plain", "n_examples": 500},
            "fit_val": {"images": "plain", "n_examples": 100, "first": 500},
            "probe_train": {"images": "masked", "n_examples": 50},
            "probe_val": {"images": "masked", "n_examples": 50, "first": 50},
            **changes.pop("splits", {}),
        },
        "model": {"kind": "trained", "source": "scenes"},
        "layers": [3],
        **changes,
    }
    return config


def test_folders_recorded_with_another_sources_network_are_valid():
    config = folders()
    assert check(config) == []
    source = Plan(config).sources["photos"]
    assert (source.width, source.n_tokens, source.origin) == (96, 64, "scenes")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"splits": {"fit_val": {"images": "plain", "n_examples": 9, "first": 499}}},
         "sources.photos.splits.fit_val: shares images with fit_train; `first: 500` would not"),
        ({"splits": {"probe_val": {"images": "plain", "n_examples": 9, "first": 900}}},
         "sources.photos.splits.probe_val: probes need patch labels; image_folder has none, "
         "scenes, segmentation_folder, ade20k have"),
        ({"images": {"bad": {"kind": "segmentation_folder", "root": "data/x", "classes": {"sky": [0]}}}},
         "sources.photos.images.bad.classes: mask id 0 is both void and sky"),
        ({"images": {"small": {"kind": "scenes", "canvas": 32, "zooms": [2]}},
          "splits": {"fit_val": {"images": "small", "n_examples": 9}}},
         "sources.photos.splits.fit_val: 16 patches per image, but the network takes 64"),
        ({"layers": [4]}, "sources.photos.layers: no layer 4; 0-based: the last of 4 is 3"),
    ],
)  # fmt: skip
def test_mistakes_with_folders(changes, line):
    assert check(folders(**changes)) == [line]


DINO = {"architecture": "dinov3_vit", "width": 96, "depth": 12, "patch": 16}


def ready(**changes: Any) -> dict[str, Any]:
    """A configuration of a source with a pretrained network, whose size is stated."""
    model = {"kind": "pretrained", "path": "data/dino", "shape": DINO, "preprocess": {"n_patches": 16}}
    model |= changes.pop("model", {})
    return folders(model={k: v for k, v in model.items() if v is not ...}, **changes)


def test_a_pretrained_network_of_stated_size_can_be_planned_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ready(layers="last-6")
    assert check(config) == []
    source = Plan(config).sources["photos"]
    assert source.layer_numbers == [6, 7, 8, 9, 10, 11]
    assert (source.width, source.n_tokens, source.network.resize) == (96, 16, "grid")
    remarks = [line for line in Plan(config).remarks() if "photos" in line]
    assert [line.partition(":")[0] for line in remarks] == [
        "sources.photos.model.path", "sources.photos.images.plain", "sources.photos.images.masked",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": {"shape": None}}, "sources.photos.model.path: data/dino: no such folder; link it there, or give "
         "a hub id (OWNER/NAME); or state `shape`, so that everything else can be planned without it"),
        ({"model": {"path": "acme/none", "shape": None}}, "acme/none is not in the Hugging Face cache"),
        ({"model": {"path": "/data/dino"}}, "model.path: `/data/dino` must be relative to the repository"),
        ({"model": {"path": ...}}, "sources.photos.model: missing key `path`"),
        ({"model": {"shape": {**DINO, "widht": 3}}}, "model.shape: unknown key `widht`; did you mean `width`?"),
        ({"model": {"preprocess": {}}}, "preprocess.n_patches: nothing tells how many; set `n_patches`"),
        ({"model": {"preprocess": {"resize": "none"}}}, "preprocess.n_patches: images differ in size; set `n_patches`"),
        ({"model": {"preprocess": {"resize": "square", "n_patches": 12}}}, "n_patches: 12 is no square number; or set"),
        ({"model": {"shape": {**DINO, "architecture": "vit"}, "preprocess": {"resize": "grid", "n_patches": 16}}},
         "model.preprocess: vit has learned positions of one square of patches; leave `resize` and `n_patches` to it"),
        ({"layers": [11, 12]}, "sources.photos.layers: no layer 12; 0-based: the last of 12 is 11"),
        ({"layers": "last-13"}, "sources.photos.layers: no layer -1; 0-based: the last of 12 is 11"),
        ({"layers": "9-8"}, "sources.photos.layers: `9-8` is none; 0-based: the last of 12 is 11"),
        ({"layers": "6+"}, "sources.photos.layers: `6+` is no list of layers, no range (18-23) and no end (last-6)"),
        ({"layers": []}, "sources.photos.layers: [] has 0 entries, at least 1 are needed"),
        ({"images": {"ade": {"kind": "ade20k", "root": "data/a", "part": "test"}}}, "part: 'test' is not a choice"),
        ({"images": {"ade": {"kind": "ade20k", "root": "data/a", "part": "training", "layout": "full"}}},
         "images.ade.classes: the layout full needs the classes you want, by their numbers"),
        ({"images": {"ade": {"kind": "ade20k", "root": "data/a", "part": "training", "classes": {"sky": [2]}}}},
         "images.ade.classes: the layout scene-parsing brings its own 150 classes"),
        ({"images": {"seg": {"kind": "segmentation_folder", "root": "data/s", "classes": {"sky": [256]}}}},
         "images.seg.classes.sky.0: 256 is above the greatest value 255"),
    ],
)  # fmt: skip
def test_mistakes_with_pretrained_networks_and_their_images(tmp_path, monkeypatch, changes, line):
    monkeypatch.chdir(tmp_path)
    (found,) = check(ready(**changes))
    assert line in found


def test_a_pretrained_network_that_is_there_tells_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/dino"
    folder.mkdir(parents=True)

    def write(**changes: Any) -> None:
        stated = {"model_type": "dinov3_vit", "hidden_size": 96, "num_hidden_layers": 12, "patch_size": 16}
        (folder / "config.json").write_text(json.dumps({**stated, "image_size": 224, **changes}))

    write()
    config = ready(model={"shape": None, "preprocess": {}})
    assert check(config) == []
    assert Plan(config).sources["photos"].n_tokens == 196
    write(hidden_size=384)
    (line,) = check(ready())
    assert line == "sources.photos.model.shape: width is 384, not 96; correct or remove it"
    write(model_type="vit_mae")
    (line,) = check(ready())
    assert "vit_mae cannot be recorded: its forward pass shuffles patches" in line
    assert "shape" not in line
    write(model_type="vit")
    assert check(ready(model={"shape": None, "preprocess": {}})) == []
    (line,) = check(ready(model={"shape": None, "preprocess": {"n_patches": 16}}))
    assert "vit has learned positions of 196 patches" in line
    # A clone without the checkpoint goes by what an earlier run found.
    write()
    edge = tmp_path / "artifacts/photos/model/meta.json"
    edge.parent.mkdir(parents=True)
    model = {"path": "data/dino", "revision": None, "cls": None}
    found = {"shape": {**DINO, "width": 128, "has_cls": True}, "preprocess": {"n_patches": 196}}
    edge.write_text(json.dumps({"spec": {"model": model}, **found}))
    (folder / "config.json").unlink()
    config = ready(model={"shape": None, "preprocess": {}})
    assert check(config) == []
    assert (Plan(config).sources["photos"].width, Plan(config).sources["photos"].n_tokens) == (128, 196)
    assert check(ready(model={"shape": None, "revision": "v2"})) != []


def words(**changes: Any) -> dict[str, Any]:
    """A configuration of a source of texts, the size of whose network is stated."""
    config = load()
    config["bases"]["pca"]["codings"] = ["dense"]
    model = {
        "path": "data/bert",
        "shape": {"architecture": "bert", "width": 96, "depth": 12},
        **changes.pop("model", {}),
    }
    cuts = {"fit_train": (400, 0), "fit_val": (20, 400), "probe_train": (30, 420), "probe_val": (10, 450)}
    splits = {split: {"texts": "corpus", "n_examples": n, "first": first} for split, (n, first) in cuts.items()}
    config["sources"]["words"] = {
        "kind": "texts", "texts": {"corpus": "data/corpus.jsonl"}, "splits": {**splits, **changes.pop("splits", {})},
        "model": model, "classes": ["noun"], "layers": [11], **changes,
    }  # fmt: skip
    return config


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, ""),
        ({"classes": None}, "sources.words.classes: probes need classes; name the labels in data/corpus.jsonl"),
        ({"layers": [12]}, "sources.words.layers: no layer 12; 0-based: the last of 12 is 11"),
        ({"model": {"shape": None}}, "sources.words.model.path: data/bert: no such folder; link it there"),
        ({"texts": {"other": "data/a.jsonl"}},
         "splits.fit_train.texts: no file of texts is called `corpus`; known: other"),
        ({"splits": {"fit_val": {"texts": "corpus", "n_examples": 9, "first": 399}}},
         "sources.words.splits.fit_val: shares sequences with fit_train; `first: 400` would not"),
    ],
)  # fmt: skip
def test_mistakes_with_texts(tmp_path, monkeypatch, changes, line):
    monkeypatch.chdir(tmp_path)
    found = check(words(**changes))
    assert line in found[0] if line else found == []


def test_a_file_of_spectra_needs_two_lines_and_is_looked_at(tmp_path, monkeypatch):
    import h5py

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with h5py.File("data/survey.h5", "w") as file:
        file["dataset/arrays/flux/value"] = [[1.0, 2.0, 3.0]] * 5
    config = changed(f"{STARS}/spectra", {"kind": "hdf5", "path": "data/survey.h5"})
    config["bases"] = {"pca": {"kind": "pca", "codings": ["topk", "dense"]}}
    assert check(config) == ["sources.stars.attention.patch: 64 pixels, but spectra have 3"]
    config["sources"]["stars"]["attention"] = None
    assert check(config) == []
    assert Plan(config).topk("pca", "stars") == [1]
    config["sources"]["stars"]["spectra"] = {"kind": "hdf5", "path": "data/survey.h5", "keys": {"flux": "flux"}}
    (line,) = check(config)
    assert "`flux` does not exist; did you mean `dataset/arrays/flux/value`? the file holds" in line
    config["sources"]["stars"]["spectra"] = {"kind": "hdf5", "path": "data/gone.h5", "n_pixels": 30}
    assert check(config) == []
    assert any("data/gone.h5 is absent; edits of it are not seen" in remark for remark in Plan(config).remarks())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_train": [300, 1400]}, "ask for 2150 spectra, but n_spectra is 2000"),
        ({"labels": ["T_eff", "age"]}, "simulated stars have no `age`"),
        ({"patch": 600}, "600 pixels, but spectra have 512"),
        ({"dim": 30}, "30 must be even and a multiple of heads, 4"),
        ({"n_landmarks": 32}, "32 cannot span 64 components"),
        ({"patch": 32}, "patches of 32 pixels have fewer linear components"),
        ({"n_landmarks": 2401}, "the smallest n_train has 2400 patches"),
        ({"freeze_qk_epochs": 7}, "7, but there are 6 epochs"),
    ],
)
def test_a_study_of_attention_that_cannot_be(changes, words):
    config = load()
    config["sources"]["stars"]["attention"] |= changes
    (line,) = check(config)
    assert line.startswith("sources.stars.attention")
    assert words in line


def test_training_needs_masks_and_a_size():
    config = folders(model={"kind": "vit"})
    lines = check(config)
    sizes = "image_folder images differ in size; set `resize: square` and `n_patches`"
    assert f"sources.photos.model.preprocess: {sizes}" in lines
    assert any("fit_train: image_folder has no masks to train a network on" in line for line in lines)


def test_all_mistakes_are_listed_at_once():
    config = changed("seed", -1)
    config["sources"]["scenes"]["splits"]["fit_val"]["n_examples"] = 0
    config["bases"]["pca"]["whitten"] = True
    assert len(check(config)) == 3


def test_a_kind_from_another_package_is_taken_as_it_is(monkeypatch):
    from eigenloom.bases import registry

    class Entry:
        name, value = "ica", "elsewhere.ica:ICA"

    found = lambda group, name=None: [Entry()] if name in (None, "ica") else []  # noqa: E731
    monkeypatch.setattr(registry, "entry_points", found)
    config = changed("bases/ica", {"kind": "ica", "n_components": 8, "own": 1, "codings": ["dense"]})
    assert check(config) == []
    assert Plan(config).bases["ica-random"] == {"kind": "random_directions", "n_components": 8}
    assert check(changed("bases/ica", {"kind": "icaa"})) != []
