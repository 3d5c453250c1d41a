"""A working directory with the workflow in it, in which tests run Snakemake."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


class Project:
    """A working directory with the workflow in it."""

    def __init__(self, root: Path):
        self.root = root

    def environment(self, **more: str) -> dict[str, str]:
        """Environment in which ``python`` is the one that runs the tests, and the library the project's."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "SLURM_CONF": "/dev/null", "PATH": path, "PYTHONPATH": "src", **more}

    def snakemake(self, *words: str, status: int = 0, **more: str) -> str:
        """Run Snakemake there, with more variables in its environment, and return what it prints."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *words]
        environment = self.environment(**more)
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        assert done.returncode == status, text[-4000:]
        return text

    def planned(self, *words: str) -> set[str]:
        """Return what a dry run would do: the rule and the directory of the first output of each job."""
        return planned_in(self.snakemake("-n", *(words or ["all"])))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs once."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == 1, (path, old, text.count(old))
        file.write_text(text.replace(old, new))


def planned_in(text: str) -> set[str]:
    """Find the jobs that a dry run lists: "rule first-output"."""
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    input: .*\n)?(?:    output: ([^\s,]+))?", text, re.M)
    return {f"{rule} {output}" for rule, output in jobs if output}


def copy_of(project: Project, root: Path) -> Project:
    """Copy a project, times included."""
    shutil.copytree(project.root, root, symlinks=True)
    return Project(root)
