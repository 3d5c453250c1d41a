"""A disk that is full and a folder that is read-only give one sentence, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = {
    "seed": 0, "source": "s", "split": "fit_train", "n_examples": 300, "first": 0,
    "images": {"kind": "scenes", "canvas": 64, "patch": 8, "digits": [2, 4], "zooms": [2]},
}  # fmt: skip


@pytest.fixture
def mount(tmp_path):
    """Mount a small file system in memory; needs root."""
    place = tmp_path / "disk"
    place.mkdir()

    def with_options(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
        return place

    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    yield with_options
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def prepare(place):
    out = place / "artifacts/s/images/fit_train/meta.json"
    command = [sys.executable, str(ROOT / "scripts/prepare.py"), "--spec", json.dumps(SPEC), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(("options", "words"), [("size=1m", "no space left on the device"), ("ro", "is read-only")])
def test_one_sentence_and_nothing_half_written(mount, options, words):
    place = mount(options)
    done = prepare(place)
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("error: ")
    assert words in sentence
    assert [path for path in place.rglob("*") if path.is_file()] == []
