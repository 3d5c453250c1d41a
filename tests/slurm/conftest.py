"""One cluster for all, and one run of the tiny experiment on it beside a local one."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import TINY, copy_checkout, snakemake
from cluster_runs import ClusterRun

BROUGHT_UP: list[tuple[str, ...]] = []
"""Clusters that these tests brought up."""
CLUSTER = str(Path(__file__).with_name("cluster"))


def cluster(*words: str) -> str:
    """Call the script and return what it prints."""
    done = subprocess.run([CLUSTER, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bring_up(*words: str) -> None:
    """Bring a cluster of this kind up; skip where that cannot be, or fail where it must."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    if obstacle := cluster("missing", *words) if alone else "one worker has it for itself; run `make test-slurm`":
        say = pytest.fail if os.environ.get("EIGENLOOM_REQUIRE_SLURM") == "1" else pytest.skip
        say(f"no Slurm cluster here: {obstacle}")
    BROUGHT_UP.append(words)
    cluster("up", *words)


@pytest.fixture(scope="session")
def down() -> Iterator[None]:
    """Whatever was brought up goes down at the end; a cluster of another run stays."""
    yield
    if BROUGHT_UP:
        cluster("down")


@pytest.fixture(scope="module")
def slurm(down: None) -> None:
    """A cluster without accounting."""
    bring_up()


@pytest.fixture(scope="module")
def accounting(down: None) -> None:
    """A cluster with accounting, in place of the other."""
    bring_up("--accounting")


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which everything was built on this machine, as `make run` does. Do not change it."""
    checkout = copy_checkout(tmp_path_factory.mktemp("quiet") / "checkout")
    snakemake(checkout, "all", "--configfile", TINY)
    return checkout


@pytest.fixture(scope="session")
def whole(down: None, tmp_path_factory: pytest.TempPathFactory) -> ClusterRun:
    """The same on the cluster, with GPU jobs. Do not change it."""
    bring_up()
    with ClusterRun(copy_checkout(tmp_path_factory.mktemp("whole") / "checkout")) as run:
        run.start("all", "--configfile", TINY, "--config", "device=auto")
        assert run.wait() == 0, run.said()
    return run
