"""The three tools as people call them: fit, compress, reconstruct; and one sentence where they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from checkpoint_files import collection, state, vector, write
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def tool(name, *words, status=0):
    """Run a tool; return what it printed, or on failure the sentence."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, words), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1] if status else done.stdout


def test_fit_compress_reconstruct(tmp_path):
    paths, rows = collection(tmp_path / "c")
    said = tool("fit_weights_pca", tmp_path / "c/*.safetensors", "--out", tmp_path / "w", "--k", 5)
    assert "6 checkpoints of 30 numbers, 5 components by dual, 100.00 % of the variance" in said
    assert not list((tmp_path / "w").glob(".*"))
    scores = tmp_path / "scores.safetensors"
    tool("compress_weights", paths[4], paths[1], "--basis", tmp_path / "w", "--out", scores)
    assert load_file(scores)["scores"].shape == (2, 5)
    out = tmp_path / "rebuilt.safetensors"
    words = ["--basis", tmp_path / "w", "--scores", scores, "--template", paths[0], "--out", out]
    said = tool("reconstruct_weights", *words, "--row", 1)
    assert f"{paths[1]} from 5 components" in said
    assert torch.allclose(vector(load_file(out)), rows[1], atol=1e-5)
    assert "from 0 components" in tool("reconstruct_weights", *words, "--k-used", 0)
    assert torch.allclose(vector(load_file(out)), rows.mean(0), atol=1e-6)
    sentence = tool("reconstruct_weights", *words, "--row", 2, status=1)
    assert sentence.startswith("error: --row 2: ")
    sentence = tool("fit_weights_pca", paths[0], paths[1], "--out", tmp_path / "w", status=1)
    assert "holds an artifact already; name another directory, or add --overwrite" in sentence


def test_what_the_fit_refuses(tmp_path):
    paths, _ = collection(tmp_path / "c", n=3)
    out = ["--out", tmp_path / "w"]
    assert "3 rows span at most 2 directions" in tool("fit_weights_pca", *paths, *out, "--k", 3, status=1)
    assert "matches no file" in tool("fit_weights_pca", tmp_path / "x*", *out, status=1)
    other = write(tmp_path / "other.safetensors", {**state(0), "extra": torch.zeros(1)})
    assert "adds extra" in tool("fit_weights_pca", *paths, other, *out, status=1)
    assert "excluded" not in tool("fit_weights_pca", *paths, other, *out, "--k", 2, "--exclude", "extra")
