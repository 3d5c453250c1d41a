"""``make verify`` finds what changed under an edge."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eigenloom.provenance import file_digest
from eigenloom.store.artifact import write_artifact

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """Two artifacts, the second made from the first."""
    first, second = tmp_path / "artifacts/s/bases/a/layer-01", tmp_path / "artifacts/s/probes/a/dense/layer-01"
    write_artifact(first, kind="a", parameters={}, arrays={"x": torch.zeros(3)})
    inputs = {"artifacts/s/bases/a/layer-01/meta.json": file_digest(first / "meta.json")}
    write_artifact(second, kind="b", parameters={}, arrays={"y": torch.ones(3)}, inputs=inputs)
    return tmp_path


def verify(tree):
    command = [sys.executable, str(ROOT / "scripts/verify.py"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "src")})
    return done.returncode, done.stdout + done.stderr


def test_untouched(tree):
    assert verify(tree) == (0, "2 edges, all as recorded\n")


def test_flipped_bit_missing_file_and_another_input(tree):
    first, second = (tree / "artifacts/s" / name for name in ("bases/a/layer-01", "probes/a/dense/layer-01"))
    data = bytearray((first / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (first / "arrays.safetensors").write_bytes(data)
    (second / "arrays.safetensors").unlink()
    meta = json.loads((first / "meta.json").read_text())
    (first / "meta.json").write_text(json.dumps({**meta, "parameters": {"other": 1}}))
    status, said = verify(tree)
    assert status == 1
    assert "its sha256 is not the one in meta.json" in said
    assert "probes/a/dense/layer-01/arrays.safetensors: missing" in said
    assert "was made from another artifacts/s/bases/a/layer-01/meta.json" in said
    assert "3 problem(s) in 2 edges" in said
