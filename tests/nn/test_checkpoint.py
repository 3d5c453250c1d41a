"""A network comes back from disk as it was; what is not its file is refused by name."""

import json

import pytest
import torch

from eigenloom.errors import StoreError
from eigenloom.nn.checkpoint import ARCHITECTURE, FORMAT, VERSION, describe, open_vit, read_model_edge, write_model
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.sources.preprocess import Preprocess

PREPROCESS = Preprocess(4, std=(0.25, 0.25, 0.25))


@pytest.fixture
def module():
    return SmallViT(ViTConfig((2, 3), 4, 8, 2, 2, 5), seed=4)


@pytest.fixture
def path(tmp_path, module):
    files = write_model(tmp_path, module, PREPROCESS)
    edge = {"format": FORMAT, "version": VERSION, "architecture": ARCHITECTURE, "files": files}
    (tmp_path / "meta.json").write_text(json.dumps({**edge, "config": describe(module.config, PREPROCESS)}))
    return tmp_path / "meta.json"


def test_round_trip(path, module):
    edge = read_model_edge(path)
    model = open_vit(path, edge)
    assert model.module.config == module.config
    assert model.preprocess == PREPROCESS
    assert model.signature()["weights_sha256"] == edge["files"]["model.safetensors"]["sha256"]
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(model.module(images), module(images))
    assert json.loads((path.parent / "config.json").read_text()) == edge["config"]


def test_foreign_and_damaged_edges(path):
    edge = json.loads(path.read_text())
    for change in ({"format": "other"}, {"version": 2}):
        path.write_text(json.dumps({**edge, **change}))
        with pytest.raises(StoreError, match="is not an edge of format 'eigenloom.model' version 1"):
            read_model_edge(path)
    path.write_text(json.dumps(edge))
    with (path.parent / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(StoreError, match=r"model\.safetensors: \d+ bytes, expected \d+"):
        read_model_edge(path)


def test_weights_that_do_not_fit(path):
    edge = read_model_edge(path)
    config = path.parent / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(StoreError, match=r"does not hold this network \(.*blocks\.2"):
        open_vit(path, edge)
    (path.parent / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors: does not hold this network"):
        open_vit(path, edge)
