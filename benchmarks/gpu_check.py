"""Measure the GPU paths beside the device's own limits: ``python benchmarks/gpu_check.py [--device cuda] [--toy]``.

Each row is work per second of one library call and its share of what the same device does in a bare product (float32,
no TF32; bfloat16 for the forward pass) or a bare copy. Results of the device are compared with those of the CPU on a
part of the rows. ``--toy`` runs the same code at sizes for a test. Needs a CUDA device otherwise; under ten minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, machine_facts

from eigenloom.bases.pca import PCA
from eigenloom.bases.sae import SparseAutoencoder
from eigenloom.codes.codings import coding_from
from eigenloom.codes.views import RowCodes
from eigenloom.linalg.assignment import Assigner
from eigenloom.linalg.fwht import fwht
from eigenloom.probes.fit import fit_probe
from eigenloom.sources.arrays import ArrayRows
from eigenloom.sources.extraction import BlockRecorder, VisionModel
from eigenloom.sources.preprocess import Preprocess

ROUNDS = 5
Row = dict[str, Any]


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the median of some rounds in seconds, the device idle before and after each."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    seconds = []
    for _ in range(ROUNDS):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[ROUNDS // 2]


def limits(device: torch.device, toy: bool) -> dict[str, float]:
    """Measure products in float32 and bfloat16 (operations per second) and a copy (bytes per second)."""
    n, n_bytes = (256, 1 << 20) if toy else (8192, 1 << 30)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * n**3 / timed(lambda a=a, b=b: a @ b, device)
    source = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    found["copy"] = 2 * n_bytes / timed(source.clone, device)
    return found


def assignment(device: torch.device, toy: bool) -> Row:
    """Nearest of 16,384 centres."""
    n, k, d = (2000, 64, 16) if toy else (1 << 19, 16_384, 1024)
    draw = torch.Generator().manual_seed(0)
    rows, centers = torch.randn(n, d, generator=draw), torch.randn(k, d, generator=draw)
    on, assigner = rows.to(device), Assigner(centers.to(device))
    seconds = timed(lambda: assigner(on), device)
    part = slice(0, min(n, 4096))
    same = (assigner(on[part]).labels.cpu() == Assigner(centers)(rows[part]).labels).double().mean()
    return row("k-means assignment", seconds, 2.0 * n * k * d, "float32", f"{n} x {d}, K = {k}", agreement=float(same))


def encoding(device: torch.device, toy: bool) -> Row:
    """Codes of a full PCA and their 64 largest entries."""
    n, d = (2000, 16) if toy else (1 << 19, 1024)
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    basis = PCA.fit(ArrayRows(rows[: 8 * d]), seed=0)
    k = min(64, d // 2)
    coding = coding_from({"kind": "topk", "k": k})
    batches = rows.to(device).split(1 << 15)
    seconds = timed(lambda: [coding.encode(basis, batch) for batch in batches], device)
    one, other = coding.encode(basis, batches[0][:512]).to_dense().cpu(), coding.encode(basis, rows[:512]).to_dense()
    worst = float((one - other).abs().max() / other.abs().max())
    return row("PCA codes, Top-K", seconds, 2.0 * n * d * d, "float32", f"{n} x {d}, K = {k}", worst_difference=worst)


def probing(device: torch.device, toy: bool) -> Row:
    """All probes of a dense coding, rows streamed through the basis."""
    n, d, n_classes = (3000, 16, 3) if toy else (1 << 18, 1024, 150)
    draw = torch.Generator().manual_seed(2)
    rows = torch.randn(n, d, generator=draw)
    labels = torch.randint(0, n_classes, (n,), generator=draw)
    rows[torch.arange(n), labels % d] += 1.0
    basis = PCA.fit(ArrayRows(rows[: 8 * d]), seed=0)
    half = n // 2

    def work(where: torch.device) -> Any:
        streams = [
            RowCodes(ArrayRows(part), basis, coding_from({"kind": "dense"}), device=where)
            for part in (rows[:half], rows[half:])
        ]
        names = [str(i) for i in range(n_classes)]
        return fit_probe(streams[0], labels[:half], streams[1], labels[half:], classes=names, device=str(where))

    seconds = timed(lambda: work(device), device)
    bins = 256.0 * d * n_classes
    facts = {"pairs_per_second": round(d * n_classes / seconds), "map": work(device).metrics.scalars["map"]}
    return row("probes, dense", seconds, bins, "none", f"{n} rows, {d} x {n_classes} pairs", **facts)


def autoencoder(device: torch.device, toy: bool) -> Row:
    """Steps of a Top-K sparse autoencoder."""
    n, d, k, steps = (2000, 16, 32, 20) if toy else (1 << 17, 1024, 8192, 100)
    rows = ArrayRows(torch.randn(n, d, generator=torch.Generator().manual_seed(3)))
    size = {"n_components": k, "n_active": min(64, k // 4), "steps": steps, "batch_size": min(4096, n // 2)}
    seconds = timed(lambda: SparseAutoencoder.fit(rows, seed=0, device=device, **size), device)
    work = 10.0 * steps * size["batch_size"] * k * d
    return row("sparse autoencoder", seconds, work, "float32", f"{steps} steps of {size['batch_size']} x {d}, k = {k}")


def hadamard(device: torch.device, toy: bool) -> Row:
    """Transforms of 2^20 numbers; the limit is a copy."""
    rows, length = (4, 1 << 10) if toy else (64, 1 << 20)
    x = torch.randn(rows, length, device=device)
    seconds = timed(lambda: fwht(x), device)
    return row("Hadamard transform", seconds, 2.0 * 4 * x.numel(), "copy", f"{rows} x {length}")


def forward(device: torch.device, toy: bool) -> Row:
    """Block outputs of a vision transformer of the size of ViT-L/16, random weights, through the recorder."""
    import transformers

    sizes = (32, 2, 2, 64) if toy else (1024, 24, 16, 4096)
    side, batch = (64, 4) if toy else (256, 64)
    width, depth, heads, inner = sizes
    config = transformers.DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=inner,
        image_size=side, patch_size=16, num_register_tokens=4,
    )  # fmt: skip
    n_tokens = (side // 16) ** 2 + 5
    model = VisionModel(transformers.DINOv3ViTModel(config), Preprocess(16, n_patches=n_tokens - 5), "dinov3_vit", "-")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    recorder = BlockRecorder(model, list(range(depth - 2, depth)), device, dtype)
    images = torch.randn(batch, 3, side, side)
    seconds = timed(lambda: recorder.record(images), device)
    work = batch * n_tokens * depth * (8.0 * width**2 + 4 * width * inner + 4 * n_tokens * width)
    return row("recording, ViT-L/16", seconds, work, dtype, f"{batch} images of {side}", per_second=batch / seconds)


def row(job: str, seconds: float, work: float, limit: str, size: str, **facts: Any) -> Row:
    """Gather one line; ``work`` in operations, or in bytes where the limit is a copy."""
    return {"job": job, "seconds": seconds, "rate": work / seconds, "limit": limit, "size": size, "facts": facts}


JOBS = (assignment, encoding, probing, autoencoder, hadamard, forward)


def main() -> None:
    """Measure, print, write ``results/gpu.json`` (not with ``--toy``)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu only with --toy")
    parser.add_argument("--toy", action="store_true", help="small sizes, nothing written")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "no CUDA device here: run this on the machine whose GPU is to be measured, or try `--device cpu --toy`"
        )
    if not arguments.device.startswith("cuda") and not arguments.toy:
        sys.exit(f"--device {arguments.device}: the full sizes are for GPUs; add --toy")
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(arguments.device)
    bounds = limits(device, arguments.toy)
    rows = [{**job(device, arguments.toy)} for job in JOBS]
    print(f"{machine_facts()['gpu']}: " + ", ".join(f"{name} {value / 1e12:.3g} T/s" for name, value in bounds.items()))
    for entry in rows:
        entry["share"] = entry["rate"] / bounds[entry["limit"]] if entry["limit"] in bounds else None
        share = "-" if entry["share"] is None else f"{entry['share']:.0%} of {entry['limit']}"
        print(f"{entry['job']:<22} {entry['seconds']:9.4f} s  {share:>16}  {entry['size']}  {entry['facts'] or ''}")
    if not arguments.toy:
        write(RESULTS / "gpu.json", bounds, rows)


def write(path: Path, bounds: dict[str, float], rows: list[Row]) -> None:
    """Keep the figures."""
    document = {"limits": bounds, "rows": rows, "facts": machine_facts()}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
