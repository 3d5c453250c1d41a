"""The scripts of ``examples/`` and the listings of pages, executed; those about results on made-up results."""

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from made_up_results import LAYERS, METHODS, ROOT, path_of, run_script, write_tree
from pages import blocks, command_lines, pages

import configuration
from eigenloom import ArrayRows, load_basis, save_basis
from eigenloom.bases.registry import basis_class

PYTHON_PAGES = (
    "docs/howto/own-data.md", "docs/howto/own-model.md", "docs/howto/resume.md", "docs/howto/read-results.md",
)  # fmt: skip
NOT_HERE = {
    "/data/saev": "a recording of another project",
    "artifacts/scenes": "an artifact of the default experiment; test_a_basis_is_read does the same",
}
"""What a listing mentions that is not executed -> why."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the tables and results of an experiment named ``default``."""
    root = tmp_path_factory.mktemp("results")
    write_tree(root)
    paths = []
    for layer in LAYERS:
        for basis, codings in METHODS.items():
            for coding in codings:
                edges = {"basis": [f"artifacts/s/bases/{basis}/{layer}/meta.json"]}
                for prefix, name in (("", basis), ("floor_", f"{basis}-random")):
                    edges[f"{prefix}reconstruction"] = [f"results/s/{layer}/{name}/reconstruction.json"]
                    edges[f"{prefix}probe"] = [f"artifacts/s/probes/{name}/{coding}/{layer}/meta.json"]
                spec = {"source": "s", "layer": layer, "basis": basis, "coding": coding}
                paths.append(path_of(layer, basis, coding))
                assert run_script("score", root, spec, paths[-1], **edges) == (0, "")
    table = "results/tables/default/table.json"
    assert run_script("write_tables", root, {"name": "default"}, table, metrics=paths) == (0, "")
    return root


def example(name, folder, *words):
    """Run a script of ``examples/``; return its lines."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_table_is_read(results):
    head, *rows = example("best_features", results)
    assert head.split()[:4] == ["source", "layer", "basis", "coding"]
    assert len(rows) == sum(map(len, METHODS.values()))
    values = [float(row.split()[-2]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_a_basis_is_read(results):
    head, *rows = example("spectrum_of_a_basis", results, "artifacts/s/bases/pca/layer-01")
    assert head.split() == ["variance", "share"]
    assert [row.split()[1] for row in rows] == ["4.0", "2.0", "1.0"]


def test_classes_are_read(results):
    head, *rows = example("classes", results, "results/s/layer-03/pca/dense")
    assert head.split() == ["class", "n_train", "best_feature", "ap", "ap_floor"]
    assert [row.split()[0] for row in rows[:2]] == ["one", "two"]


def test_every_example_is_executed():
    named = {"best_features", "spectrum_of_a_basis", "classes"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == named


def listings(page):
    """Return the Python listings of a page that can be executed here."""
    found = [block.text for block in blocks(page) if block.language == "python" and not block.title]
    return [text for text in found if not any(word in text for word in NOT_HERE)]


@pytest.mark.parametrize("page", pages())
def test_what_listings_import_exists(page):
    """In every listing of every page, those that need files of the reader's included."""
    for block in blocks(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("eigenloom"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), block.text


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_listings_of_a_page_run(page, results, tmp_path, monkeypatch):
    """One after another, names kept; those about results where results are."""
    monkeypatch.chdir(results if page.endswith("read-results.md") else tmp_path)
    texts = listings(page)
    assert texts
    names = {}
    for text in texts:
        exec(compile(text, page, "exec"), names)
    if page.endswith("own-model.md"):
        assert torch.equal(torch.cat(list(names["rows"])), names["acts"][:, 1, 1:].reshape(-1, 32))
    if page.endswith("read-results.md"):
        assert len(names["beside"]) == len(LAYERS) * sum(map(len, METHODS.values()))
        assert names["gain"].notna().all()
        assert names["metrics"]["metrics"]["probe_r"] == 0.5
    if page.endswith("resume.md"):
        assert not Path("kmeans.resume").exists()


def test_the_sources_of_the_page_about_ones_own_data_are_valid():
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    (sources,) = (block.text for block in blocks("docs/howto/own-data.md") if block.language == "yaml")
    config["sources"].update(yaml.safe_load(sources)["sources"])
    assert configuration.check(config) == []


@pytest.fixture
def package(tmp_path):
    """The files of the page about a kind of one's own, laid out as an installed package."""
    by_title = {block.title: block.text for block in blocks("docs/howto/own-basis.md") if block.title}
    for name in ("loudest.py", "loudest_suite.py"):
        (tmp_path / name).write_text(by_title[name], encoding="utf-8")
    project = tomllib.loads(by_title["pyproject.toml"])["project"]
    (entry,) = project["entry-points"]["eigenloom.bases"].items()
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudest\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[eigenloom.bases]\n{' = '.join(entry)}\n", encoding="utf-8")
    return tmp_path


def test_a_kind_of_ones_own_is_found_by_name(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)
    basis = basis_class("loudest").fit(ArrayRows(rows), seed=0, n_components=4)
    assert basis.features.tolist() == [5, 4, 3, 2]
    save_basis(basis, package / "saved")
    loaded = load_basis(package / "saved")
    assert torch.equal(loaded.decode(loaded.encode(rows)), basis.decode(basis.encode(rows)))
    error = (basis.decode(basis.encode(rows)) - rows).square().sum(1)
    assert torch.allclose(error, (rows - rows.mean(0))[:, :2].square().sum(1), atol=1e-4)


@pytest.mark.slow
def test_a_kind_of_ones_own_passes_the_conformance_suite(package):
    """With the command and the plugin that the page shows."""
    (line,) = (line for line in command_lines("docs/howto/own-basis.md") if "pytest" in line)
    command = [sys.executable, *line.split()[1:], "-q", "-p", "no:cacheprovider"]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{package}", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
