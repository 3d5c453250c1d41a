"""`snakemake --profile slurm all` on a real cluster: every rule a job, GPU jobs get a GPU, bytes as on one machine."""

import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from checkout import TINY, artifact_digests, snakemake

from records import RECORDS, by_target

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

VARYING = {"starttime", "endtime", "job_hash"}
OF_THE_DEVICE = {"shellcmd", "conda_env"}
"""The cluster was told ``device=auto``, this machine ``cpu``: the command says so, and the environment follows it."""


def test_every_rule_ran_as_a_job(whole, quiet):
    ran = {note["out"] for note in whole.notes()}
    edges = {path for path in by_target(quiet / RECORDS) if path in ran}
    scripts = {json.loads(by_target(quiet / RECORDS)[edge].read_text())["rule"] for edge in edges}
    everything = {json.loads(path.read_text())["rule"] for path in by_target(quiet / RECORDS).values()}
    assert scripts == everything
    assert all(note["SLURM_JOB_ID"] for note in whole.notes())
    assert len(whole.notes("end")) == len(ran) == len(whole.notes())


def test_jobs_that_want_a_gpu_got_one_in_the_gpu_partition_and_the_others_none(whole, quiet):
    words = ("-n", "--forceall", "all", "--configfile", TINY, "--config", "device=auto")
    planned = snakemake(quiet, *words).stdout
    wanted = {}
    for block in re.findall(r"^rule \w+:\n((?:    .+\n)+)", planned, re.M):
        outputs, gpu = (re.search(f"^    {key}(.*)$", block, re.M) for key in ("output: ", "resources: .*gpu="))
        if outputs:
            wanted |= dict.fromkeys(outputs[1].split(", "), gpu[1][0])
    partitions = {job["JobId"]: job["Partition"] for job in whole.jobs()}
    for note in whole.notes():
        got = (partitions[note["SLURM_JOB_ID"]], note["CUDA_VISIBLE_DEVICES"] is not None)
        assert got == {"1": ("gpu", True), "0": ("cpu", False)}[wanted[note["out"]]], note
    fits = {out.split("/")[3]: gpu for out, gpu in wanted.items() if "/bases/" in out}
    assert (fits["kmeans-016"], fits["pca"]) == ("1", "0"), "k-means profits, an eigendecomposition does not"
    cards = {note["CUDA_VISIBLE_DEVICES"] for note in whole.notes()} - {None}
    assert cards == {"0", "1"}, "one card each, and both were used"


def test_the_artifacts_and_results_are_those_of_a_local_run(whole, quiet):
    assert artifact_digests(whole.checkout) == artifact_digests(quiet)
    results = {str(p.relative_to(quiet)): p.read_bytes() for p in (quiet / "results").rglob("*") if p.is_file()}
    assert any(name.endswith("metrics.json") for name in results)
    for name, expected in results.items():
        if name.endswith((".timing.json", "/optimizers.svg", "/index.html")):
            continue  # seconds of this very run, and what shows them
        assert (whole.checkout / name).read_bytes() == expected, name


def test_the_records_are_those_of_a_local_run_but_for_times_hash_and_device(whole, quiet):
    def records(checkout: Path) -> dict[str, dict]:
        return {out: json.loads(path.read_text()) for out, path in by_target(checkout / RECORDS).items()}

    ours, theirs = records(whole.checkout), records(quiet)
    assert ours.keys() == theirs.keys()
    for out, record in ours.items():
        assert {k: v for k, v in record.items() if k not in VARYING | OF_THE_DEVICE} == {
            k: v for k, v in theirs[out].items() if k not in VARYING | OF_THE_DEVICE
        }, out
        without_device = [re.sub(r"--device \S+", "", r["shellcmd"] or "") for r in (record, theirs[out])]
        assert without_device[0] == without_device[1], out
    assert "Nothing to be done" in snakemake(whole.checkout, "-n", "all", "--configfile", TINY).stdout


def test_the_parts_of_a_scatter_ran_side_by_side_as_jobs_of_their_own(whole):
    ends = {note["out"]: note["time"] for note in whole.notes("end")}
    parts = [note for note in whole.notes() if note["script"] == "encode"]
    assert any(note["out"].endswith("part-00001.json") for note in parts)
    assert len({note["SLURM_JOB_ID"] for note in parts}) == len(parts)
    assert any(one["time"] < two["time"] < ends[one["out"]] for one, two in itertools.permutations(parts, 2))


def test_many_small_jobs_shared_a_slurm_job(whole):
    jobs = defaultdict(list)
    for note in whole.notes():
        jobs[note["SLURM_JOB_ID"]].append(note)
    shared = {tuple(sorted({note["script"] for note in notes})) for notes in jobs.values() if len(notes) > 1}
    assert shared == {("join_codes",), ("score",), ("render", "write_tables")}
    for notes in jobs.values():
        starts = sorted(note["time"] for note in notes)
        assert starts == [note["time"] for note in notes]


def test_requests_are_those_of_the_rules(whole):
    jobs = {re.sub("_wildcards.*", "", job["Comment"]): job for job in whole.jobs() if "Comment" in job}
    train = jobs["rule_train"]
    assert (train["NumCPUs"], train["TimeLimit"], train["MinMemoryNode"]) == ("1", "02:00:00", "4000M")
    assert train["Requeue"] == "1"
