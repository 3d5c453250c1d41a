"""A small run on recordings in the layout of the saev project, and a dictionary from a file, side by side."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from checkout import copy_checkout, environment, snakemake
from recordings import saev_record
from safetensors.torch import save_file

from eigenloom.store.recording import open_store

pytestmark = pytest.mark.dag
P, D, LAYERS = 4, 12, (0, 2)
SPLITS = {"fit_train": 60, "fit_val": 16, "probe_train": 40, "probe_val": 24}
CLASSES = ["void", "sky", "sea", "sand"]
CONFIG = {
    "name": "taken",
    "device": "cpu",
    "sources": {
        "theirs": {
            "kind": "recorded",
            "splits": {split: {"path": f"data/{split}"} for split in SPLITS},
            "layers": [2],
            "classes": CLASSES,
            "void": 0,
        }
    },
    "bases": {
        "autoencoder": {
            "kind": "dictionary", "path": "data/{layer}.safetensors", "n_components": 24, "activation": "topk",
            "n_active": 4, "codings": ["few"],
        }
    },
    "codings": {"few": {"kind": "topk", "k": [4]}},
    "encode": {"materialize": []},
}  # fmt: skip
TARGET = "results/theirs/layer-02/autoencoder/few-00004/metrics.json"


def recordings(root):
    """Write four recordings whose classes are directions, and the dictionary of those directions and some more."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(D, D)))[0]
    for split, n_examples in SPLITS.items():
        labels = rng.integers(0, len(CLASSES), (n_examples, P)).astype(np.uint8)
        acts = rng.normal(size=(n_examples, len(LAYERS), P + 1, D))
        acts[:, 1, 1:] += 4 * directions[labels] * (labels > 0)[..., None]
        saev_record(
            root / split, acts.astype(np.float32), LAYERS, True, 160, labels=labels, phantom=n_examples % 16 == 0
        )
    elements = torch.from_numpy(np.concatenate([directions, -directions])).float()
    save_file({"W_enc": elements.T.contiguous(), "W_dec": elements}, root / "layer-02.safetensors")


def test_foreign_recordings_and_a_foreign_dictionary_are_scored(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    recordings(checkout / "data")
    (checkout / "taken.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    before = {path: path.stat().st_mtime_ns for path in (checkout / "data").rglob("*")}
    words = (TARGET, "--configfile", "taken.yaml")
    snakemake(checkout, *words)
    assert {path: path.stat().st_mtime_ns for path in (checkout / "data").rglob("*")} == before

    metrics = json.loads((checkout / TARGET).read_text())
    assert (metrics["kind"], metrics["k"], metrics["reconstruction_of"]) == ("dictionary", 24, "topk-00004")
    assert metrics["metrics"]["l0"] <= 4
    assert metrics["metrics"]["nmse"] < metrics["floors"]["random"]["nmse"] < 1
    assert metrics["metrics"]["map"] > 0.9 > metrics["floors"]["random"]["map"] > 0.3
    store = open_store(checkout / "artifacts/theirs/saev/shards/probe_val/store.json")
    assert store.directory == checkout / "data/probe_val"
    moments = json.loads((checkout / "artifacts/theirs/moments/fit_train/part-00000.json").read_text())
    assert moments["layers"] == [2]

    verified = [sys.executable, "scripts/verify.py"]
    done = subprocess.run(
        verified, cwd=checkout, env=environment(checkout), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in snakemake(checkout, "-n", *words).stdout
    elements = torch.eye(D).repeat(2, 1)
    save_file({"W_enc": elements.T.contiguous(), "W_dec": elements}, checkout / "data/layer-02.safetensors")
    planned = snakemake(checkout, "-n", *words).stdout
    assert "rule fit:" in planned
    assert "rule adopt:" not in planned
