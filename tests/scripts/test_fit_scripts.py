"""measure, join_moments and fit on a tiny recording: edges, sums, provenance, and what they refuse."""

import json
import logging
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import fit
import join_moments
import measure
from eigenloom.bases.base import check_origin, load_basis
from eigenloom.errors import DataError, MismatchError, StoreError
from eigenloom.linalg.accumulate import shifted_gram_reference
from eigenloom.moments import Moments, Standardization
from eigenloom.provenance import canonical_json, file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import read_artifact
from eigenloom.store.listing import file_problems
from eigenloom.store.protocol import Metadata, encode_data
from eigenloom.store.recording import open_store
from eigenloom.store.writer import write_shard, write_store
from job import Job

D, P, N, LAYERS = 6, 4, 23, (1, 3)
SIGNATURE = {"architecture": "eigenloom.vit", "preprocess": {"mean": [0.5]}}
STORE = Path("artifacts/scenes/saev/shards/fit_train")
MOMENTS = Path("artifacts/scenes/moments/fit_train")
BASIS = Path("artifacts/scenes/bases/pca/layer-03/meta.json")


def record(spoil=lambda acts: None):
    """Write 23 examples in four shards, layers 1 and 3."""
    metadata = Metadata(
        family="fake-clip", ckpt="x", layers=LAYERS, content_tokens_per_example=P, cls_token=True, d_model=D,
        n_examples=N, max_tokens_per_shard=2 * 6 * (P + 1), data=encode_data({}), dataset="scenes",
    )  # fmt: skip
    acts = np.random.default_rng(0).normal(2, 1, size=(N, 2, P + 1, D)).astype("<f4")
    spoil(acts)
    layout = metadata.layout
    parts = [acts[slice(*layout.shard_range(shard))] for shard in range(layout.n_shards)]
    facts = [write_shard(STORE, layout, shard, [part]) for shard, part in enumerate(parts)]
    write_store(STORE, metadata, source="scenes", split="fit_train", shards=facts, signature=SIGNATURE)
    return STORE / "store.json"


def do(script, spec, out, **edges):
    lists = {name: paths if isinstance(paths, list) else [paths] for name, paths in edges.items()}
    namespace = Namespace(spec=canonical_json(spec), out=str(out), device="cpu", threads=1, **lists)
    script.main(Job(namespace, tuple(lists)))
    return Path(out)


def parts(store, cut=((0, 1), (2, 3))):
    return [
        do(measure, {"part": i, "shards": list(shards)}, MOMENTS / f"part-{i:05d}.json", store=store)
        for i, shards in enumerate(cut)
    ]


def joined(store, edges, layer="layer-03"):
    return do(join_moments, {"layer": layer}, MOMENTS / layer / "meta.json", store=store, parts=edges)


def fitted(store, moments, standardize="standard", layer="layer-03", **basis):
    spec = {"seed": 3, "layer": layer, "standardize": standardize, "basis": {"kind": "pca", **basis}}
    return do(fit, spec, BASIS, store=store, moments=moments)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_parts_are_edges_with_the_sums_of_every_shard_and_layer():
    store = record()
    first, _ = parts(store)
    edge = json.loads(first.read_text())
    assert (edge["format"], edge["version"]) == ("eigenloom.moments-part", 1)
    assert (edge["part"], edge["shards"], edge["layers"], edge["n_rows"]) == (0, [0, 1], [1, 3], 12 * P)
    assert edge["inputs"] == {str(store): file_digest(store)}
    assert edge["spec"] == {"part": 0, "shards": [0, 1]}
    assert edge["files"].keys() == {"part-00000.safetensors"}
    assert not file_problems(first.parent, edge["files"], verify=True)
    assert json.loads(first.with_suffix(".run.json").read_text())["rows"] == 2 * 12 * P


