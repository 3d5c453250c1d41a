"""Time peers side by side in one process and keep everything needed to believe the ratio.

Rules: peers alternate round by round, the order rotating; the clock is CPU seconds of the process (wall seconds
beside it); medians of the rounds, minimum and maximum; one warm-up per peer; quality in the same row; the
physical limit timed in the same rounds. A peer that is not installed is a row that says so.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PEER_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu", "superkmeans", "safetensors")

Work = Callable[[], Any]


def compare(
    job: str,
    peers: Mapping[str, Work | None],
    *,
    ours: str = "eigenloom",
    rounds: int = 5,
    settings: Mapping[str, Any] | None = None,
    quality: Callable[[Any], Mapping[str, Any]] = lambda result: {},
    limits: Mapping[str, Work] | None = None,
    target: str = "",
) -> dict[str, Any]:
    """Time ``peers`` (and ``limits``) interleaved and return one JSON-ready record.

    Args:
        job: what everyone does, equal for all.
        peers: name -> zero-argument callable, or None where it is not installed.
        ours: the peer whose time is the denominator; a ratio above 1 means ours is faster.
        rounds: how often each is timed, after one warm-up.
        settings: sizes, dtypes, stopping rules.
        quality: what a result is worth (error, inertia, ...), computed once per peer outside the clock.
        limits: name -> callable doing only the unavoidable work (a bare GEMM, a bare read).
        target: the aim for this row, in words.

    Returns:
        ``{"job", "target", "settings", "rows": [{"name", "role", "cpu_s", "wall_s", "ratio", "quality"}, ...],
        "facts"}``; the times are lists of all rounds.
    """
    runners = {name: work for name, work in {**peers, **(limits or {})}.items() if work is not None}
    worth = {name: dict(quality(work())) if name in peers else {} for name, work in runners.items()}
    cpu: dict[str, list[float]] = {name: [] for name in runners}
    wall: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    load_before = os.getloadavg()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            runners[name]()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    base = statistics.median(cpu[ours])
    rows = [
        {
            "name": name,
            "role": "ours" if name == ours else "peer" if name in peers else "limit",
            "cpu_s": cpu.get(name, []),
            "wall_s": wall.get(name, []),
            "ratio": statistics.median(cpu[name]) / base if name in cpu and base > 0 else None,
            "quality": worth.get(name, {}) if name in cpu else {"note": "not installed"},
        }
        for name in [*peers, *(limits or {})]
    ]
    facts = machine_facts() | {"load_before": load_before, "load_after": os.getloadavg()}
    return {"job": job, "target": target, "settings": dict(settings or {}), "rows": rows, "facts": facts}


def machine_facts() -> dict[str, Any]:
    """Describe what the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.partition(":")[::2] for line in cpuinfo.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    sets = sorted({flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {}
    for package in PEER_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instruction_sets": sets,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device",
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
    }


def write_results(name: str, records: list[dict[str, Any]], full: bool) -> Path:
    """Write ``benchmarks/results/<name>.json`` (or ``<name>-quick.json``) and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'' if full else '-quick'}.json"
    path.write_text(json.dumps({"name": name, "full": full, "records": records}, indent=1) + "\n", encoding="utf-8")
    return path
