"""Progress is silent where it should be, and its lines carry the figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eigenloom.progress import Console, Progress


def test_silent_progress_changes_nothing():
    batches = [torch.zeros(3, 1), torch.zeros(2, 1)]
    assert list(Progress().track(batches, "rows", 5)) == batches
    Progress().log("pass", 0, inertia=1.0)


def test_console_writes_one_json_line_per_step(tmp_path, capsys):
    console = Console(tmp_path / "logs" / "history.jsonl")
    assert sum(len(batch) for batch in console.track([torch.zeros(3, 1), torch.zeros(2, 1)], "rows", 5)) == 5
    console.log("pass", 0, inertia=2.5)
    console.log("pass", 1, inertia=1.5)
    lines = [json.loads(line) for line in (tmp_path / "logs" / "history.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"], line["inertia"], line["rows"]) for line in lines] == [
        ("pass", 0, 2.5, 5),
        ("pass", 1, 1.5, 5),
    ]
    assert console.close()["rows"] == 5
    assert "rows" not in capsys.readouterr().err  # no bar where stderr is not a terminal


def test_weights_and_biases_works_offline(tmp_path):
    pytest.importorskip("wandb", reason="wandb is an optional dependency")
    code = (
        "from eigenloom.progress import Console\n"
        "console = Console(wandb_project='bases', name='kmeans')\n"
        "console.log('pass', 0, inertia=2.5)\n"
        "console.close()\n"
    )
    quiet = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    source = str(Path(__file__).parents[1] / "src")
    subprocess.run([sys.executable, "-c", code], check=True, env={**quiet, "PYTHONPATH": source}, cwd=tmp_path)
    (recorded,) = tmp_path.rglob("run-*.wandb")
    assert b"pass/inertia" in recorded.read_bytes()
