"""Checkpoints become scores and checkpoints again, as files that other libraries load."""

import pytest
import torch
from checkpoint_files import collection, state, vector, write, write_shards
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model

from eigenloom.bases.base import save_basis
from eigenloom.bases.pca import PCA
from eigenloom.bases.weights import fit_weights
from eigenloom.codes.weights import WeightBasis, compress, read_scores, reconstruct, write_scores
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.sources.arrays import ArrayRows
from eigenloom.sources.checkpoints import Checkpoints, open_checkpoints


def fitted(paths, out, n_components=3, **choice):
    fit_weights(Checkpoints(paths, **choice), out, seed=0, n_components=n_components, block_size=1024)
    return WeightBasis.open(out)


@pytest.fixture
def six(tmp_path):
    paths, rows = collection(tmp_path / "c")
    return paths, rows, fitted(paths, tmp_path / "w", 5)


def test_compress_reconstruct_compress_gives_the_same_scores(tmp_path, six):
    paths, rows, weights = six
    scores = compress(weights, weights.open_like(paths))
    assert scores.shape == (6, 5)
    assert torch.allclose(scores, weights.basis.encode(rows), atol=1e-5)
    assert torch.allclose(scores, weights.basis.scores, atol=1e-4)
    for i, path in enumerate(paths):
        out = tmp_path / f"rebuilt-{i}.safetensors"
        reconstruct(weights, scores[i], out, open_checkpoints(path)[0])
        assert torch.allclose(vector(load_file(out)), rows[i], atol=1e-5)
    again = compress(weights, weights.open_like([tmp_path / f"rebuilt-{i}.safetensors" for i in range(6)]))
    assert torch.allclose(again, scores, atol=1e-5)


def test_a_file_scores_as_its_vector(tmp_path, six):
    paths, _, weights = six
    new = write(tmp_path / "new.safetensors", state(77))
    scores = compress(weights, weights.open_like([new]))
    expected = weights.basis.decode(scores)
    reconstruct(weights, scores[0], tmp_path / "out.safetensors", open_checkpoints(paths[0])[0])
    assert torch.allclose(vector(load_file(tmp_path / "out.safetensors")), expected[0], atol=1e-6)


def test_fewer_components_without_refitting(tmp_path, six):
    paths, _, weights = six
    scores = compress(weights, weights.open_like(paths[:1]))[0]
    template = open_checkpoints(paths[0])[0]
    for k in range(6):
        reconstruct(weights, scores, tmp_path / "out.safetensors", template, k)
        expected = weights.basis.mean + weights.basis.components[:, :k] @ scores[:k]
        assert torch.allclose(vector(load_file(tmp_path / "out.safetensors")), expected, atol=1e-6)
    for k in (-1, 6):
        with pytest.raises(ConfigError, match=f"k_used: {k}, but the basis has 5 components"):
            reconstruct(weights, scores, tmp_path / "out.safetensors", template, k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_formats_skipped_tensors_order_and_header_are_the_templates(tmp_path, dtype):
    states = [{**state(i, dtype), "steps": torch.tensor([i]), "head.w": torch.full((2,), float(i))} for i in range(5)]
    metadata = {"format": "pt", "note": "größer"}
    paths = [write(tmp_path / f"{i}.safetensors", s, metadata) for i, s in enumerate(states)]
    weights = fitted(paths, tmp_path / "w", 4, exclude=["head.*"])
    scores = compress(weights, weights.open_like(paths))
    out = tmp_path / "out.safetensors"
    reconstruct(weights, scores[1], out, open_checkpoints(paths[3])[0])
    found = load_file(out)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in states[1].items()
    }
    assert found["steps"].item() == 3
    assert found["head.w"].tolist() == [3.0, 3.0]
    for name in ("a.bias", "b.weight"):
        assert torch.allclose(found[name].double(), states[1][name].double(), rtol=0, atol=0.02)
    with safe_open(out, framework="pt") as file, safe_open(paths[3], framework="pt") as template:
        assert file.metadata() == template.metadata() == metadata
        assert list(file.offset_keys()) == list(template.offset_keys())


