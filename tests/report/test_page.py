"""The page: complete, self-contained, the same bytes, links that lead somewhere, names that stay names."""

import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_results import HOSTILE, LAYERS, METHODS, documents, path_of, run_script, write_tree

from eigenloom.report.evidence import Evidence, Model
from eigenloom.report.facts import model_sentence
from eigenloom.report.interaction import HASH, SCRIPT
from eigenloom.report.page import FIGURES, draw, render
from eigenloom.report.tables import tabulate

PAGE = "results/reports/t/index.html"
LOADS = {"src", "srcset", "data", "poster", "action", "formaction", "background"}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects elements, links and texts, and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.links, self.loads, self.texts, self.ids, self._open = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def _note(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href"):
                (self.links if tag == "a" else self.loads).append(value)
            elif name in LOADS or "url(" in (value or ""):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Results made by the scripts themselves, and the page."""
    root = tmp_path_factory.mktemp("tree")
    write_tree(root)
    metrics = []
    for layer in LAYERS:
        for basis, codings in METHODS.items():
            for coding in codings:
                spec = {"source": "s", "layer": layer, "basis": basis, "coding": coding}
                edges = {"basis": [f"artifacts/s/bases/{basis}/{layer}/meta.json"]}
                for prefix, name in (("", basis), ("floor_", f"{basis}-random")):
                    edges[f"{prefix}reconstruction"] = [f"results/s/{layer}/{name}/reconstruction.json"]
                    edges[f"{prefix}probe"] = [f"artifacts/s/probes/{name}/{coding}/{layer}/meta.json"]
                metrics.append(path_of(layer, basis, coding))
                assert run_script("score", root, spec, metrics[-1], **edges) == (0, "")
    edges = {"metrics": metrics}
    assert run_script("write_tables", root, {"name": "t"}, "results/tables/t/table.json", **edges) == (0, "")
    edges["tables"] = ["results/tables/t/table.json"]
    for name, pattern in (
        ("reconstructions", "results/*/*/*/reconstruction.json"),
        ("bases", "artifacts/*/bases/*/*/meta.json"),
        ("models", "artifacts/*/model/meta.json"),
        ("weights", "results/weights/*/metrics.json"),
    ):
        edges[name] = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    assert run_script("render", root, {"name": "t"}, PAGE, **edges) == (0, "")
    return root, edges


@pytest.fixture(scope="module")
def page(tree):
    return (tree[0] / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nothing_drawn():
    """Figures that say why they are empty, for tests that are not about figures."""
    return draw(Evidence())


def test_every_figure_is_inside_and_beside(tree, page):
    for name, (_, title, _) in FIGURES.items():
        assert (tree[0] / PAGE).with_name(f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert f"<b>{title}.</b>" in page
    assert Reader(page).tags.count("svg") == len(FIGURES)


def test_it_loads_nothing_and_runs_its_own_script_alone(page):
    found = Reader(page)
    assert [link for link in found.loads if not link.startswith(("#", "url(#"))] == []
    assert found.tags.count("script") == 1
    assert f"<script>{SCRIPT}</script>" in page
    assert f"script-src '{HASH}'" in page
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    assert "@import" not in page
    assert [link for link in found.links if "//" in link] == []
    assert len(found.ids) == len(set(found.ids))


def test_every_link_leads_to_a_file_or_a_section(tree, page):
    found = Reader(page)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.ids
        else:
            assert Path(os.path.normpath((tree[0] / PAGE).parent / link)).is_file(), link
    numbers = {link for link in found.links if link.endswith("metrics.json")}
    linked = [*tree[1]["metrics"], *tree[1]["weights"]]
    assert numbers == {f"../../{path.removeprefix('results/')}" for path in linked}


def test_floors_stand_beside_the_numbers(page):
    assert page.count('<span class="floor">0.400</span>') >= 8
    assert "constant score" in page
    published = [row for row in page.split("<tr") if 'class="role-published"' in row]
    assert len(published) == 4
    assert all("<a " not in row for row in published)


def test_hostile_names_are_text(page, nothing_drawn):
    evidence = Evidence(tables=[tabulate(documents())], metrics=documents())
    row = evidence.tables[0]["rows"][0]
    row["basis"] = evidence.tables[0]["rows"][2]["coding"] = HOSTILE
    text = render(HOSTILE, evidence, nothing_drawn, "results/reports/t", [])
    assert text.lower().count("<script") == 1
    assert HOSTILE in "".join(Reader(text).texts)


def test_what_ran_is_told(page):
    shown = " ".join("".join(Reader(page).texts).split())
    assert "patch accuracy 0.900 (bar 0.870), mean recall of the classes 0.750 (bar 0.700) on fit_val" in shown
    assert "3 of 3" in shown
    assert "n_clusters 4, with a random floor" in shown


@pytest.mark.parametrize(
    ("metrics", "bar", "words"),
    [
        ({"accuracy": 0.9, "recall": 0.7}, {"accuracy": 0.0, "recall": 0.5}, "recall of the classes 0.700 (bar 0.500)"),
        ({"loss": 1.0, "prior_loss": 1.2}, {"below_prior": True}, "loss 1.000 (bar: below 1.200, that of the label"),
    ],
)
def test_the_network_stands_beside_its_bar(metrics, bar, words):
    said = model_sentence(Model(metrics, bar, {}))
    assert words in said
    assert "bar 0.000" not in said
    assert model_sentence(None) == "activations of a network that this source did not train"


def test_same_inputs_same_bytes(tree, page):
    root, edges = tree
    other = PAGE.replace("/t/", "/u/")
    assert run_script("render", root, {"name": "t"}, other, **edges) == (0, "")
    assert (root / other).read_text(encoding="utf-8") == page
    for name in FIGURES:
        first, second = ((root / path).with_name(f"{name}.svg").read_bytes() for path in (PAGE, other))
        assert first == second


def test_changed_class_table_is_refused(tree):
    root, edges = tree
    path = root / edges["metrics"][0]
    sibling = path.with_name("per_class.csv")
    kept = sibling.read_text(encoding="utf-8")
    sibling.write_text(kept.replace("one", "won"), encoding="utf-8")
    status, message = run_script("render", root, {"name": "t"}, "results/reports/v/index.html", **edges)
    sibling.write_text(kept, encoding="utf-8")
    assert (status, "per_class.csv: is not the file that metrics.json names" in message) == (1, True)


def test_a_worse_number_is_marked_and_a_missing_one_is_named(nothing_drawn):
    found = documents()
    absent = path_of("layer-01", "kmeans-004", "onehot")
    found[absent] = None
    evidence = Evidence(tables=[tabulate(found)], metrics={k: v for k, v in found.items() if v})
    text = render("t", evidence, nothing_drawn, "results/reports/t", [])
    assert f"<code>{absent}</code>" in text
    assert text.count('<td class="start">missing</td>') == 1
    marked = text.count(" below")
    better = Evidence(tables=[tabulate(documents(pca={"value": 0.5, "floor": 0.2}))])
    assert marked > render("t", better, nothing_drawn, "results/reports/t", []).count(" below")


def test_a_run_without_results_still_has_a_page(nothing_drawn):
    text = render("empty", Evidence(), nothing_drawn, "results/reports/empty", [])
    assert "No result is there to speak of." in text
