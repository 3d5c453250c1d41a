"""The real workflow on the tiny experiment: what it builds, what it rebuilds, and what survives kill -9.

``EIGENLOOM_KILLS`` sets the number of kills (20 by default, ``make stress`` 100).
"""

import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from checkout import TINY, artifact_digests, copy_checkout, environment, snakemake

import verify

pytestmark = [pytest.mark.dag, pytest.mark.slow]

# In the order of the DAG, so that one storm meets them all.
PHASES = (
    *["train"] * 2, *["record"] * 3, *["measure"] * 2, *["fit"] * 3, *["encode"] * 4, *["probe"] * 6,
)  # fmt: skip
KILLS = int(os.environ.get("EIGENLOOM_KILLS", "20"))


def scripts_running(checkout):
    """Yield (script name, pid) of the jobs that run in the copy."""
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(checkout) and len(words) > 2 and words[1] == "scripts/start.py":
            yield words[2].removeprefix("scripts/"), process.info["pid"]


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


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A checkout in which everything was built, undisturbed. Do not change it."""
    checkout = copy_checkout(tmp_path_factory.mktemp("tiny") / "quiet")
    snakemake(checkout, "all", "--configfile", TINY)
    return checkout


@pytest.fixture
def copy(quiet, tmp_path):
    """A copy of it, times included, to be changed."""
    return Path(shutil.copytree(quiet, tmp_path / "copy", symlinks=True))


def planned(checkout, *words):
    """List the rules that a dry run names, with their numbers of jobs."""
    said = snakemake(checkout, "-n", *words, "--configfile", TINY).stdout
    return {rule: int(n) for rule, n in re.findall(r"^(\w+)\s+(\d+)$", said, re.M) if rule != "total"}


def table(checkout):
    """Read the table of results."""
    text = (checkout / "results/tables/tiny/table.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_a_second_run_has_nothing_to_do(quiet):
    assert "Nothing to be done" in snakemake(quiet, "-n", "all", "--configfile", TINY).stdout


def test_every_artifact_is_as_recorded(quiet):
    done = subprocess.run([sys.executable, "scripts/verify.py"], cwd=quiet, env=environment(quiet),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "all as recorded" in done.stdout


def test_the_results_stand_beside_their_floors(quiet):
    rows = table(quiet)
    bases = {row["basis"] for row in rows}
    assert {"kmeans-016", "kmeans-016-random", "pca", "pca-random", "constant"} <= bases
    for path in (quiet / "results/tiny-scenes").rglob("metrics.json"):
        metrics = json.loads(path.read_text())
        assert {"constant_score", "random"} <= metrics["floors"].keys()
        assert metrics["metrics"]["nmse"] is not None
    page = (quiet / "results/reports/tiny/index.html").read_text(encoding="utf-8")
    assert "kmeans-016" in page
    assert not re.search(r"""(src|href)=["']https?:""", page)


def test_the_best_codings_know_the_digits(quiet):
    """The last layer of even this network beats a constant score, whose mAP is .1, by far."""
    rows = table(quiet)
    name = next(key for key in rows[0] if key.lower() == "map")
    best = max(float(r[name]) for r in rows if r["layer"] == "layer-01" and r["basis"] == "kmeans-016")
    assert {row["source"] for row in rows if row["basis"] == "kmeans-016"} == {"tiny-scenes"}
    assert best > 0.3


def test_spectra_go_the_same_way(quiet):
    """The leading components of even these few stars know the temperature."""
    rows = [row for row in table(quiet) if row["source"] == "tiny-stars"]
    bases = ("pca", "kernel-pca", "srht-pca", "robust-pca")
    assert {row["basis"] for row in rows} == {*bases, *(f"{basis}-random" for basis in bases), "constant"}
    assert {row["layer"] for row in rows} == {"layer-00"}
    best = max(float(row["map"]) for row in rows if row["basis"] == "pca")
    constant = next(float(row["map"]) for row in rows if row["basis"] == "constant")
    assert best > constant + 0.2
    with (quiet / next(row["path"] for row in rows if row["path"])).with_name("per_class.csv").open() as file:
        names = [row["class"] for row in csv.DictReader(file)]
    assert all(re.fullmatch(r"T_eff \d{4} to \d{4} K", name) for name in names if name != "void")
    page = (quiet / "results/reports/tiny/index.html").read_text(encoding="utf-8")
    assert "spectra of 128 pixels from 5000 to 6000 Angstrom (simulated), divided by their median; no bad pixel" in page


def test_one_edited_size_rebuilds_that_basis_alone(copy):
    config = copy / TINY
    config.write_text(config.read_text().replace("n_clusters: 16", "n_clusters: 12"))
    jobs = planned(copy, "all")
    # the basis and its floor; codes of the basis alone: two parts of probe_train, one of the others
    expected = {"fit": 2, "evaluate": 2, "probe": 4, "score": 2, "encode_label": 4, "join_codes": 3}
    assert jobs == {**expected, "tabulate": 1, "illustrate": 1, "render": 1, "all": 1}
    config.write_text(config.read_text().replace("n_clusters: 12", "n_clusters: 16"))
    assert planned(copy, "all") == {}


