"""What every rule's script shares: arguments, threads, logging, provenance, exit status.

A script defines ``main(job)`` and ends with ``run(main, "store", "moments", ...)``, naming its input edges. An
edge is given as ``--store PATH``, or several as ``--parts PATH PATH ...``. Edges that an invocation leaves out are
absent from ``job.edges``.
"""

import argparse
import gc
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eigenloom.errors import EigenloomError, Interrupted
from eigenloom.provenance import file_digest
from eigenloom.store.atomic import explained

SIGTERM_STATUS = 143


class Job:
    """One invocation: ``spec`` (parsed), ``edges`` (name -> path or paths), ``out``, ``device``, ``threads``."""

    def __init__(self, arguments: argparse.Namespace, names: tuple[str, ...]):
        """Take parsed arguments apart."""
        self.spec: dict[str, Any] = json.loads(arguments.spec)
        self.out = Path(arguments.out)
        self.device: str = arguments.device
        self.threads: int = arguments.threads
        self.lists: dict[str, list[Path]] = {n: getattr(arguments, n) for n in names if getattr(arguments, n)}
        self._started = time.perf_counter()

    def __contains__(self, name: str) -> bool:
        """Say whether the edge was given."""
        return name in self.lists

    def __getitem__(self, name: str) -> Path:
        """Return the single edge of that name."""
        (path,) = self.lists[name]
        return path

    @property
    def inputs(self) -> dict[str, str]:
        """Path of every input edge, as given -> sha256 hex: the ``inputs`` of the edge this job writes."""
        digests = {}
        for path in (path for paths in self.lists.values() for path in paths):
            with explained(path):
                digests[str(path)] = file_digest(path)
        return dict(sorted(digests.items()))

    @property
    def snapshot(self) -> Path:
        """Where unfinished work of this job is kept: outside the declared outputs, below ``artifacts/.resume``."""
        inside = self.out.with_suffix("").parts
        start = inside.index("artifacts") + 1 if "artifacts" in inside else 0
        root = Path(*inside[: start - 1], "artifacts") if start else Path("artifacts")
        return root.joinpath(".resume", *inside[start:]).with_suffix(".safetensors")

    def facts(self, **more: Any) -> dict[str, Any]:
        """What belongs into ``run.json``: wall time, device, threads, versions, and ``more``."""
        return {
            "seconds": round(time.perf_counter() - self._started, 3),
            "device": self.device,
            "threads": self.threads,
            "python": platform.python_version(),
            "torch": version("torch"),
            "machine": platform.machine(),
            **more,
        }


def run(main: Callable[[Job], None], *names: str) -> None:
    """Parse the command line, run ``main``, and exit: 0 done, 1 a sentence on stderr, 143 interrupted and saved."""
    parser = argparse.ArgumentParser(description=sys.modules[main.__module__].__doc__)
    parser.add_argument("--spec", required=True, help="canonical JSON of the parameters that change the result")
    parser.add_argument("--out", required=True, help="the edge to write; its siblings go beside it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, mps or auto")
    parser.add_argument("--threads", type=int, default=1, help="threads of the numerical libraries")
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", type=Path, default=[], help=f"{name} edge(s)")
    arguments = parser.parse_args()
    gc.freeze()  # what was imported stays
    gc.enable()  # scripts/start.py
    if "torch" in sys.modules:  # numpy's BLAS reads OMP_NUM_THREADS, which Snakemake exports
        sys.modules["torch"].set_num_threads(arguments.threads)
    finish(lambda: main(Job(arguments, names)))


def finish(work: Callable[[], None]) -> None:
    """Do the work and exit as ``run`` does; for scripts with a command line of their own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        work()
    except Interrupted as error:
        logging.getLogger("eigenloom").warning("%s", error)
        sys.exit(SIGTERM_STATUS)
    except EigenloomError as error:
        sys.exit(f"error: {error}")
