"""Write a checkpoint from its scores, with the names, shapes and number formats of a template."""

import argparse
from pathlib import Path

from eigenloom.codes.weights import WeightBasis, read_scores, reconstruct
from eigenloom.errors import ConfigError
from eigenloom.sources.checkpoints import open_checkpoints
from tool import run_tool


def main(arguments: argparse.Namespace) -> None:
    """Read the scores, decode, write."""
    weights = WeightBasis.open(arguments.basis)
    scores, labels = read_scores(arguments.scores, weights)
    if not 0 <= arguments.row < len(scores):
        raise ConfigError(f"--row {arguments.row}: {arguments.scores} holds the scores of {len(scores)}, from 0 on")
    template = open_checkpoints(arguments.template)[0]
    reconstruct(weights, scores[arguments.row], arguments.out, template, arguments.k_used)
    n_used = weights.basis.n_elements if arguments.k_used is None else arguments.k_used
    print(f"{arguments.out}: {labels[arguments.row]} from {n_used} components")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--basis", required=True, type=Path, help="directory of the basis")
    parser.add_argument("--scores", required=True, type=Path, help="file of scores that compress_weights.py wrote")
    parser.add_argument("--row", type=int, default=0, help="which of its checkpoints, from 0 on (default: 0)")
    parser.add_argument("--template", required=True, type=Path, help="any checkpoint of the same model")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--k-used", type=int, help="leading components to use (default: all)")
    run_tool(main, parser)
