"""A copy of the repository whose scripts are stubs, built once."""

import shutil
from pathlib import Path

import pytest
from checkout import copy_checkout
from projects import Project, copy_of

from plan import FAMILIES
from specs import SCRIPTS


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository with stubs for scripts; nothing is built. Do not change it."""
    root = copy_checkout(tmp_path_factory.mktemp("fresh") / "project")
    (root / "scripts").mkdir(exist_ok=True)
    for name in {SCRIPTS.get(rule, rule) for rules in FAMILIES.values() for rule in rules}:
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
