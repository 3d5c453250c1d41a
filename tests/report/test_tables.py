"""Tables: floors beside results, nothing left out in silence, CSV = JSON = Markdown."""

import csv
import io
import json

import pytest
from made_up_results import LAYERS, METHODS, documents, metrics, path_of, run_script

from eigenloom.errors import StoreError
from eigenloom.report import tables
from eigenloom.store.atomic import write_json


def named(table, **wanted):
    return [row for row in table["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_every_result_is_followed_by_its_random_floor_and_every_layer_by_the_constant():
    rows = tables.tabulate(documents())["rows"]
    names = [tuple(row[key] for key in tables.KEY) for row in rows]
    for layer in LAYERS:
        for basis, codings in METHODS.items():
            for coding in codings:
                place = names.index(("s", layer, basis, coding))
                assert names[place + 1] == ("s", layer, f"{basis}-random", coding)
                assert rows[place + 1]["role"] == tables.FLOOR
        assert names.count(("s", layer, "constant", "")) == 1
    results = [name for name, row in zip(names, rows, strict=True) if row["role"] == tables.RESULT]
    assert results == sorted(results)


def test_layers_are_chosen_on_the_training_split_only():
    found = documents()
    earlier, later = (found[path_of(layer, "pca", "dense")]["metrics"] for layer in LAYERS)
    assert [row["layer"] for row in named(tables.tabulate(found), basis="pca", coding="dense", chosen=True)] == [
        LAYERS[1]
    ]
    earlier["probe_r_train"], later["probe_r"] = 0.9, 0.99
    assert [row["layer"] for row in named(tables.tabulate(found), basis="pca", coding="dense", chosen=True)] == [
        LAYERS[0]
    ]


def test_balanced_scores_choose_but_do_not_mix():
    found = documents()
    for document in found.values():
        for block in (document["metrics"], document["floors"]["random"]):
            for name in ("probe_r", "probe_r_train"):
                block[f"{name}_balanced"], block[name] = block[name], None
    table = tables.tabulate(found)
    assert [row["layer"] for row in named(table, basis="pca", coding="dense", chosen=True)] == [LAYERS[1]]
    assert all(row["probe_r"] is None for row in named(table, role=tables.RESULT))
    assert "Probe R (balanced)" in tables.markdown(table)
    assert table["missing"] == []


def test_csv_json_and_markdown_agree():
    table = json.loads(json.dumps(tables.tabulate(documents())))
    read = list(csv.DictReader(io.StringIO(tables.table_csv(table))))
    lines = [line for line in tables.markdown(table).splitlines() if line.startswith("|")][2:]
    assert len(read) == len(table["rows"]) == len(lines)
    for row, cells, line in zip(table["rows"], read, lines, strict=True):
        shown = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        for place, metric in enumerate(tables.METRICS, start=4):
            assert cells[metric.key] == repr(row[metric.key])
            assert shown[place] == f"{row[metric.key]:.3f}"
        assert shown[1].removesuffix(" ◆") == cells["layer"]
        assert shown[1].endswith("◆") == row["chosen"] == (cells["chosen"] == "true")
        assert shown[-2] == ("1" if row["role"] == tables.RESULT else "")


def test_missing_results_are_named():
    found = documents()
    absent, unmade = path_of("layer-03", "pca", "dense"), path_of("layer-01", "kmeans-004", "onehot")
    found[absent] = None
    del found[unmade]
    found[path_of("layer-01", "pca", "dense")]["metrics"]["purity_16"] = None
    table = tables.tabulate(found)
    assert table["missing"] == [unmade, absent, "s/layer-01/pca/dense: purity_16"]
    assert [row["basis"] for row in table["rows"] if row["role"] == tables.MISSING] == ["kmeans-004", "pca"]
    text = tables.markdown(table)
    assert f"- `{absent}`" in text
    assert text.count("| missing |") >= 2
    assert "missing" in tables.table_csv(table)


def test_several_seeds_give_mean_and_range():
    base = documents()
    other = {
        f"other/{path}": metrics(d["layer"], d["basis"], d["coding"], value=d["metrics"]["probe_r"] + 0.1, seed=8)
        for path, d in base.items()
    }
    table = tables.tabulate(base | other)
    (row,) = named(table, layer="layer-03", basis="pca", coding="dense")
    assert (row["probe_r"], row["probe_r_min"], row["probe_r_max"]) == pytest.approx((0.55, 0.5, 0.6))
    assert (row["n_seeds"], row["seeds"]) == (2, "7 8")
    assert "0.550 (0.500 to 0.600)" in tables.markdown(table)
    assert len(table["manifest"]) == len(base) * 2


def test_manifest_has_every_parameter_and_digest():
    line = tables.tabulate(documents())["manifest"][0]
    assert line["specs.probe.probe.l2"] == 1e-8
    assert (line["seed"], line["probe.path"]) == (7, "histogram")
    assert line["inputs.some/path.json"] == "c" * 64
    assert line["digests.artifacts/s/saev/shards/probe_val/store.json"] == "b" * 64


def test_markdown_cells_stay_cells():
    found = documents()
    document = metrics("layer-01", "a|b*c", "dense")
    found[path_of("layer-01", "a|b*c", "dense")] = document
    lines = [line for line in tables.markdown(tables.tabulate(found)).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}


def test_the_summary_holds_the_metrics_of_every_result_and_no_floor():
    found = documents()
    nested = tables.summary(tables.tabulate(found))
    for layer in LAYERS:
        assert nested["s"][layer].keys() == METHODS.keys()
        for basis, codings in METHODS.items():
            assert nested["s"][layer][basis].keys() == set(codings)
    kept = nested["s"]["layer-01"]["pca"]["dense"]
    assert kept == {m.key: found[path_of("layer-01", "pca", "dense")]["metrics"].get(m.key) for m in tables.METRICS}


def test_script(tmp_path):
    found = documents()
    for path, document in found.items():
        write_json(tmp_path / path, document)
    absent = path_of("layer-05", "pca", "dense")
    out = "results/tables/t/table.json"
    assert run_script("write_tables", tmp_path, {"name": "t"}, out, metrics=[*found, absent]) == (0, "")
    folder = (tmp_path / out).parent
    assert {path.name for path in folder.iterdir()} == {
        "table.json", "table.csv", "table.md", "summary.json", "manifest.csv", "manifest.json",
    }  # fmt: skip
    table = json.loads((tmp_path / out).read_text())
    assert absent in table["missing"]
    assert table["inputs"].keys() == found.keys()
    assert len(json.loads((folder / "manifest.json").read_text())) == len(found)
    (tmp_path / absent).parent.mkdir(parents=True)
    (tmp_path / absent).write_text("{}")
    status, message = run_script("write_tables", tmp_path, {"name": "t"}, out, metrics=[absent])
    assert (status, "is not a metrics.json" in message) == (1, True)


def test_foreign_metrics_are_refused(tmp_path):
    (tmp_path / "m.json").write_text('{"format": "eigenloom.metrics", "version": 9}')
    with pytest.raises(StoreError, match="version 1"):
        tables.read_metrics(tmp_path / "m.json")
