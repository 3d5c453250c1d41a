"""Remove the lock that a killed Snakemake left behind; leave it while any Snakemake lives in this folder.

``make run`` calls this first, so that a run after a power cut simply goes on.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil


def living() -> list[int]:
    """List the Snakemake processes whose working directory is this one."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        is_snakemake = any(Path(word).name == "snakemake" for word in words[:2]) or "snakemake" in words[1:3]
        if is_snakemake and process.info["cwd"] == os.getcwd():
            found.append(process.info["pid"])
    return found


if __name__ == "__main__":
    locks = Path(".snakemake", "locks")
    if locks.is_dir() and any(locks.iterdir()) and not living():
        subprocess.run([sys.executable, "-m", "snakemake", "--unlock", *sys.argv[1:]], check=True)
