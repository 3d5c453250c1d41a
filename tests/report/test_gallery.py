"""The gallery in the page: what is shown where, and what is refused."""

import io
import json

import pytest
from PIL import Image

from eigenloom.errors import StoreError
from eigenloom.report.evidence import Evidence
from eigenloom.report.gallery import arrange, css, read_gallery
from eigenloom.report.illustrations import chosen_results, rows_of, shown_classes
from eigenloom.report.page import draw, render
from eigenloom.store.atomic import write_bytes, write_json

HOSTILE = '"><script>x</script>'


def entry(number, ap, sign=1, pictures=(0, 17)):
    tiles = [
        {"picture": p, "map": p + 1, "example": HOSTILE, "patch": [1, 2], "score": 0.25, "label": None if p else "sea"}
        for p in pictures
    ]
    facts = {"ap": ap, "ap_floor": 0.1, "ap_random": None, "feature": 3, "sign": sign}
    return {"id": number, "class": f"class {number}", **facts, "images": tiles}


@pytest.fixture
def gallery(tmp_path):
    folder = tmp_path / "results/galleries/t/s"
    folder.mkdir(parents=True)
    sheets = {}
    for name, file, kind in (("pictures", "pictures.jpg", "JPEG"), ("maps", "maps.png", "PNG")):
        data = io.BytesIO()
        Image.new("RGB", (16 * 8, 16)).save(data, kind)
        digest = write_bytes(folder / file, data.getvalue())
        sheets[name] = {"file": file, "sha256": digest, "side": 8, "columns": 16, "size": [128, 16]}
    methods = [
        {"source": "s", "layer": "layer-01", "basis": "a", "coding": "dense", "metrics": "results/s/a.json",
         "classes": [entry(0, 0.5), entry(2, 0.9, sign=-1)]},
        {"source": "s", "layer": "layer-03", "basis": "b", "coding": "onehot", "metrics": "results/s/b.json",
         "classes": [entry(0, 0.7)]},
    ]  # fmt: skip
    path = folder / "gallery.json"
    write_json(path, {"format": "eigenloom.gallery", "version": 1, "source": "s", "split": "probe_val", **sheets,
                      "methods": methods})  # fmt: skip
    return path


def test_classes_hold_their_methods_and_tiles(gallery):
    (found,) = arrange({"s": read_gallery(gallery)}, ["a", "b"], str)
    assert [(c["name"], c["best"], c["best_ap"]) for c in found["classes"]] == [
        ("class 0", "b", "0.700"), ("class 2", "a", "0.900"),
    ]  # fmt: skip
    first, second = found["classes"][0]["methods"], found["classes"][1]["methods"]
    assert [method["where"] for method in (*first, *second)] == [
        "layer-01, dense, feature 3", "layer-03, onehot, feature 3", "layer-01, dense, minus feature 3",
    ]  # fmt: skip
    tile, other = first[0]["tiles"]
    assert (tile["picture"], tile["map"]) == ("-0px -0px", "-64px -0px")
    assert (other["picture"], other["map"]) == ("-64px -64px", "-128px -64px")
    assert tile["title"] == f"{HOSTILE}: highest score 0.25 at row 1, column 2, labelled sea"
    assert other["title"].endswith("without a label")


def test_the_page_carries_the_sheets_and_keeps_names_as_text(gallery):
    document = read_gallery(gallery)
    text = render("t", Evidence(galleries={"s": document}), draw(Evidence()), "results/reports/t", [])
    assert text.count("data:image/jpeg;base64,") == text.count("data:image/png;base64,") == 1
    assert "background-size:1024px 128px" in css([document])
    assert text.count('class="tile"') == 6
    assert text.count("<script>") == 1
    assert 'id="gallery"' in text
    assert 'id="gallery"' not in render("t", Evidence(), draw(Evidence()), "results/reports/t", [])


def test_a_changed_or_foreign_gallery_is_refused(gallery):
    gallery.with_name("maps.png").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"maps\.png: is not the file that gallery\.json names"):
        read_gallery(gallery)
    document = json.loads(gallery.read_text())
    gallery.write_text(json.dumps({**document, "pictures": {**document["pictures"], "file": "../../../etc/passwd"}}))
    with pytest.raises(StoreError, match=r"s/passwd: no such file"):
        read_gallery(gallery)
    gallery.write_text("{}")
    with pytest.raises(StoreError, match="is no gallery of version 1"):
        read_gallery(gallery)


def test_results_are_chosen_by_the_training_split_and_classes_by_precision():
    metrics = {
        f"p{i}": {"basis": basis, "metrics": {"probe_r_train": train, "probe_r": val}}
        for i, (basis, train, val) in enumerate([("b", 0.1, 0.9), ("b", 0.2, 0.0), ("a", None, 1.0), ("a", -1.0, 0.0)])
    }
    row = {"w": 1.0, "best_feature": 1.0}
    many = [{**row, "id": float(i), "ap": i / 100} for i in range(50)]
    evidence = Evidence(metrics=metrics, classes={"p1": many, "p3": [{**row, "id": 3.0, "ap": 0.99}]})
    assert chosen_results(evidence) == ["p3", "p1"]
    shown = shown_classes(evidence, ["p3", "p1"])
    assert shown == [3, *range(11, 50)]
    assert [row["id"] for row in rows_of(evidence, "p3", shown)] == [3.0]
