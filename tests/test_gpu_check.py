"""The measurement of the GPU paths runs; what it measures needs a GPU, so here it is the code that is tried."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def check(*words):
    return subprocess.run(
        [sys.executable, "gpu_check.py", *words], cwd=FOLDER, capture_output=True, text=True, check=False
    )


def test_every_job_runs_at_toy_size_and_nothing_is_written():
    before = sorted(FOLDER.rglob("*.json"))
    done = check("--device", "cpu", "--toy")
    assert done.returncode == 0, done.stderr
    limits, *jobs = done.stdout.strip().splitlines()
    assert "float32" in limits
    assert "copy" in limits
    assert len(jobs) == 6
    assert "'agreement': 1.0" in jobs[0]
    assert "'worst_difference': 0.0" in jobs[1]
    assert sorted(FOLDER.rglob("*.json")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so():
    done = check()
    assert done.returncode == 1
    assert done.stderr.strip().startswith("no CUDA device here")
    assert "add --toy" in check("--device", "cpu").stderr
