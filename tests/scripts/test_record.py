"""Scripts from images to activations: what they write, that shards add up, and what they refuse."""

import argparse
import json

import numpy as np
import pytest
from coloured_patches import MODEL, prepare_coloured

import label
import record
import train
from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.sources.images import open_images
from eigenloom.store.listing import file_problems
from job import Job

RECORD = {
    "source": "s", "split": "fit_train", "shard": 0, "layers": [0, 2], "n_examples": 20, "max_tokens_per_shard": 120,
    "batch_size": 3, "forward_dtype": "float32",
}  # fmt: skip


def job(out, spec, **edges):
    names = {name: [path] for name, path in edges.items()}
    spec = json.dumps({**spec, "code": "0"})
    return Job(argparse.Namespace(spec=spec, out=out, device="cpu", threads=2, **names), tuple(names))


def training(root, **changes):
    out = root / "artifacts/s/model/meta.json"
    edges = {"train": root / "images/fit_train/meta.json", "val": root / "images/fit_val/meta.json"}
    return job(out, {"seed": 0, "model": {**MODEL, **changes}, "snapshots": 3}, **edges)


def recording(root, name="shards", **changes):
    spec = {**RECORD, **changes}
    out = root / name / f"shard-{spec['shard']:05d}.json"
    edges = {"images": root / "images/fit_train/meta.json", "model": root / "artifacts/s/model/meta.json"}
    return job(out, spec, **edges)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    for split, n, seed in (("fit_train", 20, 0), ("fit_val", 8, 1)):
        prepare_coloured(root, split, n, seed)
    return root


@pytest.fixture(scope="module")
def trained(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train.main(training(root))
    return json.loads((root / "artifacts/s/model/meta.json").read_text())


def test_the_model_edge(root, trained):
    directory = root / "artifacts/s/model"
    names = {"format", "version", "architecture", "config", "snapshots", "metrics", "bar", "files", "spec", "inputs"}
    assert set(trained) == names
    assert (trained["format"], trained["architecture"]) == ("eigenloom.model", "eigenloom.vit")
    assert (trained["config"]["grid"], trained["config"]["n_labels"]) == ([2, 3], 3)
    snapshots = {f"snapshot-{i:02d}.safetensors": 10 * i for i in (1, 2, 3)}
    assert trained["snapshots"] == snapshots
    assert set(trained["files"]) == {"config.json", "model.safetensors", "history.csv", *snapshots}
    assert trained["files"]["snapshot-03.safetensors"] == trained["files"]["model.safetensors"]
    assert file_problems(directory, trained["files"], verify=True) == []
    assert trained["metrics"]["loss"] < trained["metrics"]["prior_loss"]
    assert trained["inputs"][str(root / "images/fit_val/meta.json")] == file_digest(root / "images/fit_val/meta.json")
    assert json.loads((directory / "run.json").read_text())["threads"] == 2
    assert (directory / "history.csv").read_text().count("\n") == 31


def test_training_again_gives_the_same_bytes(root, trained, monkeypatch):
    monkeypatch.chdir(root)
    train.main(training(root))
    assert json.loads((root / "artifacts/s/model/meta.json").read_text()) == trained


def test_below_the_bar_nothing_is_written(root, trained, monkeypatch):
    monkeypatch.chdir(root)
    work = training(root, steps=1, bar={"accuracy": 0.99, "recall": 0.99})
    work.out = root / "artifacts/other/model/meta.json"
    with pytest.raises(
        DataError, match=r"accuracy 0\.\d+, recall [01]\.\d+, .*the bar is accuracy 0\.99, recall 0\.99"
    ):
        train.main(work)
    assert not work.out.parent.exists()


def test_shards_by_separate_jobs_equal_one(root, trained):
    """A shard holds 120 // (2 layers x 7 tokens) = 8 examples: 8, 8 and 4."""
    edges = []
    for shard in range(3):
        work = recording(root, shard=shard)
        record.main(work)
        edges.append(json.loads(work.out.read_text()))
    assert [edge["n_examples"] for edge in edges] == [8, 8, 4]
    work = recording(root, "whole", max_tokens_per_shard=20 * 14, batch_size=1)
    record.main(work)
    record.main(recording(root, "single", shard=1, batch_size=1))
    whole = np.fromfile(root / "whole/acts000000.bin", "<f4").reshape(20, 2, 7, 16)
    shards = [np.fromfile(root / f"shards/acts00000{s}.bin", "<f4").reshape(8, 2, 7, 16) for s in range(3)]
    assert not shards[2][4:].any()
    np.testing.assert_allclose(np.concatenate(shards)[:20], whole, atol=1e-5)  # batches of 3 round otherwise than of 1
    assert np.array_equal(np.fromfile(root / "single/acts000001.bin", "<f4"), whole[8:16].ravel())
    edge = edges[1]
    assert list(edge) == [
        "format", "version", "shard", "name", "n_examples", "sha256", "bytes", "d_model", "tokens_per_example",
        "cls_token", "layers", "grid", "architecture", "signature", "spec", "inputs",
    ]  # fmt: skip
    assert (edge["name"], edge["d_model"], edge["tokens_per_example"], edge["cls_token"]) == (
        "acts000001.bin", 16, 6, True,
    )  # fmt: skip
    assert (edge["layers"], edge["grid"]) == ([0, 2], [2, 3])
    assert edge["signature"]["weights_sha256"] == trained["files"]["model.safetensors"]["sha256"]
    assert edge["signature"]["preprocess"]["std"] == [0.25, 0.25, 0.25]
    assert file_digest(root / "shards/acts000001.bin") == edge["sha256"]
    assert (root / "shards/shard-00001.run.json").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"n_examples": 21}, DataError, "holds 20 images, but n_examples is 21"),
        ({"layers": [0, 3]}, ConfigError, r"0-based: the last of 3 is 2"),
        ({"shard": 3}, ConfigError, "shard 3 does not exist; the recording has 3"),
    ],
)
def test_recordings_that_are_refused(root, trained, changes, error, words):
    work = recording(root, "refused", **changes)
    with pytest.raises(error, match=words):
        record.main(work)
    assert not work.out.parent.exists() or not any(work.out.parent.iterdir())


def test_labels_are_those_of_the_masks(root):
    out = root / "shards/labels.json"
    spec = {"source": "s", "split": "fit_train", "patch": 4, "rule": "majority-prefer-nonvoid"}
    label.main(job(out, spec, images=root / "images/fit_train/meta.json"))
    edge = json.loads(out.read_text())
    labels = np.fromfile(root / "shards/labels.bin", np.uint8).reshape(20, 6)
    images = open_images(root / "images/fit_train/meta.json")
    assert np.array_equal(labels, [images.mask(i)[::4, ::4].ravel() for i in range(20)])
    assert (edge["classes"], edge["void"]) == (["void", "red", "blue"], 0)
    assert edge["counts"] == [int((labels == label_).sum()) for label_ in range(3)]
    assert (edge["n_examples"], edge["tokens_per_example"], edge["bytes"]) == (20, 6, 120)
    assert edge["sha256"] == file_digest(root / "shards/labels.bin")


def test_unknown_architectures_are_refused(root, trained, tmp_path):
    edge = {**trained, "architecture": "resnet", "files": {}}
    (tmp_path / "meta.json").write_text(json.dumps(edge))
    work = job(tmp_path / "out.json", RECORD, images=root / "images/fit_train/meta.json", model=tmp_path / "meta.json")
    with pytest.raises(StoreError, match="architecture 'resnet' is unknown; known: eigenloom.vit, transformers"):
        record.main(work)
