"""Pretrained networks on images that look like ADE20K, and on texts, through the real workflow, offline."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ade20k_miniatures import FULL_CLASSES, full_release, scene_parsing
from checkout import copy_checkout, environment, snakemake
from PIL import Image
from tiny_transformers import save_tiny, save_tiny_bert, write_sentences

from eigenloom.sources.activations import ActivationRows
from eigenloom.sources.ade20k import CLASSES
from eigenloom.sources.texts import TextSet
from eigenloom.store.recording import open_store

pytestmark = [pytest.mark.dag, pytest.mark.slow]

CONFIG = """
name: miniature
device: cpu
sources:
  dino:
    images:
      training: {kind: ade20k, root: data/ade, part: training}
      validation: {kind: ade20k, root: data/ade, part: validation}
      full: {kind: ade20k, root: data/full, part: training, layout: full, classes: {sky: [2420], wall: [2978, 300]}}
    splits:
      fit_train: {images: training, n_examples: 20}
      fit_val: {images: full, n_examples: 6}
      probe_train: {images: training, n_examples: 20, first: 20}
      probe_val: {images: validation, n_examples: 16}
    model: {kind: pretrained, path: data/dino, preprocess: {n_patches: 16}}
    layers: last-1
  bert:
    kind: texts
    texts: {corpus: data/corpus.jsonl}
    splits:
      fit_train: {texts: corpus, n_examples: 20}
      fit_val: {texts: corpus, n_examples: 10, first: 20}
    model: {path: data/bert, n_tokens: 16}
    classes: [noun, verb, stop]
    layers: [2]
bases:
  kmeans-8: {kind: kmeans, n_clusters: 8, codings: [onehot]}
