"""What the report says of checkpoints follows from their numbers, and from what chance would have shown."""

import pytest
from made_up_results import weights

from eigenloom.errors import StoreError
from eigenloom.report.evidence import Evidence, gather
from eigenloom.report.page import FIGURES, render
from eigenloom.report.weights import NOTHING, weight_curves, weight_facts, weight_findings, weight_paths
from eigenloom.store.atomic import write_json


def told(**changes):
    return list(weight_findings(Evidence(weights={"c": weights(**changes)})))


def test_components_that_beat_their_floors_are_a_finding():
    rebuilt, walk, sketch = told()
    assert rebuilt.tone == "good"
    assert rebuilt.text.startswith(
        "Weights, c: held-out checkpoints rebuilt from 2 numbers label 0.800 of the patches right,"
    )
    assert "as trained 0.850; the mean network reaches 0.300, 2 random directions 0.350." in rebuilt.text
    assert "costs as much as 3 networks" in rebuilt.text
    assert rebuilt.paths == ("results/weights/c/metrics.json",)
    assert "80.0 % and 10.0 % of the variance; of random walks with the same step norms 60.0 % and 15.0 %" in walk.text
    assert "0.100, that of the walks 0.300: lower than chance" in walk.text
    assert "1.0123 times the squared error of the exact one" in sketch.text


@pytest.mark.parametrize("floor", [{"mean": 0.8}, {"random": 0.9}])
def test_components_that_do_not_are_a_warning(floor):
    rebuilt = told(**floor)[0]
    assert rebuilt.tone == "warning"
    assert "The components carry nothing that these floors lack." in rebuilt.text


@pytest.mark.parametrize("left", [0.3, 0.4])
def test_no_excess_over_a_walk_is_no_evidence(left):
    walk = told(left=left)[1]
    assert walk.tone == "warning"
    assert walk.text.endswith("no evidence of a low-dimensional training.")


def test_several_trainings_are_told_apart_and_their_mean_is_judged():
    (separate,) = [f for f in told(runs=("model", "other")) if "lies between the trainings" in f.text]
    assert "95 % of the first component's variance lies between the trainings" in separate.text
    assert "their mean is a poor network: 0.300 against 0.900. They grew from 2 initial networks." in separate.text
    (alike,) = [f for f in told(runs=("model", "other"), mean=0.88) if "lies between the trainings" in f.text]
    assert "their mean is about as good as they are: 0.880 against 0.900" in alike.text
    assert not [f for f in told() if "lies between" in f.text]


def test_figures_show_every_line_once_and_name_their_controls():
    evidence = Evidence(weights={"a": weights(), "b": weights(runs=("model", "other"))})
    curves, paths = weight_curves(evidence), weight_paths(evidence)
    for label in (
        "held-out checkpoints",
        "held out, random directions",
        "held out, random walk",
        "held out, as trained",
    ):
        assert curves.count(f">{label}</text>") == 1, label
    assert "a: weights" in curves
    assert "b: rebuilt networks" in curves
    assert "other: adamw 0.002, seed 1, 40 steps" in paths
    assert "first component (80 % of the variance)" in paths
    assert weight_curves(evidence) == curves


def test_without_weights_there_is_a_sentence():
    assert NOTHING in weight_curves(Evidence())
    assert NOTHING in weight_paths(Evidence())
    assert weight_facts(Evidence()) == []
    assert list(weight_findings(Evidence())) == []


def test_facts_count_checkpoints():
    (table,) = weight_facts(Evidence(weights={"c": weights()}))
    assert table["rows"] == [["c", "model: adamw 0.002, seed 0, 40 steps", "3 + 1", "100", "2", "dual"]]
    assert len(table["columns"]) == len(table["rows"][0])


def test_a_page_with_weights_names_them(tmp_path):
    path = tmp_path / "results/weights/c/metrics.json"
    write_json(path, weights())
    evidence = gather(weights=[path])
    figures = dict.fromkeys(FIGURES, weight_paths(evidence))
    page = render("t", evidence, figures, tmp_path, [])
    assert "Weights, c: held-out checkpoints rebuilt" in page
    write_json(path, {"format": "other"})
    with pytest.raises(StoreError, match="holds no results of weights"):
        gather(weights=[path])
