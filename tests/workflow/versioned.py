"""A project under Git and DVC, with a directory beside it as remote, in which tests run both."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from projects import Project

REQUIRED = os.environ.get("EIGENLOOM_REQUIRE_DVC") == "1"
CONFIG = """\
name: tiny
seed: 0
device: cpu

sources:
  tiny-scenes:
    images:
      scenes: {kind: scenes, canvas: 32, patch: 8, digits: [1, 2], zooms: [2]}
    splits:
      fit_train: {images: scenes, n_examples: 64}
      fit_val: {images: scenes, n_examples: 16}
      probe_train: {images: scenes, n_examples: 16}
      probe_val: {images: scenes, n_examples: 16}
    model: {kind: vit, width: 32, depth: 2, heads: 2, steps: 300}
    layers: [1]

bases:
  kmeans-016: {kind: kmeans, n_clusters: 16, codings: [onehot]}
  pca: {kind: pca, codings: [topk]}

codings:
  onehot: {kind: onehot}
  topk: {kind: topk, k: [1, 4]}

encode: {materialize: [label, topk]}
"""
"""The tiny experiment, smaller still: a layer, two bases."""
only_when_asked = pytest.mark.skipif(not REQUIRED, reason="takes minutes; `make test-dvc` runs it")


class Versioned(Project):
    """A working directory under Git and DVC; ``../eigenloom-dvc`` is its remote, as in the shipped ``.dvc/config``."""

    def run(self, *command: str, status: int = 0, **more: str) -> str:
        """Run a command there and return what it prints."""
        environment = {
            **self.environment(),
            "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_NAME": "A Tester" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "tester@example.org" for who in ("AUTHOR", "COMMITTER")},
            "DVC_NO_ANALYTICS": "1",
            **{f"DVC_{kind}_DIR": str(self.root.parent / ".dvc-home" / kind.lower())
               for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")},
            **more,
        }  # fmt: skip
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{text[-4000:]}"
        return text

    def git(self, *words: str, status: int = 0) -> str:
        """Run Git."""
        return self.run("git", *words, status=status)

    def dvc(self, *words: str, status: int = 0, **more: str) -> str:
        """Run DVC."""
        return self.run(sys.executable, "-m", "dvc", *words, status=status, **more)

    def keep(self, *words: str, status: int = 0) -> str:
        """Do what ``make record`` does."""
        return self.run(sys.executable, "scripts/keep.py", *words, status=status)

    def commit(self, message: str) -> None:
        """Record, and commit what is staged."""
        self.keep()
        self.git("commit", "--quiet", "--all", "--message", message)

    def verify(self, status: int = 0) -> str:
        """Do what ``make verify`` does."""
        return self.run(sys.executable, "scripts/verify.py", status=status)

    def clone(self, name: str = "clone") -> "Versioned":
        """Clone it beside itself."""
        self.git("clone", "--quiet", str(self.root), str(self.root.parent / name))
        return Versioned(self.root.parent / name)

    def digests(self) -> dict[str, bytes]:
        """Return every file below ``artifacts``."""
        return {
            str(p.relative_to(self.root)): p.read_bytes() for p in self.root.glob("artifacts/[!.]*/**/*") if p.is_file()
        }

    def changed(self) -> set[str]:
        """Return the paths that Git finds changed, new or gone, without Snakemake's records."""
        lines = self.git("status", "--porcelain", "--untracked-files=all").splitlines()
        return {line[3:] for line in lines if not line[3:].startswith(".snakemake/")}


def small(fresh: Project, parent: Path) -> Project:
    """Copy the project of stubs into ``parent/project`` with a smaller configuration, and build everything."""
    shutil.copytree(fresh.root, parent / "project", symlinks=True)
    project = Project(parent / "project")
    shutil.rmtree(project.root / "workflow/experiments/tiny")
    (project.root / "config.yaml").write_text(CONFIG)
    project.snakemake("--quiet", "all", "--", "all")
    return project


def version(project: Project, push: bool = True) -> Versioned:
    """Put a built project under Git and DVC, recorded, committed and pushed."""
    versioned = Versioned(project.root)
    versioned.git("init", "--quiet", "--initial-branch", "main")
    versioned.git("add", "--all")
    versioned.commit("Everything built")
    if push:
        versioned.dvc("push")
    return versioned


def copy_of(versioned: Versioned, parent: Path) -> Versioned:
    """Copy a versioned project with its remote, times included."""
    shutil.copytree(versioned.root.parent, parent, symlinks=True)
    return Versioned(parent / versioned.root.name)
