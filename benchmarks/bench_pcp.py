"""Principal component pursuit beside its textbook and published alternatives, and its memory out of core.

The peers are written here from their papers' formulas: the augmented Lagrangian with full decompositions (Lin, Chen &
Ma 2010) as published, with a penalty that always grows; the alternating directions with a fixed penalty of Candes, Li,
Ma & Wright (2011, section 5); accelerated alternating projections (Cai, Cai & Wei 2019), which is told the rank.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from harness import compare, machine_facts
from torch import Tensor

from eigenloom.linalg.pcp import pcp

RANK, SHARE, CARRIED, MAX_ITER = 10, 0.05, 15, 300


def run(full: bool) -> list[dict[str, Any]]:
    """Compare solvers on a planted split, then memory on one that lies on disk."""
    shape, large = ((2000, 500), (20_000, 2048)) if full else ((600, 200), (4000, 512))
    return [compare_solvers(*shape), measure_memory(*large)]


def planted(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Return ``X [n, m]`` float32 of rank 10 with 5 % of its entries hit, and its low-rank part."""
    source = torch.Generator().manual_seed(0)
    low_rank = torch.randn(n, RANK, generator=source) @ torch.randn(m, RANK, generator=source).T
    hit = torch.rand(n, m, generator=source) < SHARE
    return low_rank + torch.where(hit, 10 * torch.rand(n, m, generator=source) - 5, 0.0), low_rank


def compare_solvers(n: int, m: int) -> dict[str, Any]:
    """Everybody on the same matrix in memory, float32, stopping at a residual of 1e-6 of its norm."""
    X, low_rank = planted(n, m)
    lam = 1 / math.sqrt(max(n, m))

    def ours(svd: str) -> tuple[Tensor, dict[str, Any]]:
        L, _, hist = pcp(X, svd=svd, rank_guess=20, verbose=False)
        return L, {"iterations": hist["iters"], "status": hist["status"], "gap": hist["gap"]}

    def quality(result: tuple[Tensor, Mapping[str, Any]]) -> dict[str, Any]:
        """Error of the low-rank part, relative."""
        L, facts = result
        return {"error": float(f"{(L - low_rank).norm() / low_rank.norm():.2g}"), **facts}

    iterations = ours("randomized")[1]["iterations"]
    return compare(
        "planted split",
        {
            "eigenloom": lambda: ours("randomized"),
            "eigenloom, Gram matrices": lambda: ours("gram"),
            "eigenloom, full SVD": lambda: ours("full"),
            "ALM, full SVD, always growing": lambda: always_growing(X, lam),
            "ADMM, full SVD, fixed penalty": lambda: fixed_penalty(X, lam),
            "AccAltProj, told the rank": lambda: projections(X, RANK),
        },
        settings={"n": n, "m": m, "rank": RANK, "hit": SHARE, "dtype": "float32", "tol": 1e-6},
        quality=quality,
        rounds=1 if n > 1000 else 5,  # the full decompositions take minutes
        limits={"4 thin products and 5 walks an iteration": lambda: bare_work(X, iterations)},
        target="6x full SVD of the same schedule; near AccAltProj",
    )


def shrink(values: Tensor, bound: float) -> Tensor:
    """Soft thresholding."""
    return values - values.clamp(-bound, bound)


