"""The tutorial, executed as it stands: its files written, its commands and listings run, in a clone of the checkout."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import copy_checkout, environment
from pages import blocks

pytestmark = [pytest.mark.dag, pytest.mark.slow]
PAGE = "docs/tutorial.md"


def as_script():
    """Write the page as one shell script; a listing without a file of its own goes to the interpreter."""
    first, *rest = blocks(PAGE)
    assert first.text.startswith("git clone ")  # done by `clone`
    lines = ["set -euo pipefail"]
    for number, block in enumerate(rest):
        assert block.language in ("bash", "python", "yaml"), block
        lines.append(f"echo '=== block {number}'")
        if block.title:
            lines.append(f"mkdir -p $(dirname {block.title}); cat > {block.title} <<'EOF'\n{block.text}EOF")
        elif block.language == "python":
            lines.append(f"python - <<'EOF'\n{block.text}EOF")
        else:
            lines.append(block.text)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the checkout whose ``.venv`` is the running environment, its stamp new: nothing is installed."""
    folder = copy_checkout(tmp_path_factory.mktemp("tutorial") / "eigenloom")
    venv = folder / ".venv"
    (venv / "bin").mkdir(parents=True)
    for program in Path(sys.executable).parent.iterdir():
        if program.name not in ("activate", "python"):
            (venv / "bin" / program.name).symlink_to(program)
    # A link to the interpreter would lose the packages of the environment it belongs to.
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (venv / "bin" / "python").chmod(0o755)
    (venv / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n', encoding="utf-8")
    (venv / ".run").touch()
    return folder


@pytest.fixture(scope="module")
def said(clone):
    """Run the page; return what it printed, block by block."""
    variables = {**environment(clone), "OMP_NUM_THREADS": "1", "CORES": "2"}
    done = subprocess.run(
        ["bash", "-c", as_script()], cwd=clone, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout.split("=== block ")[1:]


def test_the_report_is_where_the_page_says(said, clone):
    assert (clone / "results/reports/my-survey/index.html").stat().st_size > 10_000
    assert any("results/reports/my-survey/index.html" in text for text in said)


def test_the_plan_is_empty_after_a_run(said):
    assert sum("Nothing to be done" in text for text in said) == 1


def test_numbers_are_as_the_page_describes_them(said, clone):
    rows = list(csv.DictReader((clone / "results/tables/my-survey/table.csv").read_text().splitlines()))
    found = {(row["basis"], row["coding"]): row for row in rows}
    pca, floor = found["pca", "dense"], found["pca-random", "dense"]
    assert float(pca["nmse"]) < float(floor["nmse"])
    assert float(pca["map"]) > 1 / 3
    first = next(text for text in said if "topk-00004" in text and "nmse" in text)
    values = {tuple(line.split()[1:3]): float(line.split()[-1]) for line in first.splitlines() if "topk" in line}
    dense = {line.split()[1]: float(line.split()[-1]) for line in first.splitlines() if "dense" in line}
    assert values["pca", "topk-00004"] - dense["pca"] < 0.1  # "nearly as much as all"


def test_an_edit_keeps_what_it_does_not_touch(clone, said):
    fitted = clone / "artifacts/survey/bases/pca/layer-00/meta.json"
    added = clone / "artifacts/survey/bases/clusters/layer-00/meta.json"
    moments = clone / "artifacts/survey/moments/fit_train/layer-00/meta.json"
    table = clone / "results/tables/my-survey/table.json"
    assert moments.stat().st_mtime <= fitted.stat().st_mtime < added.stat().st_mtime <= table.stat().st_mtime
    assert os.path.exists(clone / "logs")
    assert len(said) > 8
