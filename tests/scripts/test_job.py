"""What every script shares: arguments, provenance, and how it ends."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = '''
"""A script."""

import json
import sys

sys.path.insert(0, {scripts!r})
from job import Job, run

from eigenloom.errors import DataError, Interrupted


def main(job: Job) -> None:
    if job.spec["end"] == "sentence":
        raise DataError("row 3 is NaN")
    if job.spec["end"] == "interrupted":
        raise Interrupted("stopped by SIGTERM")
    if job.spec["end"] == "defect":
        raise KeyError("ours")
    print(json.dumps([job.inputs, str(job.snapshot), "parts" in job, job.facts(rows=2)["rows"], job.threads]))


run(main, "store", "parts")
'''


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(scripts=str(ROOT / "scripts")))
    (tmp_path / "store.json").write_text("{}")

    def call(end, *words):
        command = [sys.executable, "script.py", "--spec", json.dumps({"end": end}), *words]
        environment = {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def test_inputs_snapshot_and_facts(script):
    done = script("well", "--out", "artifacts/s/bases/a/layer-01/meta.json", "--store", "store.json", "--threads", "2")
    inputs, snapshot, has_parts, rows, threads = json.loads(done.stdout)
    assert inputs == {"store.json": hashlib.sha256(b"{}").hexdigest()}
    assert snapshot == "artifacts/.resume/s/bases/a/layer-01/meta.safetensors"
    assert (has_parts, rows, threads) == (False, 2, 2)


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [("sentence", 1, "error: row 3 is NaN"), ("interrupted", 143, "stopped by SIGTERM"), ("defect", 1, "Traceback")],
)
def test_how_it_ends(script, end, status, words):
    done = script(end, "--out", "artifacts/x/meta.json")
    assert done.returncode == status
    assert words in done.stderr
    assert ("Traceback" in done.stderr) == (end == "defect")


def test_a_missing_input_is_a_sentence(script):
    done = script("well", "--out", "artifacts/x/meta.json", "--store", "absent.json")
    assert done.returncode == 1
    assert "error: absent.json: no such file; run the rule that makes it" in done.stderr
