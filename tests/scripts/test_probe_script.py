"""The probe job on two tiny labelled recordings, streamed and from codes; what it refuses."""

import json
from argparse import Namespace

import numpy as np
import pytest

import encode
import join_codes
import probe
from eigenloom.bases.base import save_basis
from eigenloom.bases.kmeans import KMeans
from eigenloom.bases.pca import PCA
from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.probes.inputs import open_inputs
from eigenloom.provenance import canonical_json, file_digest
from eigenloom.report import scores
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import read_artifact
from eigenloom.store.protocol import Metadata, encode_data
from eigenloom.store.recording import open_store
from eigenloom.store.writer import write_shard, write_store
from job import Job

D, P, N = 6, 4, 40
CLASSES = ["void", "a", "b", "c"]
SPEC = {"seed": 0, "layer": "layer-02", "coding": {"kind": "dense"}, "probe": {"l2": 1e-6, "void": "masked"}}


def record(directory, seed, split, labelled=True, inputs=None, weights="ab"):
    """Write a recording of 40 examples in three shards; feature c leans to class c."""
    metadata = Metadata(
        family="fake-clip", ckpt="x", layers=(2,), content_tokens_per_example=P, cls_token=False, d_model=D,
        n_examples=N, max_tokens_per_shard=16 * P, data=encode_data({}), dataset="scenes",
    )  # fmt: skip
    layout = metadata.layout
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(CLASSES), (N, 1, P))
    acts = (rng.normal(size=(N, 1, P, D)) + 2 * (np.arange(D) == y[..., None])).astype("<f4")
    shards = [write_shard(directory, layout, s, [acts[slice(*layout.shard_range(s))]]) for s in range(layout.n_shards)]
    labels = None
    if labelled:
        (directory / "labels.bin").write_bytes(y.astype(np.uint8).tobytes())
        digest = file_digest(directory / "labels.bin")
        labels = {
            "sha256": digest,
            "classes": CLASSES,
            "void": 0,
            "rule": "x",
            "counts": np.bincount(y.ravel()).tolist(),
        }
    write_store(
        directory, metadata, source="scenes", split=split, shards=shards, grid=(2, 2), labels=labels,
        signature={"architecture": "eigenloom.vit", "weights_sha256": weights}, inputs=inputs,
    )  # fmt: skip
    return directory / "store.json"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Recordings of both probing splits and a PCA."""
    root = tmp_path_factory.mktemp("tree")
    train, val = record(root / "train", 1, "probe_train"), record(root / "val", 2, "probe_val")
    rows = ActivationRows(open_store(train), 2)
    moments = moments_of_rows(rows)
    basis = PCA.fit(
        StandardizedRows(rows, Standardization.from_moments(moments, "standard", "layer-02"), moments), seed=0
    )
    origin = {"layer": "layer-02", "signature": open_store(train).signature}
    save_basis(basis, root / "basis", origin=origin)
    return {"root": root, "train": train, "val": val, "basis": root / "basis" / "meta.json"}


def job(script, names, spec, out, **edges):
    lists = {name: [edges[name]] if name in edges and not isinstance(edges[name], list) else edges.get(name, [])
             for name in names}  # fmt: skip
    script.main(Job(Namespace(spec=canonical_json(spec), out=str(out), device="cpu", threads=1, **lists), names))
    return out


def run_probe(tree, out, spec=None, **more):
    edges = {name: tree[name] for name in ("train", "val", "basis")} | more
    return job(probe, ("train", "val", "basis", "train_codes", "val_codes"), spec or SPEC, out, **edges)


def test_artifact(tree, tmp_path):
    first, second = (run_probe(tree, tmp_path / name / "meta.json") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    artifact = read_artifact(first, "probe", verify=True)
    parameters = artifact.parameters
    assert parameters["classes"]["class"] == ["a", "b", "c"]
    assert parameters["metrics"]["probe_r"] > 0.05
    assert parameters["metrics"]["map"] > parameters["metrics"]["floor_map"] + 0.1
    assert parameters["coding"] == {"kind": "dense"}
    assert parameters["path"] == "histogram"
    assert artifact.arrays["w"].shape == (D, 3)
    assert set(artifact.run) >= {"seconds", "device"}
    assert artifact.meta["inputs"].keys() == {str(tree[name]) for name in ("train", "val", "basis")}
    assert len(scores.class_rows(artifact.meta)) == 3
    assert len(scores.feature_rows(artifact.meta)) == 3 * D
    as_class = {**SPEC, "probe": {"void": "class"}}
    counted = read_artifact(run_probe(tree, tmp_path / "c" / "meta.json", as_class)).parameters
    assert counted["classes"]["class"] == CLASSES


def test_codes_give_what_the_stream_gives(tree, tmp_path):
    manifests = {}
    for split in ("train", "val"):
        folder = tmp_path / split
        spec = {"layer": "layer-02", "layout": "topk", "stored_k": 4, "errors_k": []}
        parts = [
            job(encode, ("store", "basis"), {**spec, "part": part, "shards": shards}, folder / f"part-{part:05d}.json",
                store=tree[split], basis=tree["basis"])
            for part, shards in enumerate([[0, 1], [2]])
        ]  # fmt: skip
        spec = {"layout": "topk"}
        manifests[f"{split}_codes"] = job(join_codes, ("parts",), spec, folder / "manifest.json", parts=parts)
    spec = {**SPEC, "coding": {"kind": "topk", "k": 2}}
    streamed = read_artifact(run_probe(tree, tmp_path / "s" / "meta.json", spec))
    stored = read_artifact(run_probe(tree, tmp_path / "m" / "meta.json", spec, **manifests))
    assert stored.parameters["path"] == "columns"
    assert stored.parameters["metrics"]["l0_val"] == 2
    for name in ("b", "w", "train_loss", "val_loss"):
        np.testing.assert_allclose(stored.arrays[name], streamed.arrays[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="go together"):
        run_probe(tree, tmp_path / "x" / "meta.json", spec, train_codes=manifests["train_codes"])
    swapped = {"train_codes": manifests["val_codes"], "val_codes": manifests["train_codes"]}
    with pytest.raises(MismatchError, match="its split is probe_val"):
        run_probe(tree, tmp_path / "x" / "meta.json", spec, **swapped)


@pytest.mark.parametrize("kind", ["onehot", "inverse-distance", "inverse-distance-nearest", "similarity"])
def test_codings_of_distances(tree, tmp_path, kind):
    rows = ActivationRows(open_store(tree["train"]), 2)
    moments = moments_of_rows(rows)
    standardized = StandardizedRows(rows, Standardization.from_moments(moments, "standard", "layer-02"), moments)
    basis = KMeans.fit(standardized, seed=0, n_clusters=8)
    save_basis(basis, tmp_path, origin={"layer": "layer-02", "signature": open_store(tree["train"]).signature})
    spec = {**SPEC, "coding": {"kind": kind}}
    parameters = read_artifact(
        run_probe({**tree, "basis": tmp_path / "meta.json"}, tmp_path / "probe" / "meta.json", spec)
    ).parameters
    assert parameters["coding"]["kind"] == kind
    assert parameters["metrics"]["map"] > parameters["metrics"]["floor_map"]
    assert (parameters["metrics"]["ceiling_probe_r"] is not None) == (kind == "onehot")
    if kind == "similarity":
        assert parameters["coding"]["d_max"] > 0


def opened(tree, **more):
    stores = (more.pop("train", tree["train"]), more.pop("val", tree["val"]))
    return open_inputs(stores, tree["basis"], layer="layer-02", coding={"kind": "dense"}, **more)


def test_refusals(tree, tmp_path):
    with pytest.raises(DataError, match="the very recording"):
        opened(tree, val=tree["train"])
    copy = record(tmp_path / "copy", 1, "probe_val")
    with pytest.raises(DataError, match=r"3 shards are also in .*, acts000000.bin first"):
        opened(tree, val=copy)
    with pytest.raises(DataError, match="no patch labels"):
        opened(tree, val=record(tmp_path / "bare", 3, "probe_val", labelled=False))
    with pytest.raises(MismatchError, match="weights_sha256"):
        opened(tree, val=record(tmp_path / "other", 4, "probe_val", weights="cd"))
    with pytest.raises(ConfigError, match="void"):
        opened(tree, void="maybe")


def test_shared_examples_are_found_by_path(tree, tmp_path):
    splits = {}
    for seed, (split, names) in enumerate({"train": ["a.png", "b.png"], "val": ["b.png", "c.png"]}.items(), start=5):
        edge = tmp_path / "images" / split / "meta.json"
        edge.parent.mkdir(parents=True)
        edge.with_name("files.json").write_text(json.dumps({"root": "/data", "images": names}))
        splits[split] = record(tmp_path / split, seed, f"probe_{split}", inputs={str(edge): "0" * 64})
    with pytest.raises(DataError, match="1 examples are also in .*: /data/b.png"):
        opened(tree, **splits)
