"""Kernel PCA of a survey in HDF5 that no memory should hold: time beside its bare arithmetic, memory, a resumed fit.

Every fit is the command that people call, in a process of its own on all cores, whose peak of resident memory is taken.
``--full`` writes 100,000 spectra of 4096 pixels, 1.6 GB, into the folder for temporary files.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import torch
from harness import machine_facts

from eigenloom.provenance import file_digest
from eigenloom.sources.simulated_spectra import SurveyStyle, blocks

ROOT = Path(__file__).resolve().parents[1]
KEY = "dataset/arrays/flux/value"
COMPONENTS, SEED = 64, 0
ROWS = 2048


def run(full: bool) -> list[dict[str, Any]]:
    """Write the survey, fit, stop and resume, and time the products alone."""
    n, d, m = (100_000, 4096, 2048) if full else (8_000, 512, 256)
    threads = os.cpu_count() or 1
    with TemporaryDirectory(prefix="eigenloom-bench-") as folder:
        root = Path(folder)
        write_flux(root / "survey.h5", n, d)
        rows = [timed_fit(root, m, threads)]
        rows.append(timed_stop(root, m, threads, rows[0]["wall_s"][0] / 2))
        rows.append(timed_limit(root / "survey.h5", m, threads))
    base = rows[0]["wall_s"][0]
    return [
        {
            "job": "kernel PCA of a survey on disk, wall time on all cores",
            "target": "full: under 180 s; under 1.5 GB above the landmarks",
            "settings": {"n": n, "d": d, "landmarks": m, "r": COMPONENTS, "threads": threads, "MB": 4 * n * d // 10**6},
            "rows": [{**row, "ratio": row["wall_s"][0] / base} for row in rows],
            "facts": machine_facts() | {"threads": threads, "load_before": os.getloadavg()},
        }
    ]


def write_flux(path: Path, n: int, d: int) -> None:
    """Write the flux of simulated stars, block by block, in the layout that surveys use."""
    style = SurveyStyle(n_pixels=d)
    with h5py.File(path, "w") as file:
        flux = file.create_dataset(KEY, (n, d), "<f4")
        for first, stars in blocks(style, SEED, n):
            flux[first : first + len(stars.flux)] = stars.flux


def command(root: Path, out: str, landmarks: int) -> list[str]:
    """The script, as a user types it."""
    words = ["--data", str(root / "survey.h5"), "--dataset-key", KEY, "--out", str(root / out)]
    words += ["--landmarks", str(landmarks), "--r", str(COMPONENTS)]
    return [sys.executable, str(ROOT / "scripts/precompute_kpca.py"), *words]


def environment(threads: int) -> dict[str, str]:
    """The library of this checkout, on so many threads."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")} | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )


def measured(words: list[str], threads: int, stop_after: float | None = None) -> tuple[int, float, float, int]:
    """Run a command, ended by SIGTERM after some seconds: exit status, CPU and wall seconds, peak in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(words, env=environment(threads), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if stop_after is not None:
        time.sleep(stop_after)
        process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return process.returncode, cpu, time.perf_counter() - started, usage.ru_maxrss // 1024


def timed_fit(root: Path, landmarks: int, threads: int) -> dict[str, Any]:
    """Fit without a stop."""
    status, cpu, wall, peak = measured(command(root, "whole.safetensors", landmarks), threads)
    assert status == 0, status
    imports = measured([sys.executable, "-c", "import eigenloom.bases.kernel_pca, h5py"], threads)[3]
    quality = {"wall_s": round(wall, 1), "peak_mb": peak, "of_these_imports_mb": imports}
    return {"name": "eigenloom", "role": "ours", "cpu_s": [cpu], "wall_s": [wall], "quality": quality}


def timed_stop(root: Path, landmarks: int, threads: int, stop_after: float) -> dict[str, Any]:
    """Stop the same fit by SIGTERM on its way, then run it again."""
    words = command(root, "stopped.safetensors", landmarks)
    stopped, cpu, wall, peak = measured(words, threads, stop_after)
    status, more, longer, again = measured(words, threads)
    assert status == 0, status
    digests = {file_digest(root / f"{name}.safetensors") for name in ("whole", "stopped")}
    quality = {"wall_s": round(wall + longer, 1), "peak_mb": max(peak, again)}
    quality |= {"exit_status": stopped, "same_bytes": len(digests) == 1}
    return {
        "name": "eigenloom, stopped and resumed",
        "role": "ours",
        "cpu_s": [cpu + more],
        "wall_s": [wall + longer],
        "quality": quality,
    }


def timed_limit(path: Path, landmarks: int, threads: int) -> dict[str, Any]:
    """Read the rows once, take kernel rows and their covariance; nothing else."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    started, cpu = time.perf_counter(), time.process_time()
    with h5py.File(path) as file:
        flux = file[KEY]
        chosen = torch.from_numpy(flux[:landmarks])
        norms = chosen.square().sum(1)
        covariance = torch.zeros(landmarks, landmarks)
        for start in range(0, len(flux), ROWS):
            rows = torch.from_numpy(flux[start : start + ROWS])
            kernel = torch.addmm(norms, rows, chosen.T, alpha=-2).add_(rows.square().sum(1, keepdim=True)).neg_().exp_()
            covariance.addmm_(kernel.T, kernel)
        torch.linalg.eigh(covariance)
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    torch.set_num_threads(before)
    name = "one reading, kernel and covariance products, exp, eigh"
    return {"name": name, "role": "limit", "cpu_s": [used], "wall_s": [wall], "quality": {"wall_s": round(wall, 1)}}
