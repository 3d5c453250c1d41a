"""Generated pages are fresh, the README's listing runs, its commands exist, and its links lead somewhere."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate():
    """Import ``docs/generate.py``, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "render"), [("config.md", "config_page"), ("performance.md", "performance_page")])
def test_generated_pages_are_fresh(generate, page, render):
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == getattr(generate, render)(), "run `make docs`"


@pytest.mark.parametrize(
    ("page", "block", "name"),
    [("scale.md", "costs", "paper-scale"), ("real-data.md", "dinov3 costs", "dinov3-ade20k")],
)
def test_the_costs_of_the_published_scale_are_those_of_its_configuration(generate, page, block, name):
    page = (ROOT / "docs/howto" / page).read_text(encoding="utf-8")
    assert generate.filled(page, {block: generate.costs_table(name)}) == page, "run `make docs`"
    assert "| **all** | **" in page


def committed(name):
    """Return a file as the last commit has it: a run of one's own changes results, and that is no mistake."""
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def test_the_readmes_table_is_that_of_the_committed_results(generate):
    table, readme = committed("results/tables/default/table.json"), committed("README.md")
    if table is None or readme is None:
        pytest.skip("the results of the default experiment are not committed here")
    block = generate.results_table(table)
    assert f"<!-- begin results -->\n{block}\n<!-- end results -->" in readme, "run `make docs`"


def test_the_readmes_listing_runs(tmp_path, monkeypatch):
    (listing,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(listing, "README.md", "exec"), names)
    assert names["codes"].shape == (5, 16)
    assert names["centers"].shape == (256, 64)


def test_the_readmes_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_design_page_lists_the_floors_that_are_checked():
    floors = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.S)[1]
    documented = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    for layer in re.findall(r'"(.*?)"', floors):
        cell = " \\| ".join(f"`{name.strip()}`" for name in layer.split("|"))
        assert f"| {cell} |" in documented
