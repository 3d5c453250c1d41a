"""Principal component pursuit: a matrix as low rank plus sparse plus, if asked, noise, with a certificate.

Candes, Li, Ma & Wright, "Robust principal component analysis?" (2011); with the noise term Zhou, Li, Wright, Candes &
Ma, "Stable principal component pursuit" (2010). ``pcp_recursion`` has the formulas, ``pcp_solver`` the loop.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eigenloom.errors import ConfigError
from eigenloom.linalg.pcp_noise import noise_level
from eigenloom.linalg.pcp_problem import Problem
from eigenloom.linalg.pcp_solver import NAMES, Settings, Solution, decompose
from eigenloom.linalg.pcp_store import Checkpoint, InMemory, NpyRows, OnDisk, Panel

DTYPES = {"float32": torch.float32, "float64": torch.float64}
TOLERANCES = {"float32": 1e-6, "float64": 1e-7}


def pcp(
    X: Any,
    lambda_: float | None = None,
    mu: float | None = None,
    tol: float | None = None,
    max_iter: int = 1000,
    svd: str = "randomized",
    rank_guess: int = 50,
    oversampling: int = 10,
    power_iter: int = 2,
    dtype: str = "float32",
    verbose: bool = True,
    *,
    mask: Any = None,
    weights: Any = None,
    noise_std: Any = 0,
    gap_tol: float = 1e-3,
    max_rank: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    seed: int = 0,
) -> tuple[Any, Any, dict[str, Any]]:
    """Split ``X [n, m]`` into low rank L plus sparse S, and noise where there is some.

    Minimises ``||L||_* + lambda ||S||_1 + sum N^2 / (2 v)`` with ``X = L + S + N`` and
    ``v = sigma^2 / sigma_rms (sqrt n + sqrt m)`` for the standard deviation sigma of each entry's noise; ``v = 0``
    leaves no N. Memory: X, one more array of its size, and factors; with ``out`` blocks of rows and factors only.
    Per iteration, as a rule, three products of the matrix with a thin one in two walks over it.

    Args:
        X: array, tensor (its device is used), memory map, or anything of shape ``[n, m]`` that slices into arrays.
        lambda_: weight of the sparse part; None for ``1/sqrt(max(n, m))``.
        mu: first penalty; None for ``1.25 / sigma_1``.
        tol: largest ``||X - L - S - N|| / ||X||`` to stop at; None for 1e-6 in float32 and 1e-7 in float64.
        max_iter: most iterations.
        svd: ``randomized``, a subspace carried from iteration to iteration; ``gram``; ``full``, X in memory.
        rank_guess: columns the subspace starts with, ``oversampling`` more; it grows as needed.
        oversampling: see ``rank_guess``.
        power_iter: most refinements of the subspace in one iteration.
        dtype: ``float32`` or ``float64``, of the computation and of L and S.
        verbose: a bar where there is a terminal.
        mask: ``[n, m]``, true where X is observed; elsewhere X is not looked at and S is 0.
        weights: ``[n, m]``, inverse variances; an entry is unobserved where its weight is 0 or X is NaN.
        noise_std: 0 for none; a number; ``[n, m]``; or ``auto``, measured (see ``pcp_noise``).
        gap_tol: largest relative duality gap that counts as solved.
        max_rank: most singular values kept.
        out: folder in which ``L.npy`` and ``S.npy`` are written; the iteration then runs out of core.
        resume: folder for unfinished work, the array included; the same call resumes it.
        seed: of every random start.

    Returns:
        L and S, of X's shape and kind (memory maps with ``out``), and a dictionary: per iteration ``primal_resid``,
        ``dual_resid`` (``mu ||change of S + N|| / ||Y||``), ``rank``, ``nnz`` and ``mu``; ``gap_history``, pairs of
        iteration and relative duality gap; ``iters``, ``gap`` (the last), ``status``, ``sigma1``, ``lambda_``,
        ``noise_std``, ``seed``. Status is ``converged`` only where the gap proves it; else ``uncertified`` (feasible,
        three times not optimal), ``max_iter``, or ``rank_capped`` (``max_rank`` was in the way).

    Raises:
        DataError: not a matrix of finite numbers where it is observed, or companions that do not fit it.
        ConfigError: a parameter that means nothing.
        StoreError: the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r} is unknown; use {' or '.join(DTYPES)}")
    tol = TOLERANCES[dtype] if tol is None else tol
    settings = Settings(mu, tol, max_iter, svd, rank_guess, oversampling, power_iter, gap_tol, max_rank, seed)
    problem = Problem(X, mask=mask, weights=weights, noise_std=noise_std, dtype=DTYPES[dtype], lambda_=lambda_)
    problem.measure()
    if problem.automatic:
        problem.noise = noise_level(problem, rank_guess, seed)
    panel, checkpoint = _state(problem, settings, out, resume)
    done = False
    try:
        with tqdm(desc="pcp", unit="iteration", disable=not (verbose and sys.stderr.isatty())) as bar:

            def report(step: int, line: dict[str, float]) -> None:
                """Move the bar."""
                bar.update()
                bar.set_postfix(rank=int(line["rank"]), residual=f"{line['primal_resid']:.1e}", refresh=False)

            solution = decompose(problem, settings, panel, checkpoint, report)
        low_rank, sparse = _parts(solution, X, None if out is None else Path(out))
        done = True
    finally:
        panel.close(done)
    return low_rank, sparse, _history(solution, problem, settings)