@pytest.mark.parametrize("layer", LAYERS)
def test_joined_moments_are_those_of_the_split_however_the_parts_are_cut(layer):
    store = record()
    name = f"layer-{layer:02d}"
    digests = []
    for cut in (((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((2, 3), (0, 1))):
        meta = joined(store, parts(store, cut), name)
        digests.append(json.loads(meta.read_text())["files"]["arrays.safetensors"]["sha256"])
    assert len(set(digests)) == 1
    artifact = read_artifact(meta, "moments", verify=True)
    rows = torch.cat(list(ActivationRows(open_store(store), layer)))
    mean, scatter = shifted_gram_reference(rows)
    moments = Moments.from_arrays(artifact.arrays, artifact.parameters)
    assert (moments.mean - mean).abs().max() < 1e-7
    assert (moments.scatter - scatter).norm() < 1e-6 * scatter.norm()
    assert torch.equal(moments.maximum, rows.amax(0))
    expected = {
        "layer": name, "source": "scenes", "split": "fit_train", "n_rows": N * P, "n_nonfinite": 0,
        "saev_hash": json.loads(store.read_text())["saev_hash"], "store_sha256": file_digest(store),
        "signature": SIGNATURE,
    }  # fmt: skip
    assert artifact.parameters == expected


def test_missing_shards_are_refused():
    store = record()
    with pytest.raises(StoreError, match=r"has 4 shards, the parts measure \[0, 1\]"):
        joined(store, parts(store)[:1])


def test_a_fit_knows_its_origin_and_repeats_to_the_byte(caplog):
    store = record()
    moments = joined(store, parts(store))
    meta = fitted(store, moments, n_components=4)
    first = meta.read_bytes()
    basis = load_basis(meta, verify=True)
    artifact = read_artifact(moments, "moments")
    standardization = Standardization.from_moments(
        Moments.from_arrays(artifact.arrays, artifact.parameters), "standard", "layer-03"
    )
    assert basis.standardization.digest == standardization.digest
    assert (basis.kind, basis.n_elements, basis.rows_used) == ("pca", 4, N * P)
    assert json.loads(first)["inputs"] == {str(store): file_digest(store), str(moments): file_digest(moments)}
    assert {"seconds", "rows", "device"} <= json.loads((meta.parent / "run.json").read_text()).keys()
    (line,) = Path("logs/fit/scenes/pca/layer-03.jsonl").read_text().splitlines()
    assert json.loads(line)["rows_used"] == N * P
    caplog.set_level(logging.WARNING)
    shutil.rmtree(meta.parent)
    assert fitted(store, moments, n_components=4).read_bytes() == first
    check_origin(meta, {"layer": "layer-03", "signature": SIGNATURE})
    other = {"layer": "layer-01", "signature": {**SIGNATURE, "preprocess": {"mean": [0.4]}}}
    with pytest.raises(MismatchError) as caught:
        check_origin(meta.parent, other)
    assert "layer: fitted on 'layer-03', found 'layer-01'" in str(caught.value)
    assert "signature.preprocess.mean: fitted on [0.5], found [0.4]" in str(caught.value)
    assert "architecture" not in str(caught.value)


@pytest.mark.parametrize("standardize", ["standard", "center", "none"])
def test_every_standardization_reconstructs_the_same_rows(standardize):
    store = record()
    basis = load_basis(fitted(store, joined(store, parts(store)), standardize))
    assert basis.standardization.kind == standardize
    rows = torch.cat(list(ActivationRows(open_store(store), 3)))
    back = basis.decode(basis.encode(basis.standardization.apply(rows)))
    assert (basis.standardization.invert(back) - rows).abs().max() < 1e-5


def test_moments_of_another_recording_or_layer_are_refused():
    store = record()
    moments = joined(store, parts(store))
    with pytest.raises(MismatchError, match="measured on layer layer-03, but the rows to fit are of layer-01"):
        fitted(store, moments, layer="layer-01")
    old = file_digest(store)[:8]
    record(lambda acts: acts.__imul__(2))
    new = file_digest(store)[:8]
    with pytest.raises(MismatchError, match=f"store.json {old}, but the rows to fit are of {new}; run `snakemake"):
        fitted(store, moments)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_what_is_not_finite_is_named_by_shard_example_token_layer_and_feature(value, word):
    def spoil(acts):
        acts[14, 1, 1 + 2, 5] = acts[14, 1, 1 + 3, 0] = value

    store = record(spoil)
    with pytest.raises(DataError) as caught:
        parts(store)
    text = str(caught.value)
    for words in ("acts000002.bin", "example 14", "token 2", "layer 3", f"feature 5 is {word}", "2 entries of"):
        assert words in text


def test_an_example_that_was_never_written_is_named():
    def spoil(acts):
        acts[9] = 0

    with pytest.raises(DataError, match=r"acts000001\.bin, example 9, .*: all 4 rows of this example are exactly zero"):
        parts(record(spoil))
