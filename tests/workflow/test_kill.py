"""kill -9 at random moments, then the same command: it completes, and every artifact has the bytes it should have.

``EIGENLOOM_KILLS`` sets the number of kills (20 by default, ``make stress`` 100).
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from checkout import TINY, artifact_digests, copy_checkout, environment, snakemake

# In the order of the DAG, so that one storm meets them all.
PHASES = ("train", "record", "record", "measure", "fit", "fit", "encode", "encode", "probe", "probe", "probe")
KILLS = int(os.environ.get("EIGENLOOM_KILLS", "20"))


def scripts_running(checkout):
    """Yield (script name, pid) of the jobs that run in the copy."""
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(checkout) and len(words) > 1 and words[1].startswith("scripts/"):
            yield words[1].removeprefix("scripts/"), process.info["pid"]


def start(checkout):
    """Do what ``make run`` does: remove a dead run's lock, then run, in a process group of its own."""
    subprocess.run(
        [sys.executable, "scripts/unlock.py", "--configfile", TINY],
        cwd=checkout, env=environment(checkout), check=True, capture_output=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-incomplete", "all", "--configfile", TINY]
    return subprocess.Popen(
        command, cwd=checkout, env=environment(checkout), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_in(checkout, phase, rng, everything):
    """Run until a job of ``phase`` has run for a random while, then kill -9; say what was running, None if it ended."""
    run = start(checkout)
    try:
        while run.poll() is None:
            if any(name == f"{phase}.py" for name, _ in scripts_running(checkout)):
                time.sleep(rng.uniform(0, 2.5))
                hit = sorted({name for name, _ in scripts_running(checkout)})
                if run.poll() is None:
                    os.killpg(run.pid, signal.SIGKILL) if everything else run.kill()
                    return hit
            time.sleep(0.01)
        return None
    finally:
        if run.poll() is None:
            run.kill()
        run.wait()


@pytest.mark.dag
@pytest.mark.slow
def test_killed_at_random_moments_the_artifacts_are_the_same(tmp_path):
    quiet = copy_checkout(tmp_path / "quiet")
    snakemake(quiet, "all", "--configfile", TINY)
    expected = artifact_digests(quiet)
    assert expected

    rng = random.Random(0)
    kills, rounds = [], itertools.count()
    while len(kills) < KILLS:
        stormy = copy_checkout(tmp_path / f"stormy-{next(rounds)}")
        for phase in PHASES:
            hit = kill_in(stormy, phase, rng, everything=len(kills) % 4 != 3)
            if hit is None or len(kills) >= KILLS:
                break
            kills.append(hit)
        run = start(stormy)
        assert run.wait(timeout=600) == 0
        assert artifact_digests(stormy) == expected
        assert not list((stormy / "artifacts").rglob(".*.partial"))
    struck = {name for hit in kills for name in hit}
    assert {"record.py", "fit.py", "encode.py", "probe.py"} <= struck, f"the kills struck only {struck}"
