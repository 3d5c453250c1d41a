"""A copy of the repository whose scripts are stubs, built once."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "workflow", "envs", "src", "config.yaml")
SCRIPTS = "prepare train record label join_store measure join_moments fit encode join_codes evaluate probe score"
SCRIPTS += " tabulate render"


class Project:
    """A working directory with the workflow in it."""

    def __init__(self, root: Path):
        self.root = root

    def snakemake(self, *words: str, status: int = 0) -> str:
        """Run Snakemake there and return what it prints."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *words]
        environment = {**os.environ, "SLURM_CONF": "/dev/null", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        assert done.returncode == status, text[-4000:]
        return text

    def planned(self, *words: str) -> set[str]:
        """Return what a dry run would do: the rule and the directory of the first output of each job."""
        text = self.snakemake("-n", *(words or ["all"]))
        jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    input: .*\n)?(?:    output: ([^\s,]+))?", text, re.M)
        return {f"{rule} {output}" for rule, output in jobs if output}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs once."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == 1, (path, old, text.count(old))
        file.write_text(text.replace(old, new))


def copy_of(project: Project, root: Path) -> Project:
    """Copy a project, times included."""
    shutil.copytree(project.root, root, symlinks=True)
    return Project(root)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository with stubs for scripts; nothing is built. Do not change it."""
    root = tmp_path_factory.mktemp("fresh") / "project"
    root.mkdir()
    for name in COPIED:
        source, target = ROOT / name, root / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy2(source, target)
    (root / "scripts").mkdir()
    for name in SCRIPTS.split():
        shutil.copy2(Path(__file__).with_name("stub_script.py"), root / "scripts" / f"{name}.py")
    shutil.copy2(root / "workflow/experiments/tiny/config.yaml", root / "config.yaml")
    return Project(root)


@pytest.fixture(scope="session")
def built(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same after a full run. Do not change it."""
    project = copy_of(fresh, tmp_path_factory.mktemp("built") / "project")
    project.snakemake("--quiet", "all", "--", "all")
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project, to be changed."""
    return copy_of(built, tmp_path / "project")


@pytest.fixture
def unbuilt(fresh: Project, tmp_path: Path) -> Callable[[], Project]:
    """A copy of the project before any run."""
    return lambda: copy_of(fresh, tmp_path / "unbuilt")
