"""Turn checkpoints into scores, k numbers each, by a basis that fit_weights_pca.py made."""

import argparse
from pathlib import Path

from eigenloom.codes.weights import WeightBasis, compress, write_scores
from tool import run_tool


def main(arguments: argparse.Namespace) -> None:
    """Open, project, write."""
    weights = WeightBasis.open(arguments.basis)
    checkpoints = weights.open_like(arguments.checkpoints, arguments.dataset_key)
    scores = compress(weights, checkpoints)
    write_scores(arguments.out, weights, scores, checkpoints.labels)
    print(f"{arguments.out}: {scores.shape[1]} scores of each of {scores.shape[0]} checkpoints")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, help="checkpoints of the model that the basis was fitted to"
    )
    parser.add_argument("--basis", required=True, type=Path, help="directory of the basis")
    parser.add_argument("--out", required=True, type=Path, help="file of scores to write, .safetensors")
    parser.add_argument("--dataset-key", help="matrix or group of samples inside HDF5 files")
    run_tool(main, parser)
