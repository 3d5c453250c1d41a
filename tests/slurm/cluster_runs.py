"""Snakemake on the test cluster, in a checkout of its own, and what Slurm and the jobs themselves say of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from checkout import TINY, environment

CLUSTER = "/run/eigenloom-slurm"
SLURM_CONF = f"{CLUSTER}/slurm.conf"
# The shipped profile waits half a minute before it first asks for a job's state. Without accounting `squeue` tells it.
SOON = ("--slurm-init-seconds-before-status-checks", "3", "--slurm-status-command", "squeue", "--latency-wait", "10")
LIMIT = 1800


def ask(*command: str) -> str:
    """Run a command of Slurm on the test cluster and return what it prints."""
    settings = {**os.environ, "SLURM_CONF": SLURM_CONF}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=True).stdout


def edit(checkout: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the configuration of the tiny experiment in a checkout."""
    config = yaml.safe_load((checkout / TINY).read_text(encoding="utf-8"))
    change(config)
    (checkout / TINY).write_text(yaml.safe_dump(config), encoding="utf-8")
    return checkout


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something to become true and return it."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.1)
    return value


class ClusterRun:
    """One `snakemake --profile slurm ...` in a checkout."""

    def __init__(self, checkout: Path):
        self.checkout = checkout
        self.output = checkout.parent / f"{checkout.name}.txt"
        self.diary = checkout.parent / f"{checkout.name}.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.ended: list[dict[str, str]] | None = None

    def __enter__(self) -> "ClusterRun":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing running, whatever a test came to."""
        if self.process is not None and self.process.poll() is None:
            self.interrupt()
            self.process.wait(120)

    def start(self, *words: str, soon: tuple[str, ...] = SOON) -> "ClusterRun":
        """Start it with these words more; `timeout` ends it should the test not live to."""
        here = environment(self.checkout)
        settings = {
            **here,
            "SLURM_CONF": SLURM_CONF,
            "PATH": f"{CLUSTER}/bin{os.pathsep}{here['PATH']}",
            "EIGENLOOM_DIARY": str(self.diary),
            "PYTHONPATH": f"{here['PYTHONPATH']}{os.pathsep}{Path(__file__).with_name('diary')}",
        }
        # In the foreground it passes a signal on once; else its group, Snakemake in it, gets the same again.
        guard = ["timeout", "--foreground", "--signal=INT", "--kill-after=30", str(LIMIT)]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*guard, sys.executable, "-m", "snakemake", "--profile", "slurm", *soon, *words],
                cwd=self.checkout, env=settings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self

    def wait(self, seconds: float = LIMIT + 30) -> int:
        """Wait for its end and return its exit status."""
        assert self.process is not None
        status = self.process.wait(seconds)
        self.ended = self.jobs()
        return status

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)

    def said(self) -> str:
        """Return all it printed."""
        return self.output.read_text(encoding="utf-8")

    def notes(self, event: str = "start") -> list[dict[str, Any]]:
        """Return what the scripts wrote down of themselves, in order."""
        lines = self.diary.read_text(encoding="utf-8").splitlines() if self.diary.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def jobs(self) -> list[dict[str, str]]:
        """Return what the controller knows of its jobs, or knew when it ended."""
        if self.ended is not None:
            return self.ended
        (name,) = set(re.findall(r"SLURM run ID: (\S+)", self.said())) or {None}
        records = [
            dict(re.findall(r"(\S+?)=(\S*)", line)) for line in ask("scontrol", "show", "job", "-o").splitlines()
        ]
        return [record for record in records if record.get("JobName") == name]

    def job(self) -> dict[str, str] | None:
        """Return its one job that runs, or None."""
        return next((job for job in self.jobs() if job["JobState"] == "RUNNING"), None)
