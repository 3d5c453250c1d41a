"""The conda environments hold the pins that everything is tested with."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMPORTED_AS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
ON_THE_USERS_SIDE = {"wandb", "yaml", "psutil"}
"""Optional, or used by the commands that start a workflow and by no rule."""
CONDA_NAMES = {
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "matplotlib-base": "matplotlib",
    "huggingface_hub": "huggingface-hub",
}


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


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_environments_hold_all_that_scripts_import(name):
    """Every import of the library and of the scripts, those inside functions included."""
    ours = {path.stem for path in (ROOT / "scripts").glob("*.py")} | {
        path.stem for path in (ROOT / "workflow").glob("*.py")
    }
    imported = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    third_party = imported - sys.stdlib_module_names - ours - {"eigenloom"} - ON_THE_USERS_SIDE
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    packages = {pin.split("=")[0] for pin in environment["dependencies"]}
    assert {IMPORTED_AS.get(module, module) for module in third_party} <= {CONDA_NAMES.get(p, p) for p in packages}


def test_every_working_rule_has_an_environment():
    """``snakemake --sdm conda`` finds a file for each of them; targets run nothing."""
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        rules = re.split(r"^rule ", path.read_text(), flags=re.M)[1:]
        for text in rules:
            words = re.split(r"^use rule ", text, flags=re.M)[0]
            if "\n    shell:\n" not in words:
                continue
            assert re.search(r"^    conda:\n        (CPU|DEVICE)$", words, re.M), f"{path.name}: {words.split(':')[0]}"
    common = (ROOT / "workflow/rules/common.smk").read_text()
    assert 'CPU, DEVICE = "../../envs/cpu.yaml", f"../../envs/{plan.environment}.yaml"' in common
