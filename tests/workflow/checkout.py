"""A private copy of the tracked files to run the real workflow in."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = "workflow/experiments/tiny/config.yaml"


def copy_checkout(target: Path) -> Path:
    """Copy what Git tracks (and what it would track), without results and records, into ``target``."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        made = name.startswith(("results/", ".snakemake/", "benchmarks/results/")) or name.endswith("dvc.lock")
        if not made and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def environment(checkout: Path) -> dict[str, str]:
    """Environment in which ``python`` and ``snakemake`` are ours and the library is the copy's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(checkout / "src"), "SLURM_CONF": "/dev/null"}


def snakemake(checkout: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on two cores in the copy and return what it said."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *words]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, check=False)
    if check and done.returncode:
        logs = "".join(f"\n--- {p}\n{p.read_text()[-2000:]}" for p in sorted((checkout / "logs").rglob("*.log")))
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}\n{logs[-6000:]}")
    return done


def artifact_digests(checkout: Path) -> dict[str, str]:
    """Digest everything below ``artifacts`` that is a function of the specification: all but ``run.json`` files."""
    root = checkout / "artifacts"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith("run.json")
    }
