"""Principal components of checkpoints on disk: time beside reading them twice and writing W, memory, and a resumed fit.

Every fit runs in a process of its own, whose peak of resident memory is taken. ``--full`` writes 32 checkpoints of the
size of DistilBERT, 8.5 GB, into the folder for temporary files, and 4.2 GB of components beside them.
"""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import machine_facts

from eigenloom.provenance import file_digest
from eigenloom.store.atomic import read_json

ROOT = Path(__file__).resolve().parents[1]
N_DIRECTIONS = 8
READ_BYTES = 1 << 22
PIECE = 1 << 18


def run(full: bool) -> list[dict[str, Any]]:
    """Write the checkpoints, fit, stop and resume, read and write for comparison."""
    n, k, shapes = (32, 16, transformer_shapes(6, 768, 30_522)) if full else (16, 8, transformer_shapes(2, 64, 2_000))
    n_features = sum(rows * columns for rows, columns in shapes.values())
    with TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write_checkpoints(root / "checkpoints", n, shapes)
        rows = [timed_fit(root / "whole", paths, k), timed_stop(root / "stopped", paths, k, root / "whole")]
        rows.append(timed_limit(root, paths, 4 * n_features * (k + 1)))
    base = rows[0]["cpu_s"][0]
    settings = {"n": n, "D": n_features, "k": k, "dtype": "float32", "bytes": 4 * n * n_features}
    return [
        {
            "job": "checkpoints on disk, fitted by the exact dual Gram",
            "target": "under 4 GB resident; wall time within 1.5x of the limit",
            "settings": settings,
            "rows": [{**row, "ratio": row["cpu_s"][0] / base} for row in rows],
            "facts": machine_facts() | {"load_before": os.getloadavg()},
        }
    ]


def transformer_shapes(n_layers: int, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
    """Shapes of an encoder with learned positions, biases as rows of one."""
    shapes = {"embeddings.word": (vocabulary, width), "embeddings.position": (512, width)}
    for i in range(n_layers):
        for name in ("q", "k", "v", "out"):
            shapes |= {f"layer.{i}.{name}.weight": (width, width), f"layer.{i}.{name}.bias": (1, width)}
        shapes |= {f"layer.{i}.fc1.weight": (4 * width, width), f"layer.{i}.fc1.bias": (1, 4 * width)}
        shapes |= {f"layer.{i}.fc2.weight": (width, 4 * width), f"layer.{i}.fc2.bias": (1, width)}
        shapes |= {f"layer.{i}.norm{j}.{part}": (1, width) for j in (1, 2) for part in ("weight", "bias")}
    return shapes


def write_checkpoints(folder: Path, n: int, shapes: Mapping[str, tuple[int, int]]) -> list[Path]:
    """Write ``n`` files piece by piece: weights of size .04 that differ by eight directions and by noise of .001."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    paths = [folder / f"step-{i:03d}.safetensors" for i in range(n)]
    files = [path.open("wb") for path in paths]
    for file in files:
        file.write(struct.pack("<Q", len(text)) + text)
    source = torch.Generator().manual_seed(0)
    scores = 1e-3 * torch.randn(n, N_DIRECTIONS, generator=source)
    for start in range(0, end // 4, PIECE):
        width = min(PIECE, end // 4 - start)
        block = 0.04 * torch.randn(width, generator=source) + scores @ torch.randn(
            N_DIRECTIONS, width, generator=source
        )
        block += 1e-3 * torch.randn(n, width, generator=source)
        for file, row in zip(files, block, strict=True):
            file.write(row.numpy().data)
    for file in files:
        file.close()
    return paths


def fit_command(out: Path, paths: list[Path], k: int) -> list[str]:
    """The tool that people call, on one thread."""
    script = str(ROOT / "scripts" / "fit_weights_pca.py")
    threads = str(torch.get_num_threads())
    return [sys.executable, script, *map(str, paths), "--out", str(out), "--k", str(k), "--threads", threads]


def timed_fit(out: Path, paths: list[Path], k: int) -> dict[str, Any]:
    """Fit in a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(fit_command(out, paths, k), check=True, env=environment(), capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = read_json(out / "meta.json")["parameters"]
    records = read_json(out / "errors.json")["samples"]
    left = sum(record["rel_centred"] ** 2 for record in records) / len(records)
    quality = {
        "peak_mb": after.ru_maxrss // 1024,
        "orthonormality_error": float(f"{facts['orthonormality_error']:.2g}"),
        "nmse_centred": float(f"{left:.4g}"),
    }
    return {
        "name": "eigenloom",
        "role": "ours",
        "cpu_s": [cpu(after) - cpu(before)],
        "wall_s": [wall],
        "quality": quality,
    }


def timed_stop(out: Path, paths: list[Path], k: int, whole: Path) -> dict[str, Any]:
    """Stop the same fit by SIGTERM while it writes components, and run the command again."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(fit_command(out, paths, k), env=environment(), stderr=subprocess.PIPE)
    partial = out / ".components.npy.partial"
    wanted = (whole / "components.npy").stat().st_size // 2
    while process.poll() is None and not (partial.exists() and partial.stat().st_size > wanted):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    stopped = process.returncode
    subprocess.run(fit_command(out, paths, k), check=True, env=environment(), capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    digests = [file_digest(folder / "components.npy") for folder in (whole, out)]
    quality = {"exit_status": stopped, "same_bytes": digests[0] == digests[1]}
    row = {"cpu_s": [cpu(after) - cpu(before)], "wall_s": [wall], "quality": quality}
    return {"name": "eigenloom, stopped and resumed", "role": "ours", **row}


def timed_limit(root: Path, paths: list[Path], n_bytes: int) -> dict[str, Any]:
    """Read every file twice and write as many bytes as components and mean have."""
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(2):
        for path in paths:
            for _ in pieces(path):
                pass
    block = bytes(READ_BYTES)
    with (root / "written").open("wb") as file:
        for start in range(0, n_bytes, READ_BYTES):
            file.write(block[: n_bytes - start])
        file.flush()
        os.fsync(file.fileno())
    wall, used = time.perf_counter() - started, time.process_time() - cpu_started
    return {"name": "read twice, write W", "role": "limit", "cpu_s": [used], "wall_s": [wall], "quality": {}}


def pieces(path: Path) -> Iterator[memoryview]:
    """Read a file into one buffer."""
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            yield buffer[:n]


def cpu(usage: resource.struct_rusage) -> float:
    """CPU seconds of a usage."""
    return usage.ru_utime + usage.ru_stime


def environment() -> dict[str, str]:
    """The library of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
