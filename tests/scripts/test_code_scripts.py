"""encode, join_codes and evaluate on a tiny recording: the files agree with each other and with the library."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

import encode
import evaluate
import join_codes
from eigenloom.bases.base import save_basis
from eigenloom.bases.pca import PCA
from eigenloom.codes.codings import coding_from
from eigenloom.codes.shards import open_codes
from eigenloom.codes.views import RowCodes, StoredCodes
from eigenloom.errors import ConfigError, MismatchError
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.provenance import canonical_json, file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.artifact import write_artifact
from eigenloom.store.protocol import Metadata, encode_data
from eigenloom.store.recording import open_store
from eigenloom.store.writer import write_shard, write_store
from job import Job

D, P, N = 8, 4, 23
SIGNATURE = {"architecture": "eigenloom.vit", "weights_sha256": "ab"}


def record(directory, seed, signature=None, scale=1.0, split="fit_val"):
    """Write a recording of 23 examples in three shards, layers 1 and 3."""
    metadata = Metadata(
        family="fake-clip", ckpt="x", layers=(1, 3), content_tokens_per_example=P, cls_token=True, d_model=D,
        n_examples=N, max_tokens_per_shard=2 * 8 * (P + 1), data=encode_data({}), dataset="scenes",
    )  # fmt: skip
    layout = metadata.layout
    rng = np.random.default_rng(seed)
    acts = (rng.normal(size=(N, 2, P + 1, D)) * np.linspace(1, 3, D) * scale + 1).astype("<f4")
    facts = [
        write_shard(directory, layout, shard, [acts[slice(*layout.shard_range(shard))]])
        for shard in range(layout.n_shards)
    ]
    write_store(
        directory, metadata, source="scenes", split=split, shards=facts, signature=signature or SIGNATURE, grid=(2, 2)
    )
    return directory / "store.json"


def measured(directory, store):
    moments = moments_of_rows(ActivationRows(open_store(store), 3))
    parameters = {"n_rows": moments.n_rows, "n_nonfinite": 0, "layer": "layer-03", "store_sha256": file_digest(store)}
    write_artifact(directory, kind="moments", parameters=parameters, arrays=moments.arrays())
    return moments


def job(script, names, spec, out, **edges):
    lists = {name: [edges[name]] if not isinstance(edges[name], list) else edges[name] for name in names}
    script.main(Job(Namespace(spec=canonical_json(spec), out=str(out), device="cpu", threads=1, **lists), names))
    return out


@pytest.fixture
def tree(tmp_path):
    """A fitting and an evaluation recording, their moments, and a PCA of the former."""
    train, val = record(tmp_path / "train", 0, split="fit_train"), record(tmp_path / "val", 1)
    moments = measured(tmp_path / "moments-train", train)
    measured(tmp_path / "moments-val", val)
    standardization = Standardization.from_moments(moments, "standard", "layer-03")
    rows = StandardizedRows(ActivationRows(open_store(train), 3), standardization, moments)
    basis = PCA.fit(rows, seed=0)
    save_basis(basis, tmp_path / "basis", origin={"layer": "layer-03", "signature": SIGNATURE})
    return tmp_path, val, tmp_path / "basis" / "meta.json", basis


def encode_all(root, store, basis):
    """Two parts, the first of two shards; then the manifest."""
    spec = {"layer": "layer-03", "layout": "topk", "stored_k": 6, "errors_k": [2]}
    parts = [
        job(encode, ("store", "basis"), {**spec, "part": part, "shards": shards}, root / f"codes/part-{part:05d}.json",
            store=store, basis=basis)
        for part, shards in enumerate([[0, 1], [2]])
    ]  # fmt: skip
    return job(join_codes, ("parts",), {"layout": "topk"}, root / "codes/manifest.json", parts=parts)


def evaluated(root, store, meta, moments="moments-val"):
    return job(
        evaluate, ("store", "basis", "moments", "fit_moments"), {"layer": "layer-03", "topk": [2, 6, 64]},
        root / "results/reconstruction.json", store=store, basis=meta,
        moments=root / moments / "meta.json", fit_moments=root / "moments-train/meta.json",
    )  # fmt: skip


def test_moments_of_other_rows_are_refused(tree):
    root, store, meta, _ = tree
    with pytest.raises(MismatchError, match="measured on"):
        evaluated(root, store, meta, "moments-train")


def test_codes_equal_the_stream_and_add_up_to_the_nmse(tree):
    root, store, meta, basis = tree
    codes = open_codes(encode_all(root, store, meta), verify=True)
    assert codes.split == "fit_val"
    assert codes.meta["parts"][1]["first_row"] == 16 * P
    coding = coding_from({"kind": "topk", "k": 2})
    rows = ActivationRows(open_store(store), 3)
    streamed = torch.cat([batch.to_dense() for batch in RowCodes(rows, basis, coding)])
    stored = torch.cat([batch.to_dense() for batch in StoredCodes(codes, coding)])
    torch.testing.assert_close(stored, streamed, rtol=1e-5, atol=1e-6)
    assert {path.name for path in (root / "codes").iterdir()} == {
        "manifest.json", "run.json",
        *(f"part-0000{p}.{name}" for p in (0, 1) for name in
          ("json", "run.json", "values.bin", "indices.bin", "errors.bin", "stats.safetensors")),
    }  # fmt: skip

    out = evaluated(root, store, meta)
    found = json.loads(out.read_text())
    assert (found["format"], found["version"], found["source"], found["n_rows"]) == (
        "eigenloom.reconstruction", 1, "scenes", N * P,
    )  # fmt: skip
    assert found["basis"] == {"kind": "pca", "geometry": "projection", "k": D}
    assert list(found["codings"]) == ["topk-00002", "topk-00006", "dense"]
    assert set(found["inputs"]) == {
        str(store),
        str(meta),
        *(str(root / f"moments-{s}/meta.json") for s in ("train", "val")),
    }
    fitted = torch.cat([basis.standardization.apply(batch) for batch in rows]).double()
    total = fitted.square().sum()  # the mean of the fitting rows is 0 here
    errors = torch.cat([codes.errors(part)[1] for part in (0, 1)]).double().sum(0)
    assert codes.errors(0)[0] == [2, 6]
    for column, name in enumerate(("topk-00002", "topk-00006")):
        assert found["codings"][name]["nmse"] == pytest.approx((errors[column] / total).item(), rel=1e-6)
    assert found["utilisation"]["dense"]["counts"] == [N * P] * D
    assert len(found["utilisation"]["topk-00002"]["per_shard"]) == 3
    lines = (root / "results/nmse_curve.csv").read_text().splitlines()
    assert lines[0] == "k,l0,nmse,nmse_raw"
    assert len(lines) == 1 + D
    assert lines[1].endswith(",")
    assert float(lines[2].split(",")[3]) == found["codings"]["topk-00002"]["nmse_raw"]


def test_edges_are_functions_of_spec_and_inputs(tree):
    root, store, meta, _ = tree
    manifest = encode_all(root, store, meta)
    first = {path.name: path.read_bytes() for path in manifest.parent.iterdir() if "run.json" not in path.name}
    encode_all(root, store, meta)
    assert first == {path.name: path.read_bytes() for path in manifest.parent.iterdir() if "run.json" not in path.name}


def test_a_basis_of_other_rows_is_refused(tree):
    root, _, meta, _ = tree
    spec = {"layer": "layer-03", "layout": "topk", "stored_k": 6, "part": 0, "shards": [0]}
    other = record(root / "other", 2, signature={**SIGNATURE, "weights_sha256": "cd"})
    with pytest.raises(MismatchError, match=r"'ab'.*'cd'"):
        job(encode, ("store", "basis"), spec, root / "x/part-00000.json", store=other, basis=meta)
    with pytest.raises(MismatchError, match="layer-01"):
        job(
            encode,
            ("store", "basis"),
            {**spec, "layer": "layer-01"},
            root / "x/part-00000.json",
            store=root / "val/store.json",
            basis=meta,
        )
    with pytest.raises(ConfigError, match="layer-02 is not stored; stored are layer-01, layer-03"):
        job(
            encode,
            ("store", "basis"),
            {**spec, "layer": "layer-02"},
            root / "x/part-00000.json",
            store=root / "val/store.json",
            basis=meta,
        )
    scaled = record(root / "scaled", 3, scale=9.0)
    with pytest.raises(MismatchError, match="spread"):
        job(encode, ("store", "basis"), spec, root / "x/part-00000.json", store=scaled, basis=meta)
    job(encode, ("store", "basis"), {**spec, "allow_shift": True}, root / "x/part-00000.json", store=scaled, basis=meta)
