"""Run every benchmark: ``python benchmarks/run.py [--full] [NAME ...]``; print ratios, write JSON results.

Each ``bench_NAME.py`` beside this file offers ``run(full) -> list of records`` (see ``harness.compare``).
"""

import argparse
import importlib
import statistics
from pathlib import Path
from typing import Any

import torch
from harness import write_results


def main() -> None:
    """Parse, run, print."""
    names = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(names)}")
    parser.add_argument("--full", action="store_true", help="the shapes of the documentation; minutes to an hour")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; set OMP_NUM_THREADS to match")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or names:
        records = importlib.import_module(f"bench_{name}").run(arguments.full)
        path = write_results(name, records, arguments.full)
        print(f"\n# {name} -> {path}")
        for record in records:
            print_record(record)


def print_record(record: dict[str, Any]) -> None:
    """Print one job as a small table."""
    print(f"\n{record['job']}  {record['settings']}  target: {record['target'] or '-'}")
    for row in record["rows"]:
        if not row["cpu_s"]:
            print(f"  {row['name']:<28} {row['quality'].get('note', '')}")
            continue
        seconds, wall = statistics.median(row["cpu_s"]), statistics.median(row["wall_s"])
        ratio = f"{row['ratio']:.2f}x" if row["ratio"] else ""
        print(f"  {row['name']:<28} {row['role']:<6} {seconds:10.4f} cpu-s {wall:10.4f} s {ratio:>9}  {row['quality']}")


if __name__ == "__main__":
    main()
