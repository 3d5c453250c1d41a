"""decompose and rebuild on trainings of a planted problem: what they write, and that it is what the files are worth."""

import argparse
import csv
import json
import shutil

import made_up_results
import pytest
import torch
from coloured_patches import MODEL, prepare_coloured
from safetensors.torch import load_file

import decompose
import rebuild
import train
from eigenloom.codes.weights import WeightBasis
from eigenloom.errors import MismatchError, StoreError
from eigenloom.nn.rebuilt import Judge
from eigenloom.nn.weights import CURVE
from eigenloom.sources.checkpoints import Checkpoints
from eigenloom.store.listing import file_problems
from job import Job

HELD_OUT = [2, 6]
SPEC = {"seed": 0, "collection": "c", "held_out": HELD_OUT}


def job(out, spec, **edges):
    names = {name: paths if isinstance(paths, list) else [paths] for name, paths in edges.items()}
    spec = json.dumps({**spec, "code": "0"})
    return Job(argparse.Namespace(spec=spec, out=out, device="cpu", threads=1, **names), tuple(names))


def training(root, out, seed=0, **changes):
    edges = {"train": root / "images/fit_train/meta.json", "val": root / "images/fit_val/meta.json"}
    train.main(job(root / out, {"seed": seed, "model": {**MODEL, "bar": {}, **changes}, "snapshots": 8}, **edges))
    return root / out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two trainings, their decomposition, and what rebuilt networks are worth."""
    root = tmp_path_factory.mktemp("weights")
    prepare_coloured(root, "fit_train", 20, 0)
    prepare_coloured(root, "fit_val", 8, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        edges = [
            training(root, "artifacts/s/model/meta.json", steps=64),
            training(root, "artifacts/s/runs/other/meta.json", seed=1, steps=32),
        ]
        out = root / "artifacts/weights/c/meta.json"
        decompose.main(job(out, {**SPEC, "n_components": 5, "method": "auto", "block_size": 4096}, trainings=edges))
        result = root / "results/weights/c/metrics.json"
        val = root / "images/fit_val/meta.json"
        spec = {**SPEC, "k": [0, 1, 5], "judged": 2, "n_images": 6}
        rebuild.main(job(result, spec, basis=out, trainings=edges, val=val))
    return root


def metrics(root):
    return json.loads((root / "results/weights/c/metrics.json").read_text())


def test_the_fit_leaves_out_what_is_held_out(root):
    meta = json.loads((root / "artifacts/weights/c/meta.json").read_text())
    fitted = [sample["sample"] for sample in meta["parameters"]["origin"]["samples"]]
    names = [f"snapshot-{i:02d}.safetensors" for i in (1, 2, 4, 5, 6, 8)]
    assert fitted == [str(root / "artifacts/s" / run / name) for run in ("model", "runs/other") for name in names]
    assert file_problems(root / "artifacts/weights/c", meta["files"], verify=True) == []
    assert set(meta["files"]) == {"arrays.safetensors", "components.npy", "mean.npy", "layout.json", "errors.json"}
    assert set(meta["inputs"]) == {str(root / f"artifacts/s/{run}/meta.json") for run in ("model", "runs/other")}
    assert not [p for p in (root / "artifacts/.resume").rglob("*") if p.is_file()]


def test_results_have_the_documented_keys(root):
    document = metrics(root)
    assert tuple(document) == tuple(made_up_results.weights())
    assert [tuple(row) for row in document["curve"]] == [CURVE] * 3
    assert document["curve"][0].keys() == made_up_results.weights()["curve"][0].keys()
    assert document["samples"][0].keys() == made_up_results.weights()["samples"][0].keys()
    text = (root / "results/weights/c/curve.csv").read_text()
    assert [int(row["k"]) for row in csv.DictReader(text.splitlines())] == [0, 1, 5]
    assert file_problems(root / "results/weights/c", document["files"], verify=True) == []


def test_errors_are_those_of_the_basis(root):
    weights = WeightBasis.open(root / "artifacts/weights/c")
    folder, basis = root / "artifacts/s", weights.basis
    held_out = [folder / run / f"snapshot-{i + 1:02d}.safetensors" for run in ("model", "runs/other") for i in HELD_OUT]
    rows = torch.cat([b.clone() for b in Checkpoints(held_out).column_blocks(999)], dim=1).double()
    centred = rows - basis.mean.double()
    for row in metrics(root)["curve"]:
        part = basis.components[:, : row["k"]].double()
        left = centred - centred @ part @ part.T
        assert row["nmse_held_out"] == pytest.approx(float(left.square().sum() / centred.square().sum()), abs=2e-6)
        assert row["bytes"] == 4 * rows.shape[1] * (row["k"] + 1)
    first, *_, last = metrics(root)["curve"]
    assert first["nmse_held_out"] == first["nmse_fitted"] == first["nmse_held_out_random"] == 1
    assert last["nmse_fitted"] < last["nmse_held_out"] < last["nmse_held_out_random"]


def test_accuracies_are_those_of_the_files(root):
    document = metrics(root)
    judge = Judge(root / "artifacts/s/model/meta.json", root / "images/fit_val/meta.json", 6, torch.device("cpu"))
    judged = [s for s in document["samples"] if s["accuracy"] is not None]
    assert {(s["training"], s["step"], s["held_out"]) for s in judged} == {
        ("model", 56, True), ("other", 28, True), ("model", 64, False), ("other", 32, False)
    }  # fmt: skip
    for sample in judged:
        run = "model" if sample["training"] == "model" else "runs/other"
        step = sample["step"] // (8 if run == "model" else 4)
        assert judge.accuracy(root / f"artifacts/s/{run}/snapshot-{step:02d}.safetensors") == sample["accuracy"]
    held_out = [s["accuracy"] for s in judged if s["held_out"]]
    assert document["original"]["held_out"] == pytest.approx(sum(held_out) / 2)
    assert {row["accuracy_fitted"] for row in document["curve"][:1]} == {document["curve"][0]["accuracy_held_out"]}
    assert all(0 <= row["accuracy_held_out_random"] <= 1 for row in document["curve"])


def test_again_gives_the_same_bytes(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    before = {p: p.read_bytes() for p in (root / "results").rglob("*") if p.is_file()}
    document = metrics(root)
    edges = [root / "artifacts/s/model/meta.json", root / "artifacts/s/runs/other/meta.json"]
    out = root / "results/weights/c/metrics.json"
    spec = {name: value for name, value in document["spec"].items() if name != "code"}
    rebuild.main(
        job(
            out,
            spec,
            basis=root / "artifacts/weights/c/meta.json",
            trainings=edges,
            val=root / "images/fit_val/meta.json",
        )
    )
    assert {p: p.read_bytes() for p in (root / "results").rglob("*") if p.is_file()} == before


def test_networks_of_another_shape_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = training(root, tmp_path / "artifacts/s/model/meta.json", width=8, steps=8)
    edges = [root / "artifacts/s/model/meta.json", other]
    spec = {**SPEC, "n_components": 2, "method": "auto", "block_size": 4096}
    with pytest.raises(MismatchError, match="has another shape of"):
        decompose.main(job(tmp_path / "artifacts/weights/d/meta.json", spec, trainings=edges))
    assert not (tmp_path / "artifacts/weights/d/meta.json").exists()


def test_a_file_that_is_no_network_is_refused(root, tmp_path):
    judge = Judge(root / "artifacts/s/model/meta.json", root / "images/fit_val/meta.json", 2, torch.device("cpu"))
    path = tmp_path / "x.safetensors"
    shutil.copy(root / "artifacts/weights/c/arrays.safetensors", path)
    assert load_file(path)
    with pytest.raises(StoreError, match="x.safetensors: does not hold this network"):
        judge.accuracy(path)
    with pytest.raises(StoreError, match="no such file"):
        judge.accuracy(tmp_path / "absent.safetensors")