class Tied(torch.nn.Module):
    """A network whose two layers share their weights."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_tied_weights_are_tied_again_and_the_network_loads(tmp_path, suffix):
    models, paths = [Tied(seed) for seed in range(4)], []
    for i, model in enumerate(models):
        paths.append(tmp_path / f"{i}.{suffix}")
        if suffix == "pt":
            torch.save(model.state_dict(), paths[i])
        else:
            save_model(model, str(paths[i]))
    weights = fitted(paths, tmp_path / "w")
    scores = compress(weights, weights.open_like(paths))
    reconstruct(weights, scores[2], tmp_path / "out.safetensors", open_checkpoints(paths[0])[0])
    assert set(load_file(tmp_path / "out.safetensors")) == {"first.weight", "first.bias", "second.bias"}
    rebuilt = Tied(9)
    load_model(rebuilt, str(tmp_path / "out.safetensors"))
    x = torch.randn(5, 3)
    assert torch.allclose(rebuilt(x), models[2](x), atol=1e-5)
    assert Checkpoints([tmp_path / "out.safetensors"]).layout.digest == weights.layout.digest


def test_configured_ties_are_written_twice(tmp_path):
    states = []
    for i in range(4):
        tensors = state(i)
        states.append({**tensors, "z.copy": tensors["b.weight"].clone()})
    paths = [write(tmp_path / f"{i}.safetensors", s) for i, s in enumerate(states)]
    weights = fitted(paths, tmp_path / "w", tied=[["b.weight", "z.copy"]])
    scores = compress(weights, weights.open_like(paths))
    reconstruct(weights, scores[0], tmp_path / "out.safetensors", open_checkpoints(paths[1])[0])
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["z.copy"], found["b.weight"])
    assert torch.allclose(found["z.copy"], states[0]["z.copy"], atol=1e-5)


def test_shards_become_one_file(tmp_path):
    states = [state(i) for i in range(4)]
    indices = [write_shards(tmp_path / str(i), s) for i, s in enumerate(states)]
    weights = fitted(indices, tmp_path / "w")
    scores = compress(weights, weights.open_like(indices))
    reconstruct(weights, scores[1], tmp_path / "out.safetensors", open_checkpoints(indices[0])[0])
    assert torch.allclose(vector(load_file(tmp_path / "out.safetensors")), vector(states[1]), atol=1e-5)


def test_scores_remember_their_basis(tmp_path, six):
    paths, rows, weights = six
    scores = compress(weights, weights.open_like(paths))
    write_scores(tmp_path / "s.safetensors", weights, scores, ["one", "zwö", *"3456"])
    found, labels = read_scores(tmp_path / "s.safetensors", weights)
    assert torch.equal(found, scores)
    assert labels == ["one", "zwö", *"3456"]
    other = fitted(paths[1:], tmp_path / "w2")
    with pytest.raises(MismatchError, match="these scores belong to another basis"):
        read_scores(tmp_path / "s.safetensors", other)
    with pytest.raises(StoreError, match="is not a file of scores"):
        read_scores(paths[0], weights)
    assert rows.shape[0] == 6


def test_another_model_is_refused_in_both_directions(tmp_path, six):
    paths, _, weights = six
    tensors = state(3)
    del tensors["a.bias"]
    other = write(tmp_path / "other.safetensors", {**tensors, "new": torch.zeros(2)})
    with pytest.raises(MismatchError, match=r"other.safetensors: is of another model than .*lacks a.bias; adds new"):
        weights.open_like([other])
    with pytest.raises(MismatchError, match=r"lacks a.bias; adds new"):
        reconstruct(weights, torch.zeros(5), tmp_path / "out.safetensors", open_checkpoints(other)[0])
    assert not (tmp_path / "out.safetensors").exists()
    assert paths


def test_a_basis_of_something_else_is_refused(tmp_path):
    save_basis(PCA.fit(ArrayRows(torch.randn(20, 4)), seed=0), tmp_path / "pca")
    with pytest.raises(StoreError, match="is not a basis of weights; fit one with fit_weights_pca.py"):
        WeightBasis.open(tmp_path / "pca")
