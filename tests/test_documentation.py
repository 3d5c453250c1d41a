"""Generated pages are fresh and show every public name, the README's listing runs, links lead somewhere."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import eigenloom

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate():
    """Import ``docs/generate.py``, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "render"),
    [
        ("config.md", "config_page"),
        ("performance.md", "performance_page"),
        ("api.md", "api_page"),
        ("scripts.md", "scripts_page"),
    ],
)
def test_generated_pages_are_fresh(generate, page, render):
    assert (ROOT / "docs" / page).read_text(encoding="utf-8").endswith(getattr(generate, render)()), "run `make pages`"


@pytest.mark.parametrize(("name", "module"), sorted(eigenloom._EXPORTS.items()))
def test_every_public_name_has_a_docstring_that_the_pages_show(generate, name, module):
    from generate_api import definition, documented, text_of

    words = documented(name, module)
    assert len(words) > 20, f"{module}.{name} has no docstring of its own"
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    section = page.split(f"\n### {name}\n")[1].split("\n### ")[0]
    assert text_of(definition(name, module)) in section
    assert words.splitlines()[0].replace("``", "`") in section


def test_the_page_of_scripts_names_every_executable_and_its_arguments(generate):
    page = (ROOT / "docs/scripts.md").read_text(encoding="utf-8")
    for path in (ROOT / "scripts").glob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            assert f"### {path.name}\n" in page or f"| `{path.name}` |" in page
    assert "| `--block-size BLOCK_SIZE` | `262144` | columns read at a time, a power of two |" in page


def test_every_page_is_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- .*: (\S+\.md)$", site, re.M)
    found = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == found - set(yaml.safe_load(site)["exclude_docs"].split())
    assert len(listed) == len(set(listed))


def test_the_site_may_load_nothing_from_the_network(tmp_path):
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    shown = "".join(f'<h3 id="{name.lower()}">{name}</h3>' for name in eigenloom._EXPORTS)
    (tmp_path / "api.html").write_text(shown + '<a href="https://arxiv.org/abs/1">paper</a>', encoding="utf-8")
    hooks.on_post_build({"site_dir": str(tmp_path)})
    (tmp_path / "api.html").write_text(shown.replace(">PCA<", "><").replace('"pca"', '"pc"'), encoding="utf-8")
    (tmp_path / "a.css").write_text("@import url(https://fonts.example/x.css);", encoding="utf-8")
    (tmp_path / "b.html").write_text(
        '<script src="//cdn.example/x.js"></script><link rel="stylesheet" href="https://cdn.example/x.css">'
        '<link rel="canonical" href="https://docs.example/">', encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        hooks.on_post_build({"site_dir": str(tmp_path)})
    assert str(caught.value).splitlines() == [
        "a.css: loads https://fonts.example/x.css from the network",
        "b.html: loads //cdn.example/x.js from the network",
        "b.html: loads https://cdn.example/x.css from the network",
        "api.html: PCA is not shown",
    ]


@pytest.mark.parametrize(
    ("page", "block", "name"),
    [("scale.md", "costs", "paper-scale"), ("real-data.md", "dinov3 costs", "dinov3-ade20k")],
)
def test_the_costs_of_the_published_scale_are_those_of_its_configuration(generate, page, block, name):
    page = (ROOT / "docs/howto" / page).read_text(encoding="utf-8")
    assert generate.filled(page, {block: generate.costs_table(name)}) == page, "run `make pages`"
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
    assert f"<!-- begin results -->\n{block}\n<!-- end results -->" in readme, "run `make pages`"


def test_the_table_of_claims_is_that_of_the_committed_results(generate):
    page = committed("docs/claims.md")
    if page is None or committed("results/stars/attention/table.json") is None:
        pytest.skip("the results of the default experiment are not committed here")

    def read(name):
        text = committed(name)
        return None if text is None else json.loads(text)

    block = generate.claims_table(read)
    assert block.count("\n") > 5
    assert f"<!-- begin claims -->\n{block}\n<!-- end claims -->" in page, "run `make pages`"


def test_the_readme_is_short():
    assert README.count("\n") <= 150
    assert re.search(r"!\[[^]]+\]\(results/reports/default/\w+\.svg\)", README)


def test_the_readmes_listing_runs(tmp_path, monkeypatch):
    (listing,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(listing, "README.md", "exec"), names)
    assert names["codes"].shape == (5, 16)
    assert names["centers"].shape == (256, 64)


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
