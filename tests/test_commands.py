"""Every command that a page tells to type names a target, a rule, a script with such options, or a file that exists."""

import re
import shlex
import subprocess
from functools import cache

import pytest
from pages import ROOT, command_lines, pages

import generate_scripts
from experiments import load
from plan import FAMILIES, ON_REQUEST, Plan

ELSEWHERE = {
    "git": "tests/workflow/test_dvc.py clones, merges and switches",
    "dvc": "tests/workflow/test_dvc.py and test_s3.py push, pull, check out and set remotes",
    "apt-get": ".ci/slurm installs the packages",
    "mkdir": "of the shell",
    "export": "of the shell",
    ".": "tests/test_tutorial.py activates the environment",
    "cd": "of the shell",
    "sed": "tests/test_tutorial.py runs it",
}
"""Programs that are not looked into here -> what does."""
MADE_BY_THE_READER = ("workflow/experiments/my-survey/config.yaml", "data/make_survey.py")


@cache
def default_plan():
    return Plan(load(ROOT / "config.yaml"))


def check_make(words):
    goals = [word for word in words if "=" not in word and not word.startswith("-")]
    command = ["make", "-n", "-o", ".venv/.run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert goals
    assert done.returncode == 0, done.stderr


def check_snakemake(words):
    options = [word for word in words if word.startswith("-")]
    known = {
        "-n", "--cores", "--profile", "--configfile", "--unlock", "--forcerun", "--slurm-status-command", "--sdm",
        "--report",
    }  # fmt: skip
    assert set(options) <= known | {"--"}, options
    if "--configfile" in words:
        config = words[words.index("--configfile") + 1]
        assert (ROOT / config).exists() or config in MADE_BY_THE_READER
    takes = {"--cores", "--profile", "--configfile", "--slurm-status-command", "--sdm", "--report"}
    targets = [
        word for place, word in enumerate(words)
        if not word.startswith("-") and (place == 0 or words[place - 1] not in takes)
    ]  # fmt: skip
    rules = {"all", *FAMILIES, *ON_REQUEST, *(rule for family in FAMILIES.values() for rule in family)}
    for target in targets:
        assert target in rules or is_metrics(target), target


def is_metrics(target):
    """Say whether the default experiment makes such a file of results."""
    found = re.fullmatch(r"results/([^/]+)/(layer-\d+)/([^/]+)/([^/]+)/metrics\.json", target)
    if not found:
        return False
    source, layer, basis, coding = found.groups()
    plan = default_plan()
    return layer in plan.sources[source].layers and coding in plan.sweep(basis, source)


def check_python(words):
    script, rest = words[0], words[1:]
    if script == "-m":  # tests/test_examples.py runs it
        assert (ROOT / rest[1]).exists(), rest
        return
    if script in MADE_BY_THE_READER:
        return
    assert (ROOT / script).exists(), script
    if not script.startswith("scripts/"):
        return
    path = ROOT / script
    parser = generate_scripts.parser_of(path)
    arguments, unknown = parser.parse_known_args(rest)
    assert unknown == []
    assert arguments


CHECKS = {"make": check_make, "snakemake": check_snakemake, "python": check_python}


@pytest.mark.parametrize("page", [page for page in pages() if command_lines(page)])
def test_commands_exist(page):
    for line in command_lines(page):
        words = shlex.split(line)
        while words and "=" in words[0] and not words[0].startswith("-"):
            words = words[1:]
        if words[0] in CHECKS:
            CHECKS[words[0]](words[1:])
        elif words[0].startswith("tests/"):
            assert (ROOT / words[0]).exists(), line
        else:
            assert words[0] in ELSEWHERE, f"{page}: nobody checks `{line}`"


def test_ignored_words_are_used():
    """A program that no page names any more needs no excuse."""
    first = {shlex.split(line)[0] for page in pages() for line in command_lines(page)}
    assert set(ELSEWHERE) <= first
