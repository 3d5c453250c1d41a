"""Scores: every metric with its floors, and refusals that say what is wrong."""

import csv
import io
import json
import subprocess
import sys

import pytest
from made_up_results import HOSTILE, ROOT, metrics, path_of, probe, reconstruction, run_script, write_tree

from eigenloom.errors import MismatchError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.report import scores

SPEC = {"source": "s", "layer": "layer-01", "basis": "pca", "coding": "dense"}


def test_scalars_stand_beside_their_floors():
    document = metrics("layer-01", "pca", "dense", value=0.4, floor=0.3)
    assert document["metrics"]["probe_r"] == 0.4
    assert document["floors"]["random"]["probe_r"] == 0.3
    assert document["metrics"]["nmse"] == 0.25 / 4
    assert document["floors"]["random"]["nmse"] == 0.5 / 4
    constant = {"nmse": 1.0, "l0": 0.0, "probe_r": 0.0, "probe_r_train": 0.0, "purity_16": 0.5}
    assert document["floors"]["constant_score"] == {**constant, "map": 1 / 3, "coverage_03": 1 / 3}
    assert not any(name.startswith("floor_") for name in document["metrics"])
    assert (document["seed"], document["geometry"], document["is_floor"]) == (7, "projection", False)


def test_distance_codings_share_the_reconstruction_of_onehot_and_say_so():
    shared = metrics("layer-01", "kmeans-004", "inverse-distance")
    own = metrics("layer-01", "kmeans-004", "onehot")
    assert shared["metrics"]["nmse"] == own["metrics"]["nmse"] == 0.25
    assert (shared["reconstruction_of"], own["reconstruction_of"]) == ("onehot", "onehot")
    assert (shared["metrics"]["l0"], own["metrics"]["l0"]) == (4.0, 1.0)


def test_a_topk_that_left_nothing_out_shares_the_reconstruction_of_dense():
    edge = probe("layer-01", "topk-00016")
    edge["parameters"]["coding_name"] = "dense"
    document = scores.merge({**SPEC, "coding": "topk-00016"}, {}, reconstruction("layer-01", "pca"), edge)
    assert document["metrics"]["nmse"] == 0.25 / 4
    assert document["reconstruction_of"] == "dense"


def test_a_coding_without_reconstruction_is_refused():
    with pytest.raises(StoreError, match=r"knows \['dense', 'topk-00001'\], not 'topk-00004'"):
        scores.merge({**SPEC, "coding": "topk-00004"}, {}, reconstruction("layer-01", "pca"), probe("layer-01", "topk"))


@pytest.mark.parametrize("position", range(4))
def test_another_layer_is_refused(position):
    layers = ["layer-01"] * 4
    layers[position] = "layer-03"
    parts = [reconstruction(layers[0], "pca"), probe(layers[1], "dense")]
    parts += [reconstruction(layers[2], "pca-random"), probe(layers[3], "dense")]
    with pytest.raises(MismatchError, match="is of layer-03, the score of layer-01"):
        scores.merge(SPEC, {}, *parts)


def test_foreign_documents_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"format": "eigenloom.reconstruction", "version": 2}')
    with pytest.raises(StoreError, match="version 2"):
        scores.read_reconstruction(path)
    with pytest.raises(StoreError, match="is not the meta.json"):
        scores.read_edge(path)
    path.write_text('{"kind": "pca", "parameters": {}, "spec": {}, "inputs": {}}')
    with pytest.raises(StoreError, match="is a 'pca', where a 'probe'"):
        scores.read_edge(path, "probe")
    with pytest.raises(StoreError, match="is not a reconstruction"):
        scores.read_reconstruction(path)


def test_nan_becomes_null_and_empty():
    assert scores.finite({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5}) == {"a": [None, {"b": None}], "c": 1.5}
    assert scores.csv_text([{"a": float("nan"), "b": None, "c": 0.1}], ["c"]) == "c,a,b\n0.1,,\n"


def test_class_rows_carry_the_random_floor_and_survive_hostile_names():
    rows = scores.class_rows(probe("layer-01", "dense", mean_ap=0.6), probe("layer-01", "dense", mean_ap=0.5))
    assert [row["ap_random"] for row in rows] == [0.6, 0.5, 0.4]
    read = list(csv.DictReader(io.StringIO(scores.csv_text(rows, scores.PER_CLASS))))
    assert read[2]["class"] == HOSTILE
    assert (read[2]["id"], read[2]["purity"], float(read[0]["ap"])) == ("2", "", 0.7)


def test_columns_of_different_length_are_refused():
    broken = probe("layer-01", "dense")
    broken["parameters"]["classes"]["ap"].pop()
    with pytest.raises(StoreError, match="different lengths"):
        scores.class_rows(broken)


def test_script_writes_what_it_names(tmp_path):
    write_tree(tmp_path)
    out = path_of("layer-01", "pca", "dense")
    edges = {
        "reconstruction": ["results/s/layer-01/pca/reconstruction.json"],
        "probe": ["artifacts/s/probes/pca/dense/layer-01/meta.json"],
        "floor_reconstruction": ["results/s/layer-01/pca-random/reconstruction.json"],
        "floor_probe": ["artifacts/s/probes/pca-random/dense/layer-01/meta.json"],
        "basis": ["artifacts/s/bases/pca/layer-01/meta.json"],
    }
    assert run_script("score", tmp_path, SPEC, out, **edges) == (0, "")
    document = json.loads((tmp_path / out).read_text())
    assert document["inputs"] == {path: file_digest(tmp_path / path) for (path,) in edges.values()}
    assert document["specs"]["fit"]["basis"] == {"kind": "x", "n_clusters": 4}
    for name, facts in document["files"].items():
        path = (tmp_path / out).with_name(name)
        assert facts == {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    assert document["files"].keys() == {"per_class.csv", "features.csv"}
    edges["probe"] = edges["reconstruction"]
    status, message = run_script("score", tmp_path, SPEC, out, **edges)
    assert status == 1
    assert "is not the meta.json of an artifact" in message


def test_scoring_needs_no_torch():
    code = "import score, sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'scripts'}"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