def thresholded(matrix: Tensor, bound: float) -> Tensor:
    """Singular value thresholding by a full decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = shrink(values, bound)
    rank = int((values > 0).sum())
    return left[:, :rank] * values[:rank] @ right[:rank]


def always_growing(X: Tensor, lam: float, tol: float = 1e-6) -> tuple[Tensor, dict[str, Any]]:
    """Inexact augmented Lagrangian, the penalty 1.5 times larger at every iteration."""
    sigma1 = float(torch.linalg.matrix_norm(X, 2))
    mu, Y, S = 1.25 / sigma1, X / max(sigma1, float(X.abs().max()) / lam), torch.zeros_like(X)
    iterations, rest = 0, X
    while iterations < MAX_ITER and rest.norm() > tol * X.norm():
        L = thresholded(X - S + Y / mu, 1 / mu)
        S = shrink(X - L + Y / mu, lam / mu)
        rest = X - L - S
        Y, mu = Y + mu * rest, 1.5 * mu
        iterations += 1
    return L, {"iterations": iterations}


def fixed_penalty(X: Tensor, lam: float, tol: float = 1e-6) -> tuple[Tensor, dict[str, Any]]:
    """Alternating directions with ``mu = n m / (4 ||X||_1)``."""
    mu = X.numel() / (4 * float(X.abs().sum()))
    Y, S = torch.zeros_like(X), torch.zeros_like(X)
    iterations, rest = 0, X
    while iterations < MAX_ITER and rest.norm() > tol * X.norm():
        L = thresholded(X - S + Y / mu, 1 / mu)
        S = shrink(X - L + Y / mu, lam / mu)
        rest = X - L - S
        Y = Y + mu * rest
        iterations += 1
    return L, {"iterations": iterations}


def projections(X: Tensor, rank: int, tol: float = 1e-6) -> tuple[Tensor, dict[str, Any]]:
    """Alternating projections in tangent spaces, hard thresholds that fall by .5 with each iteration."""
    beta = 1 / (2 * X.numel() ** 0.25)

    def hard(values: Tensor, bound: float) -> Tensor:
        return torch.where(values.abs() > bound, values, 0.0)

    S = hard(X, 4 * beta * leading(X, 1)[1].item())
    left, values, right = leading(X - S, rank)
    largest = float(values[0])
    L = left * values @ right
    S = hard(X - L, beta * largest)
    iterations = 0
    while iterations < MAX_ITER and (X - L - S).norm() > tol * X.norm():
        iterations += 1
        rest = X - S
        across, down = rest @ right.T, rest.T @ left
        core = left.T @ across
        q_right, r_right = torch.linalg.qr(down - right.T @ core.T)
        q_left, r_left = torch.linalg.qr(across - left @ core)
        block = torch.cat([torch.cat([core, r_right.T], 1), torch.cat([r_left, torch.zeros_like(core)], 1)])
        u, values, vt = torch.linalg.svd(block)
        left = torch.cat([left, q_left], 1) @ u[:, :rank]
        right = vt[:rank] @ torch.cat([right.T, q_right], 1).T
        L = left * values[:rank] @ right
        S = hard(X - L, beta * float(values[rank] + 0.5**iterations * values[0]))
    return L, {"iterations": iterations}


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def bare_work(X: Tensor, iterations: int) -> None:
    """Only what an iteration cannot do without."""
    thin, tall, other = torch.randn(X.shape[1], CARRIED), torch.empty(len(X), CARRIED), torch.empty_like(X)
    for _ in range(iterations):
        for _ in range(2):
            torch.mm(X, thin, out=tall)
            torch.mm(X.T, tall)
        for _ in range(5):
            torch.add(X, 1.0, out=other)


def measure_memory(n: int, m: int) -> dict[str, Any]:
    """Each way in a process of its own: peak resident memory beyond the interpreter, in matrices."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="eigenloom-bench-") as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__, str(n), str(m), folder]
        subprocess.run([*command, "write"], env=environment, check=True)
        for name, role in (("out of core", "ours"), ("in memory", "peer")):
            done = subprocess.run([*command, name], env=environment, check=True, capture_output=True, text=True)
            rows.append({"name": f"eigenloom, {name}", "role": role, **json.loads(done.stdout.splitlines()[-1])})
    base = rows[0]["cpu_s"][0]
    rows = [{**row, "ratio": row["cpu_s"][0] / base} for row in rows]
    return {
        "job": "memory",
        "target": "out of core at most 2.5 matrices",
        "settings": {"n": n, "m": m, "rank": RANK, "hit": SHARE, "dtype": "float32", "MB": round(n * m * 4e-6)},
        "rows": rows,
        "facts": machine_facts() | {"load_before": os.getloadavg(), "load_after": os.getloadavg()},
    }


def child(n: int, m: int, folder: Path, way: str) -> None:
    """Write the matrix, or solve and print what it took."""
    import time

    import numpy as np

    path = folder / "X.npy"
    if way == "write":
        np.save(path, planted(n, m)[0].numpy())
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pcp(torch.randn(300, 100), verbose=False, max_iter=3)
    before = peak_bytes()
    where = {"out": folder / "out"} if way == "out of core" else {}
    X = np.load(path, mmap_mode="r" if where else None)
    started, cpu = time.perf_counter(), time.process_time()
    _, _, hist = pcp(X, rank_guess=20, verbose=False, **where)
    times = {"cpu_s": [time.process_time() - cpu], "wall_s": [time.perf_counter() - started]}
    peak = (peak_bytes() - before) / (n * m * 4)
    facts = {"peak_matrices": round(peak, 2), "iterations": hist["iters"], "status": hist["status"], "gap": hist["gap"]}
    print(json.dumps({**times, "quality": facts}))


def peak_bytes() -> int:
    """Peak resident memory of this process; getrusage would begin with what its parent had at the fork."""
    return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
