"""The conda environments hold the pins that everything is tested with."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONDA_NAMES = {"pytorch-cpu": "torch", "pytorch-gpu": "torch", "matplotlib-base": "matplotlib"}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_pins_are_those_of_the_constraints(name):
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    wanted = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    pins = dict(pin.split("=") for pin in environment["dependencies"])
    assert pins.pop("python") == "3.11"
    found = {CONDA_NAMES.get(package, package): version for package, version in pins.items()}
    assert found == {package: wanted[package] for package in found}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in project["dependencies"]}
    assert needed <= set(found)
