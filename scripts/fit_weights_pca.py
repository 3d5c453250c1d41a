"""Fit principal components to model checkpoints, each a row of weights; call it again to resume.

The output directory gets components.npy [D, k], mean.npy [D], arrays.safetensors, layout.json, errors.json, meta.json.
"""

import argparse
import time
from pathlib import Path

from eigenloom.bases.weights import fit_weights
from eigenloom.batches import resolve_device
from eigenloom.errors import ConfigError
from eigenloom.progress import Console
from eigenloom.sources.checkpoints import Checkpoints
from tool import run_tool


def main(arguments: argparse.Namespace) -> None:
    """Open, fit, write."""
    started, out = time.perf_counter(), arguments.out
    if (out / "meta.json").exists() and not arguments.overwrite:
        raise ConfigError(f"{out}: holds an artifact already; name another directory, or add --overwrite")
    checkpoints = Checkpoints(
        arguments.checkpoints, include=arguments.include, exclude=arguments.exclude, tied=arguments.tied,
        key=arguments.dataset_key, ledger=out / ".resume.digests",
    )  # fmt: skip
    n_components = min(64, checkpoints.n_rows - 1) if arguments.k is None else arguments.k
    spec = {"checkpoints": [str(path) for path in arguments.checkpoints], "seed": arguments.seed, "k": n_components}
    basis = fit_weights(
        checkpoints, out, seed=arguments.seed, device=resolve_device(arguments.device), progress=Console(), spec=spec,
        resume=out / ".resume.safetensors", run=lambda: {"seconds": round(time.perf_counter() - started, 3)},
        n_components=n_components, method=arguments.method, block_size=arguments.block_size,
        r_factor=arguments.r_factor, power_iter=arguments.power_iter,
    )  # fmt: skip
    share = float(basis.explained_variance.sum()) / basis.total_variance
    print(f"{out}: {checkpoints.n_rows} checkpoints of {checkpoints.n_features} numbers, {n_components} components by"
          f" {basis.method}, {100 * share:.2f} % of the variance")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, help="safetensors (or their index), .npy, .h5, .pt; patterns"
    )
    parser.add_argument("--out", required=True, type=Path, help="directory of the artifact")
    parser.add_argument("--k", type=int, help="components (default: 64, at most checkpoints - 1)")
    parser.add_argument(
        "--method", choices=("auto", "dual", "srht"), default="auto", help="dual is exact, and taken up to 1024 rows"
    )
    parser.add_argument("--include", nargs="*", default=[], help="patterns of tensor names to take (default: all)")
    parser.add_argument("--exclude", nargs="*", default=[], help="patterns of tensor names to leave out")
    parser.add_argument(
        "--tied", nargs="+", action="append", default=[], help="names with equal weights; may be repeated"
    )
    parser.add_argument("--dataset-key", help="matrix or group of samples inside HDF5 files")
    parser.add_argument("--block-size", type=int, default=1 << 18, help="columns read at a time, a power of two")
    parser.add_argument("--r-factor", type=float, default=4.0, help="width of the sketch, in components (srht)")
    parser.add_argument("--power-iter", type=int, default=1, help="rounds of refinement (srht)")
    parser.add_argument("--seed", type=int, default=0, help="of the sketch (srht)")
    parser.add_argument("--overwrite", action="store_true", help="replace an artifact that is there")
    run_tool(main, parser)
