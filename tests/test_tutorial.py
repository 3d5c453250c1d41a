"""The tutorial, executed as it stands: its files written, its commands and listings run, in a clone of the checkout."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import copy_checkout, environment
from pages import blocks

pytestmark = [pytest.mark.dag, pytest.mark.slow]
PAGE = "docs/tutorial.md"
CONFIG = "workflow/experiments/my-survey/config.yaml"


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


def rows_of(text):
    """Read a printed table: (basis, coding) -> numbers."""
    lines = [line.split() for line in text.splitlines() if line.split()[1:2] in (["pca"], ["pca-random"])]
    return {(words[1], words[2]): [float(word) for word in words[3:]] for words in lines}


def test_numbers_are_as_the_page_describes_them(said):
    first, second = (rows_of(text) for text in said if "probe_r" in text)
    (l0, nmse, probe_r, mean_ap), floor = first["pca", "dense"], first["pca-random", "dense"]
    assert l0 == 16
    assert nmse < 0.5 * floor[1]
    assert probe_r > max(floor[2], 0.2)
    assert mean_ap > max(floor[3], 0.5)
    assert second["pca", "dense"] == first["pca", "dense"]
    assert second["pca", "topk-00004"][0] == 4
    assert 0 < second["pca", "topk-00004"][1] - nmse < 0.1  # "nearly as much as sixteen"


def test_an_edit_plans_what_it_touches(said, clone):
    first, second = (set(re.findall(r"^(\w+) +\d+$", text, re.M)) for text in said if "dry-run" in text)
    assert {"list_spectra", "record_spectra", "join_moments", "fit"} <= first
    assert second == {"evaluate", "probe", "score", "tabulate", "render", "all", "total"}
    plan = ["snakemake", "-n", "--cores", "1", "all", "--configfile", CONFIG]
    done = subprocess.run(plan, cwd=clone, env=environment(clone), capture_output=True, text=True, check=True)
    assert "Nothing to be done" in done.stdout


def test_the_basis_serves(said):
    assert "torch.Size([5, 16]) torch.Size([5, 128])" in said[-1]
