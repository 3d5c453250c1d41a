"""What the tools share that people call by hand: device, threads, and the exit rules of all scripts."""

import argparse
from collections.abc import Callable

import torch

from job import finish


def run_tool(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse, run ``main``, and exit: 0 done, 1 a sentence on stderr, 143 interrupted and saved."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, mps or auto (default: cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    finish(lambda: main(arguments))