def _state(
    problem: Problem, settings: Settings, out: str | Path | None, resume: str | Path | None
) -> tuple[Panel, Checkpoint | None]:
    """Return where the dense array is kept and what carries unfinished work."""
    folder = Path(resume) if resume is not None else Path(out) / ".pcp" if out is not None else None
    if folder is None:
        return InMemory(problem.shape, problem.dtype, problem.device), None
    if problem.device.type != "cpu":
        raise ConfigError("out and resume keep an array in files, which is for matrices on the CPU; move X there")
    identity = {"settings": vars(settings), "shape": list(problem.shape), "norm": problem.norm}
    identity |= {"largest": problem.largest, "lambda_": problem.lambda_, "noise": problem.noise, "scale": problem.scale}
    identity |= {"dtype": str(problem.dtype), "observed": problem.n_observed}
    disk = OnDisk(folder, problem.shape, problem.dtype, problem.block_rows, identity)
    return disk, None if resume is None else disk


def _parts(solution: Solution, X: Any, out: Path | None) -> tuple[Any, Any]:
    """Return L and S as X came: tensors, arrays, or memory maps of the files written."""
    problem, panel = solution.recursion.problem, solution.recursion.panel
    if out is not None:
        form = (problem.shape, problem.dtype, problem.transposed)
        with NpyRows(out / "L.npy", *form) as low_file, NpyRows(out / "S.npy", *form) as sparse_file:
            for _, low, sparse in solution.recursion.parts(solution.low_rank):
                low_file.append(low)
                sparse_file.append(sparse)
        return np.load(out / "L.npy", mmap_mode="r"), np.load(out / "S.npy", mmap_mode="r")
    low_rank = torch.empty(problem.shape, dtype=problem.dtype, device=problem.device)
    # T is not needed any more, so that S can take its place.
    sparse_part = panel.whole if isinstance(panel, InMemory) else torch.empty_like(low_rank)
    for rows, low, sparse in solution.recursion.parts(solution.low_rank):
        low_rank[rows], sparse_part[rows] = low, sparse
    if problem.transposed:
        low_rank, sparse_part = low_rank.T, sparse_part.T
    return (low_rank, sparse_part) if isinstance(X, Tensor) else (low_rank.numpy(), sparse_part.numpy())


def _history(solution: Solution, problem: Problem, settings: Settings) -> dict[str, Any]:
    """Return the dictionary that ``pcp`` promises."""
    course = solution.course
    columns = zip(*course.lines, strict=True) if course.lines else ([] for _ in NAMES)
    hist: dict[str, Any] = {name: list(column) for name, column in zip(NAMES, columns, strict=True)}
    hist["rank"], hist["nnz"] = ([int(value) for value in hist[name]] for name in ("rank", "nnz"))
    return hist | {
        "iters": len(course.lines),
        "gap": course.gaps[-1][1],
        "gap_history": [(int(step), gap) for step, gap in course.gaps],
        "status": course.status,
        "sigma1": course.sigma1,
        "lambda_": problem.lambda_,
        "noise_std": problem.noise,
        "seed": settings.seed,
    }
