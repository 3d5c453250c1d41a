"""The command line of kernel PCA: a file in, one safetensors file out, a sentence when something is wrong."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from problems import decaying_rows

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.sources.arrays import ArrayRows

ROOT = Path(__file__).resolve().parents[2]
ROWS = decaying_rows(3000, 6, mean=1.0)


def start(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "scripts" / "precompute_kpca.py", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*words):
    with start(*words) as process:
        _, said = process.communicate()
    return process.returncode, said


def test_all_flags_fit_what_the_library_fits(tmp_path):
    with h5py.File(tmp_path / "spectra.h5", "w") as file:
        file["flux"] = ROWS.numpy()
    out = tmp_path / "kpca.safetensors"
    status, said = run(
        "--data", tmp_path / "spectra.h5", "--dataset-key", "flux", "--r", 5, "--landmarks", 64, "--kernel", "poly",
        "--gamma", 0.25, "--degree", 2, "--coef0", 0.5, "--seed", 7, "--out", out,
    )  # fmt: skip
    assert status == 0, said
    found = KernelPCA.load(out)
    assert (found.kernel, found.gamma, found.degree, found.coef0) == ("poly", 0.25, 2, 0.5)
    expected = KernelPCA.fit(
        ArrayRows(ROWS), seed=7, n_components=5, n_landmarks=64, kernel="poly", gamma=0.25, degree=2, coef0=0.5
    )
    assert (found.explained_variance / expected.explained_variance - 1).abs().max() < 1e-6
    assert '"landmark_residual"' in said  # the line of progress


def test_a_terminated_fit_is_resumed_by_the_same_command(tmp_path):
    np.save(tmp_path / "x.npy", decaying_rows(30_000, 128).numpy())
    out = tmp_path / "x.safetensors"
    words = ("--data", tmp_path / "x.npy", "--landmarks", 800, "--landmark-choice", "uniform", "--r", 8, "--out", out)
    with start(*words) as process:
        while process.poll() is None and not out.exists():
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except FileNotFoundError:
                break
            handled = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
            if handled >> (signal.SIGTERM - 1) & 1:
                process.send_signal(signal.SIGTERM)
                break
        _, said = process.communicate()
    assert process.returncode == 143, said
    assert "run the same command to resume" in said
    assert (tmp_path / ".x.safetensors.resume").exists()
    status, said = run(*words)
    assert (status, "resuming from" in said) == (0, True), said
    resumed = out.read_bytes()
    status, _ = run(*words)
    assert out.read_bytes() == resumed
    assert not (tmp_path / ".x.safetensors.resume").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "x.pt"], r"no pickles are written; type --out x\.safetensors"),
        (["--dataset-key", "flus"], r"`flus`.*flux.*volume"),
        (["--dataset-key", "volume"], r"`volume`.*\[2, 3, 4\]"),
        (["--landmarks", "4000"], "4000 landmarks cannot be drawn from 3000 rows; lower n_landmarks"),
        (["--r", "65"], r"n_components \(--r\): 65 is more than the 64 landmarks"),
        (["--gamma", "scale"], "--gamma: 'scale' is neither a number nor auto"),
        (["--data", "absent.npy"], r"absent\.npy: no such file"),
        (["--data", "nan.npy"], "row 17, feature 2 is NaN"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    with h5py.File("spectra.h5", "w") as file:
        file["flux"], file["volume"] = ROWS.numpy(), np.zeros((2, 3, 4))
    spoiled = ROWS.clone()
    spoiled[17, 2] = torch.nan
    np.save("nan.npy", spoiled.numpy())
    default = {"--data": "spectra.h5", "--landmarks": "64", "--r": "5", "--out": "x.safetensors"}
    flags = default | dict(zip(words[::2], words[1::2], strict=True))
    status, said = run(*(word for pair in flags.items() for word in pair))
    assert status == 1
    assert said.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said
    assert re.search(sentence, said.splitlines()[-1]), said
    assert not Path("x.safetensors").exists()
