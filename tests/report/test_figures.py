"""Figures: standalone SVG, the same bytes every time, whatever the names."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from made_up_results import HOSTILE, LAYERS, METHODS, documents, reconstruction

from eigenloom.report import figures
from eigenloom.report.drawing import NAMES, themed
from eigenloom.report.evidence import Evidence, Fit, Model
from eigenloom.report.page import draw
from eigenloom.report.scores import class_rows
from eigenloom.report.tables import tabulate

CLASSES = {
    "class": ["one", "δύο 漢字", HOSTILE],
    "ap": [0.7, 0.6, 0.5],
    "ap_random": [0.6, 0.65, None],
    "prevalence_val": [0.5, 0.3, 0.2],
}


@pytest.fixture(scope="module")
def evidence():
    """Everything that figures draw from."""
    found = documents()
    classes = {path: class_rows({"parameters": {"classes": CLASSES}}) for path in found}
    places = [(layer, basis) for layer in LAYERS for name in METHODS for basis in (name, f"{name}-random")]
    fits = {
        ("s", layer, "pca"): Fit("pca", {}, {"total_variance": 8.0}, {"explained_variance": [4.0, 2.0]})
        for layer in LAYERS
    }
    fits["s", "layer-01", "kmeans-004"] = Fit(
        "kmeans", {}, {}, {"inertia_history": [4.0, 2.0], "lr_history": [[1, 1, 1]] * 2}
    )
    return Evidence(
        tables=[tabulate(found)],
        metrics=found,
        classes=classes,
        reconstructions={("s", layer, basis): reconstruction(layer, basis) for layer, basis in places},
        fits=fits,
        models={"s": Model({}, {}, {"step": [0.0, 1.0], "loss": [2.0, 1.0], "recall": [float("nan"), 0.5]})},
    )


@pytest.fixture(scope="module")
def drawn(evidence):
    return draw(evidence)


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_same_bytes_whatever_the_users_settings(evidence, drawn):
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "mine", "text.usetex": False, "axes.grid": False}):
        assert draw(evidence) == drawn
    assert all("<dc:date>" not in svg and "Matplotlib" not in svg and "<!DOCTYPE" not in svg for svg in drawn.values())


def test_every_figure_is_xml_that_loads_nothing(drawn):
    for svg in drawn.values():
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        for node in root.iter():
            assert node.tag != "{http://www.w3.org/2000/svg}script"
            assert all("http" not in value for value in node.attrib.values())


def test_floors_are_drawn_beside_results(drawn):
    for name in ("nmse_l0", "layers", "classes"):
        shown = texts(drawn[name])
        results = {text for text in shown if text.startswith(("kmeans-004", "pca")) and "floor" not in text}
        assert len(results) == 2
        assert {f"{text}: random floor" for text in results} <= set(shown)
    assert "predict the mean" in texts(drawn["nmse_l0"])
    assert "constant score" in texts(drawn["layers"])


def test_hostile_names_stay_text(drawn):
    shown = texts(drawn["classes"])
    assert HOSTILE[:21] + "…" in shown
    assert "δύο 漢字" in shown


def test_histories_draw_what_varies(drawn):
    shown = texts(drawn["history"])
    assert {"s: k-means inertia, last pass = 1", "s: variance left unexplained", "s: network, loss"} <= set(shown)
    assert not any("learning rate" in text for text in shown)


def test_a_histogram_of_many_clusters_is_drawn_like_counts():
    document = reconstruction("layer-01", "kmeans-004")
    use = document["utilisation"]["onehot"]
    use["histogram"] = {"edges": [1.0, 4.0, 16.0], "features": [3, 2]}
    del use["counts"]
    x, y = figures._in_even_shares(figures._sizes(document))
    assert x == pytest.approx([100 * 1 / 6, 100 * 3.5 / 6])
    assert y == pytest.approx([8 * 6 / 22, 2 * 6 / 22])
    assert "kmeans-004" in texts(
        figures.utilisation(Evidence(reconstructions={("s", "layer-01", "kmeans-004"): document}))
    )


def test_nothing_to_draw_is_said():
    for svg in draw(Evidence()).values():
        assert len(texts(svg)) == 1
        assert texts(svg)[0].startswith("No")


def test_themed_svg_takes_the_colours_of_the_page_and_owns_its_ids(drawn):
    page = themed(drawn["nmse_l0"], "one")
    assert not any(colour in page for colour in NAMES)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert all(name.startswith("one-") for name in ids)
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(ids)
    assert not re.match(r"<svg[^>]* width=", page)
