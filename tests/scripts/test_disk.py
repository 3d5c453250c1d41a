"""A disk that is full and a folder that is read-only give one sentence, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey

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


def test_a_disk_too_small_for_a_denoised_survey(mount, tmp_path):
    write_survey(tmp_path / "survey.h5", SurveyStyle(n_pixels=128), 0, 300)
    place = mount("size=400k")
    out = place / "artifacts/s/denoised/meta.json"
    spec = {
        "seed": 0, "source": "s", "bad_pixels": "refuse", "denoise": {},
        "spectra": {"kind": "hdf5", "path": str(tmp_path / "survey.h5")},
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts/denoise.py"), "--spec", json.dumps(spec), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no space left on the device" in sentence.lower()
    assert "Traceback" not in done.stderr
    assert [path for path in out.parent.rglob("*") if path.is_file()] == []