encode: {materialize: []}
codings:
  onehot: {kind: onehot}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout in which everything was built. Do not change it."""
    root = copy_checkout(tmp_path_factory.mktemp("pretrained") / "checkout")
    save_tiny(root / "data/dino", num_hidden_layers=2)
    scene_parsing(root / "data/ade", {"training": 40, "validation": 16})
    full_release(root / "data/full", {"training": 6})
    save_tiny_bert(root / "data/bert")
    write_sentences(root / "data/corpus.jsonl", 200)
    (root / "mini.yaml").write_text(CONFIG)
    snakemake(root, "all", "--configfile", "mini.yaml")
    return root


def labels_of(checkout: Path, split: str) -> np.ndarray:
    store = checkout / "artifacts/dino/saev/shards" / split
    return np.fromfile(store / "labels.bin", np.uint8).reshape(-1, 16)


def names_of(checkout: Path, split: str) -> list[str]:
    return json.loads((checkout / "artifacts/dino/images" / split / "files.json").read_text())["images"]


def test_a_second_run_has_nothing_to_do_and_all_is_as_recorded(checkout):
    assert "Nothing to be done" in snakemake(checkout, "-n", "all", "--configfile", "mini.yaml").stdout
    done = subprocess.run(
        [sys.executable, "scripts/verify.py"], cwd=checkout, env=environment(checkout), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_recording_says_what_it_is_of(checkout):
    shards = checkout / "artifacts/dino/saev/shards"
    metadata = json.loads((shards / "fit_train/metadata.json").read_text())
    assert (metadata["family"], metadata["ckpt"], metadata["cls_token"]) == ("dinov3", "data/dino", True)
    assert (metadata["layers"], metadata["d_model"], metadata["content_tokens_per_example"]) == ([1], 32, 16)
    store = json.loads((shards / "fit_train/store.json").read_text())
    model = json.loads((checkout / "artifacts/dino/model/meta.json").read_text())
    assert store["signature"]["architecture"] == "transformers.DINOv3ViTModel"
    assert store["signature"]["weights_sha256"] == model["weights_sha256"]
    assert sorted(path.name for path in (checkout / "artifacts/dino/model").iterdir()) == ["meta.json", "run.json"]
    assert str(checkout) not in (checkout / "artifacts/dino/model/meta.json").read_text()


def test_rows_are_the_models_own(checkout):
    import torch
    from transformers import DINOv3ViTModel

    rows = ActivationRows(open_store(checkout / "artifacts/dino/saev/shards/probe_val"), layer=1)
    stored = torch.cat([batch.clone() for batch in rows]).reshape(16, 16, 32)
    model = DINOv3ViTModel.from_pretrained(checkout / "data/dino").eval()
    name = names_of(checkout, "probe_val")[3]
    pixels = np.asarray(Image.open(checkout / "data/ade" / name).convert("RGB")).astype(np.float32) / 255
    scaled = (pixels - [0.485, 0.456, 0.406]) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        images = torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1)[None]
        own = model(images, output_hidden_states=True).hidden_states[2][0, 5:]
    torch.testing.assert_close(stored[3], own, rtol=0, atol=1e-5)


def test_rows_and_labels_of_texts(checkout):
    import torch
    from transformers import BertModel

    shards = checkout / "artifacts/bert/saev/shards/fit_val"
    texts = TextSet(checkout / "artifacts/bert/texts/fit_val/meta.json")
    assert texts.tokens.shape == (10, 17)
    rows = torch.cat([batch.clone() for batch in ActivationRows(open_store(shards), layer=2)]).reshape(10, 16, 32)
    model = BertModel.from_pretrained(checkout / "data/bert").eval()
    with torch.inference_mode():
        own = model(torch.from_numpy(texts.tokens).long(), output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(rows, own[:, 1:], rtol=0, atol=1e-5)
    assert np.array_equal(np.fromfile(shards / "labels.bin", np.uint8).reshape(10, 16), texts.labels)
    store = json.loads((shards / "store.json").read_text())
    assert store["labels"]["classes"] == ["void", "noun", "verb", "stop"]
    assert store["signature"]["tokens"] == "text"


def test_labels_of_scene_parsing(checkout):
    labels = labels_of(checkout, "probe_val")
    for i, name in enumerate(names_of(checkout, "probe_val")):
        mask = np.asarray(Image.open(checkout / f"data/ade/annotations/validation/{Path(name).stem}.png"))
        assert np.array_equal(labels[i], mask[15::16, 15::16].ravel())  # a quarter of the first patch is another id
    assert set(np.unique(labels)) == {0, 1, 2, 3, 150}


def test_labels_of_the_full_release(checkout):
    labels = labels_of(checkout, "fit_val")
    numbers = {number: label for label, ids in enumerate(FULL_CLASSES.values(), 1) for number in ids}
    for i, name in enumerate(names_of(checkout, "fit_val")):
        colours = np.asarray(Image.open(checkout / "data/full" / name.replace(".jpg", "_seg.png"))).astype(int)
        ids = colours[15::16, 15::16, 0] // 10 * 256 + colours[15::16, 15::16, 1]
        assert labels[i].tolist() == [numbers.get(number, 0) for number in ids.ravel().tolist()]


def test_names_of_classes_reach_the_results_and_void_does_not(checkout):
    result = checkout / "results/dino/layer-01/kmeans-8/onehot"
    with (result / "per_class.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    evaluated = {line["class"] for line in lines if line["n_train"] not in ("", "0")}
    assert evaluated == {"wall", "building", "sky", "flag"}
    assert {line["class"] for line in lines} <= set(CLASSES)
    page = (checkout / "results/reports/miniature/index.html").read_text(encoding="utf-8")
    assert "building" in page


def test_a_clone_without_the_checkpoint_and_the_images_still_plans(checkout, tmp_path):
    hidden = tmp_path / "data"
    (checkout / "data").rename(hidden)
    try:
        said = snakemake(checkout, "-n", "all", "--configfile", "mini.yaml")
    finally:
        hidden.rename(checkout / "data")
    assert "Nothing to be done" in said.stdout
    assert "sources.dino.model.path: data/dino is absent" in said.stdout + said.stderr