def test_one_metrics_file_can_be_built_after_an_edit(copy):
    config, target = copy / TINY, "results/tiny-scenes/layer-01/kmeans-016/onehot/metrics.json"
    before = (copy / target).read_bytes()
    config.write_text(config.read_text().replace("n_clusters: 16", "n_clusters: 12"))
    snakemake(copy, target, "--configfile", TINY)
    assert (copy / target).read_bytes() != before
    assert "Nothing to be done" in snakemake(copy, "-n", target, "--configfile", TINY).stdout


def test_snakemakes_own_report_needs_no_network(copy):
    snakemake(copy, "--report", "report.html", "--configfile", TINY)
    assert (copy / "report.html").stat().st_size > 100_000


def damage_truncate(shard):
    shard.write_bytes(shard.read_bytes()[:1000])


def damage_nan(shard):
    values = np.fromfile(shard, "<f4")
    values[16 * 32 + 5] = np.nan  # the last of 17 tokens of 32 numbers of the first example, feature 5
    values.tofile(shard)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, r"acts000000\.bin.*\d+ bytes"),
        (damage_nan, r"acts000000\.bin.*example 0.*feature 5"),
        (lambda shard: shard.unlink(), r"acts000000\.bin.*missing|missing.*acts000000\.bin"),
    ],
)
def test_a_damaged_shard_is_one_sentence_and_leaves_nothing(copy, damage, words):
    split = copy / "artifacts/tiny-scenes/saev/shards/fit_val"
    damage(split / "acts000000.bin")
    target = copy / "artifacts/tiny-scenes/moments/fit_val/part-00000.json"
    spec = json.dumps(json.loads(target.read_text())["spec"])
    store = "artifacts/tiny-scenes/saev/shards/fit_val/store.json"
    for path in target.parent.glob("part-00000*"):
        path.unlink()
    command = [sys.executable, "scripts/measure.py", "--spec", spec, "--out", str(target), "--store", store]
    done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(words, sentence), sentence
    assert not list(target.parent.glob("part-00000*"))


def test_a_full_disk_stops_a_fit_with_a_sentence_and_a_rerun_completes(copy, quiet, tmp_path):
    place = copy / "artifacts/tiny-scenes/bases"
    shutil.rmtree(place)
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    target = "artifacts/tiny-scenes/bases/kmeans-016/layer-01/meta.json"
    try:
        (place / "filler").write_bytes(bytes(15 * 4096))
        failed = snakemake(copy, target, "--configfile", TINY, check=False)
        assert failed.returncode == 1
        log = (copy / "logs/fit/tiny-scenes/kmeans-016/layer-01.log").read_text()
        assert "Traceback" not in log
        (sentence,) = [line for line in log.splitlines() if line.startswith("error: ")]
        assert "no space left on the device; free some and run the same command again" in sentence
        assert "logs/fit/tiny-scenes/kmeans-016/layer-01.log" in failed.stderr
        assert [path.name for path in place.rglob("*") if path.is_file()] == ["filler"]
        (place / "filler").unlink()
        snakemake(copy, target, "--configfile", TINY)
        assert (copy / target).read_bytes() == (quiet / target).read_bytes()
        assert planned(copy, target) == {}
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_no_byte_of_an_artifact_can_change_unnoticed(copy):
    """Of every name of file, one file changed in its last byte: ``make verify`` names it, or what was made from it.

    Of an edge from which nothing was made no sha256 is known; it is damaged so that it is no JSON.
    """
    files = {}
    edges = [json.loads(path.read_bytes()) for path in verify.edges_of(copy)]
    taken = {name for edge in edges for name in edge.get("inputs", {})}
    for path in sorted((copy / "artifacts").rglob("*")):
        if path.is_file() and not path.name.endswith("run.json") and ".resume" not in path.parts:
            kind = (path.relative_to(copy / "artifacts").parts[1], re.sub(r"\d+", "0", path.name))
            files.setdefault(kind, path)
    assert len(files) > 20
    unnoticed = []
    for path in files.values():
        before = path.read_bytes()
        is_edge = str(path.relative_to(copy)) in taken
        changed = json.dumps(json.loads(before)).encode() if is_edge else before[:-1] + bytes([before[-1] ^ 1])
        path.write_bytes(changed)
        if not verify.differences(copy):
            unnoticed.append(str(path.relative_to(copy)))
        path.write_bytes(before)
    assert unnoticed == []
    assert verify.differences(copy) == []


def test_killed_at_random_moments_the_artifacts_are_the_same(quiet, tmp_path):
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
        assert kills, "no job was ever seen running"
        run = start(stormy)
        assert run.wait(timeout=600) == 0
        assert artifact_digests(stormy) == expected
        assert not list((stormy / "artifacts").rglob(".*.partial"))
    struck = {name for hit in kills for name in hit}
    assert {"record.py", "fit.py", "encode.py", "probe.py"} <= struck, f"the kills struck only {struck}"
