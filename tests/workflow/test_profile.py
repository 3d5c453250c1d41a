"""The shipped Slurm profile: what it names exists, what it groups belongs together, every rule says what it needs."""

import re
from pathlib import Path

import pytest
import yaml
from checkout import TINY
from projects import planned_in

from configuration import check
from plan import FAMILIES, Plan

ROOT = Path(__file__).resolve().parents[2]
PROFILE = yaml.safe_load((ROOT / "slurm/config.v9+.yaml").read_text())
RULES = {rule for rules in FAMILIES.values() for rule in rules}
JOB = re.compile(r"^rule (\w+):\n((?:    .+\n)+)", re.M)


def requests(text: str) -> dict[str, list[dict[str, str]]]:
    """Find what the jobs of each working rule ask for in what a dry run prints."""
    found: dict[str, list[dict[str, str]]] = {}
    for rule, block in JOB.findall(text):
        if rule in RULES:
            asked = re.search(r"^    resources: (.*)$", block, re.M)[1]
            found.setdefault(rule, []).append(dict(word.split("=", 1) for word in asked.split(", ")))
    return found


@pytest.fixture(scope="module")
def routed(fresh):
    """Rule -> what each of its jobs asks for, where the device may be a GPU."""
    return requests(fresh.snakemake("-n", "all", "--config", "device=auto"))


def test_every_name_in_it_exists():
    for option in ("set-resources", "set-threads", "groups"):
        assert set(PROFILE.get(option, {})) <= RULES, option
    assert set(PROFILE["group-components"]) <= set(PROFILE["groups"].values())
    assert (ROOT / PROFILE["slurm-partition-config"]).is_file()


def test_no_other_profile_is_loaded_unasked():
    assert not (ROOT / "profiles").exists()
    assert not (ROOT / "workflow/profiles").exists()
    assert [path.name for path in sorted((ROOT / "slurm").iterdir())] == ["config.v9+.yaml", "partitions.yaml"]


def test_the_partitions_have_a_place_for_gpus_and_one_without():
    partitions = yaml.safe_load((ROOT / PROFILE["slurm-partition-config"]).read_text())["partitions"]
    gpus = [(limits or {}).get("max_gpu", 0) for limits in partitions.values()]
    assert min(gpus) == 0 < max(gpus)


def test_account_and_partitions_are_set_nowhere_else():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk"), *(ROOT / "scripts").glob("*.py")]:
        assert not re.search("slurm_(account|partition)", path.read_text()), path


@pytest.mark.dag
def test_every_rule_says_what_it_needs(routed):
    config = yaml.safe_load((ROOT / TINY).read_text())
    assert check(config) == []
    assert set(routed) == {rule for rule in RULES if Plan(config).jobs(rule)}
    for rule, jobs in routed.items():
        for asked in jobs:
            assert int(asked["mem_mb"]) >= 1000, rule
            assert int(asked["runtime"]) >= 10, rule
            assert asked["gpu"] in {"0", "1"}, rule


@pytest.mark.dag
def test_no_group_mixes_jobs_with_a_gpu_and_jobs_without(routed):
    for group in set(PROFILE["groups"].values()):
        rules = [rule for rule, name in PROFILE["groups"].items() if name == group]
        assert {asked["gpu"] for rule in rules for asked in routed[rule]} == {"0"}, group


@pytest.mark.dag
def test_a_second_attempt_gets_twice_the_memory_and_time(fresh, routed):
    again = requests(fresh.snakemake("-n", "all", "--config", "device=auto", "--attempt", "2"))
    for rule, jobs in routed.items():
        for first, second in zip(jobs, again[rule], strict=True):
            assert int(second["mem_mb"]) == 2 * int(first["mem_mb"]), rule
            assert int(second["runtime"]) == 2 * int(first["runtime"]), rule


@pytest.mark.dag
def test_it_plans_the_same_jobs(fresh):
    text = fresh.snakemake("-n", "all", "--profile", "slurm")
    assert planned_in(re.sub("^    (rule|    )", r"\1", text, flags=re.M)) == fresh.planned(), "groups are indented"
