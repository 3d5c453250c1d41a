"""Say what an experiment would cost: ``python scripts/estimate.py [CONFIG] [--core-gflops N] ...``; runs nothing."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))

from eigenloom.errors import EigenloomError
from experiments import load
from scale import Machine
from scale_table import described


def main() -> None:
    """Print the table."""
    usual = Machine()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=Path("config.yaml"))
    parser.add_argument("--core-gflops", type=float, default=usual.core_flops / 1e9, help="float32 products, one core")
    parser.add_argument("--gpu-gflops", type=float, default=usual.gpu_flops / 1e9, help="float32 products, one GPU")
    parser.add_argument("--core-msteps", type=float, default=usual.core_steps / 1e6, help="histogram counts, one core")
    parser.add_argument("--gpu-msteps", type=float, default=usual.gpu_steps / 1e6, help="histogram counts, one GPU")
    parser.add_argument("--disk-gb", type=float, default=usual.disk / 1e9, help="gigabytes per second, one job")
    parser.add_argument("--start", type=float, default=usual.start, help="seconds until a job works")
    a = parser.parse_args()
    machine = Machine(
        a.core_gflops * 1e9, a.gpu_gflops * 1e9, a.core_msteps * 1e6, a.gpu_msteps * 1e6, a.disk_gb * 1e9, a.start
    )
    print(described(a.config, load(a.config), machine))


if __name__ == "__main__":
    try:
        main()
    except EigenloomError as error:
        sys.exit(f"error: {error}")
