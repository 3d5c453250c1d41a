"""Experiments side by side: what they share, and where they would rebuild each other.

Two experiments may name the same source: then they read the same files below ``artifacts/SOURCE``, which the first to
run makes. That works as long as every job that both have is the same job.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from configuration import check
from eigenloom.errors import ConfigError
from plan import FAMILIES, Plan
from specs import Specs


def config_files(root: Path = Path()) -> list[Path]:
    """Return the configurations of a checkout: the root's, then one per experiment."""
    found = [root / "config.yaml", *sorted(root.glob("workflow/experiments/*/config.yaml"))]
    return [path for path in found if path.is_file()]


def load(path: Path) -> dict[str, Any]:
    """Read a configuration and fill in its defaults.

    Raises:
        ConfigError: it has mistakes; all are listed.
    """
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if mistakes := check(config):
        raise ConfigError("\n".join(f"{path}: {line}" for line in mistakes))
    return config


SECTIONS = {"source": "sources", "collection": "weights.collections", "moe": "experts"}
"""Wildcard -> the section of a configuration that names it."""


def clashes(configs: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return one line for each source and rule in which two experiments make the same files differently.

    Args:
        configs: name of the file -> valid configuration, defaults filled in.
    """
    plans = {name: Plan(config) for name, config in configs.items()}
    return [line for one, two in combinations(plans, 2) for line in _between((one, plans[one]), (two, plans[two]))]


def _between(one: tuple[str, Plan], two: tuple[str, Plan]) -> Iterator[str]:
    """Compare two experiments."""
    names = f"{one[0]} and {two[0]}"
    if one[1].config["name"] == two[1].config["name"]:
        yield f"name: {names} are both called `{one[1].config['name']}` and would write one report; rename one"
    for rule in (rule for family, rules in FAMILIES.items() if family != "report" for rule in rules):
        for place, difference in _differences(rule, one[1], two[1]).items():
            yield f"{place}: {names} share it, but {rule} differs in {difference}; rename one of them"


def _differences(rule: str, one: Plan, two: Plan) -> dict[str, str]:
    """Return where jobs of a rule differ that both plans have: section and name -> first difference."""
    pairs = ((one.sources, two.sources), (one.collections, two.collections), (one.moes, two.moes))
    shared = any(first.keys() & second.keys() for first, second in pairs)
    others = {json.dumps(job, sort_keys=True) for job in two.jobs(rule)} if shared else set()
    first, second = Specs(one), Specs(two)
    found: dict[str, str] = {}
    for job in one.jobs(rule):
        place = next((f"{kind}.{job[key]}" for key, kind in SECTIONS.items() if key in job), "name")
        if place not in found and json.dumps(job, sort_keys=True) in others:
            texts = first.text(rule, job), second.text(rule, job)
            if texts[0] != texts[1]:
                found[place] = _first_difference(*map(json.loads, texts))
    return found


def _first_difference(one: Any, two: Any, path: str = "") -> str:
    """Name the first place where two specifications differ, with both values."""
    if isinstance(one, dict) and isinstance(two, dict):
        key = next(k for k in sorted(one.keys() | two.keys()) if one.get(k) != two.get(k))
        return _first_difference(one.get(key), two.get(key), f"{path}.{key}" if path else key)
    return f"{path} ({json.dumps(one)} and {json.dumps(two)})"
