"""The tool for checkpoints as people call it: banks, a dense checkpoint, and one sentence where it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moe_checkpoints import checkpoint, single

from eigenloom.experts.bank import load_bank
from eigenloom.experts.checkpoint import ExpertCheckpoint

ROOT = Path(__file__).resolve().parents[2]


def tool(*words, status=0):
    """Run the tool; return what it printed, or on failure the sentence."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "scripts/fit_experts.py"), *map(str, words), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1] if status else done.stdout


@pytest.fixture
def source(tmp_path):
    return checkpoint(tmp_path / "in", single(n=4, p=6, d=10), shards=2)


def test_banks_are_fitted_and_exported(source, tmp_path):
    out, dense = tmp_path / "banks", tmp_path / "dense"
    words = [source, "--out", out, "--rank", 3, "--num-bases", 2, "--steps", 3, "--polish-evals", 10]
    said = tool(*words, "--seeding-method", "hybrid", "--export", dense)
    share = 3 / 10 + 2 / 8 * 3 / 6 + 2 / 60
    assert f"gate: 8 experts of 6 x 10, {share:.3f} of their parameters\n" in said
    assert f"{dense}: exported" in said
    assert sorted(path.name for path in out.iterdir()) == ["gate", "up"]
    opened, found = ExpertCheckpoint.open(source), ExpertCheckpoint.open(dense).sources()
    for family, original in opened.sources().items():
        bank = load_bank(out / family)
        weights = torch.stack(list(original))
        error = (weights - bank.reconstruct()).norm() / weights.norm()
        assert bank.saving == pytest.approx(share)
        assert bank.metrics["relative_error"] == pytest.approx(float(error), rel=1e-4)
        assert f"{out / family}: relative error {error:.4f} ({bank.activation})" in said
        assert torch.equal(torch.stack(list(found[family])), bank.reconstruct())
        spec = json.loads((out / family / "meta.json").read_text())["spec"]
        assert spec["seeding_method"] == "hybrid"
        assert not {"out", "device", "threads", "resume"} & spec.keys()
    assert "holds banks already; name another directory, or add --overwrite" in tool(*words, status=1)


def test_one_family_per_layer_and_some_experts(source, tmp_path):
    words = ["--rank", 2, "--num-bases", 1, "--steps", 1, "--polish-evals", 0, "--activation", "identity"]
    said = tool(source, "--out", tmp_path / "b", "--families", "down", "--scope", "layer", "--layers", 1,
                "--max-experts", 3, *words)  # fmt: skip
    assert said.startswith("layer-01-down: 3 experts of 10 x 6")
    bank = load_bank(tmp_path / "b/layer-01-down")
    assert bank.transposed
    assert bank.shape == (10, 6)
    assert bank.expert_names == tuple(f"model.layers.1.experts.{i}.down" for i in range(3))


def test_what_is_refused(source, tmp_path):
    out = ["--out", tmp_path / "b"]
    for words, sentence in (
        (["--rank", 7, "--num-bases", 2], "rank: 7 is above min(p, d) = 6"),
        (["--rank", 2, "--num-bases", 9], "num_bases: 9 bases for the 8 experts"),
    ):
        assert sentence in tool(source, *out, *words, status=1)
    assert not list((tmp_path / "b").glob("*/meta.json"))
    assert "config.json: is missing" in tool(tmp_path, *out, "--rank", 1, "--num-bases", 1, status=1)
