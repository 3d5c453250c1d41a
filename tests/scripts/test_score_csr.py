"""Codes of somebody else in the table: what the script writes is what our own probe makes of the same codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from recordings import saev_record

import score_csr
from eigenloom.codes.csr import CsrCodes
from eigenloom.errors import MismatchError
from eigenloom.probes.fit import fit_probe
from eigenloom.store.adoption import adopt_recording
from eigenloom.store.recording import open_store

N, P, K = 60, 4, 16


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two adopted recordings with labels, and codes of all their rows in which feature c leans to class c."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("probe_train", "probe_val")):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (N, P)).astype(np.uint8)
        acts = rng.normal(size=(N, 1, P, 3)).astype(np.float32)
        saev_record(Path("data", split), acts, (5,), False, 40, labels=labels)
        codes = rng.random((N * P, K)) * (rng.random((N * P, K)) < 0.2)
        codes[np.arange(N * P), labels.ravel()] += 1.0 * (labels.ravel() > 0)
        Path("sae", split).mkdir(parents=True)
        scipy.sparse.save_npz(Path("sae", split, "token_acts.npz"), scipy.sparse.csr_matrix(codes.astype(np.float32)))
        edge = f"artifacts/theirs/saev/shards/{split}/store.json"
        names = ["void", "sky", "sea", "sand"]
        adopt_recording(edge, f"data/{split}", source="theirs", split=split, classes=names, void=0)
    return tmp_path


def run(*more):
    stores = "artifacts/theirs/saev/shards"
    words = [
        "--train", "sae/probe_train/token_acts.npz", "--val", "sae/probe_val/token_acts.npz", "--layer", "layer-05",
        "--train-store", f"{stores}/probe_train/store.json", "--val-store", f"{stores}/probe_val/store.json",
    ]  # fmt: skip
    found = score_csr.parser().parse_args([*words, *more])
    found.device = "cpu"
    score_csr.main(found)


def test_the_table_holds_what_our_probe_finds(tree):
    one, two = (f"results/theirs/layer-05/{name}/csr/metrics.json" for name in ("one", "two"))
    run("--name", "one", "--out", one)
    run("--name", "two", "--out", two, "--beside", one)
    assert {path.name for path in Path(one).parent.iterdir()} == {
        "metrics.json",
        "per_class.csv",
        "features.csv",
        "table.md",
    }
    metrics = json.loads(Path(one).read_text())

    stores = [open_store(f"artifacts/theirs/saev/shards/{split}/store.json") for split in ("probe_train", "probe_val")]
    streams = [CsrCodes(f"sae/{split}/token_acts.npz", N * P) for split in ("probe_train", "probe_val")]
    labels = [store.labels() for store in stores]
    own = fit_probe(streams[0], labels[0], streams[1], labels[1], classes=stores[0].classes, void=0)
    for name in ("probe_r", "map", "purity_16"):
        assert metrics["metrics"][name] == own.metrics.scalars[name]
    assert metrics["metrics"]["nmse"] is None
    assert metrics["metrics"]["map"] > 0.9 > metrics["floors"]["random"]["map"] + 0.3
    assert metrics["metrics"]["l0"] == pytest.approx(streams[1].n_entries / (N * P), rel=0.2)
    table = Path(two).with_name("table.md").read_text()
    rows = [line.split(" | ")[2].strip("*") for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == ["one", "one-random", "two", "two-random", "constant"]


def test_codes_of_other_rows_are_a_sentence(tree):
    codes = scipy.sparse.csr_matrix(np.eye(N * P - 1, K))
    scipy.sparse.save_npz("sae/probe_val/token_acts.npz", codes)
    with pytest.raises(MismatchError, match=f"has {N * P - 1} rows, but the recording has {N * P}"):
        run("--name", "one", "--out", "out/metrics.json")
    assert not Path("out").exists()
