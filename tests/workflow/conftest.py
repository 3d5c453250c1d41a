"""A copy of the repository whose scripts are stubs, built once."""

import shutil
from pathlib import Path

import pytest
from projects import Project, copy_of

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "workflow", "envs", "src", "config.yaml")
SCRIPTS = "prepare train record label join_store measure join_moments fit encode join_codes evaluate probe score"
SCRIPTS += " tabulate render"


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
def unbuilt(fresh: Project, tmp_path: Path) -> Project:
    """A copy of the project before any run, to be changed."""
    return copy_of(fresh, tmp_path / "unbuilt")
