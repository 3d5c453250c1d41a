"""What the report says of compressed experts follows from their numbers, beside SVD and the networks as trained."""

import csv
import io

import pytest
from made_up_results import expert_rows, experts

from eigenloom.errors import StoreError
from eigenloom.report.evidence import Evidence, gather
from eigenloom.report.expert_table import read_results, table_csv, tabulate
from eigenloom.report.experts import NOTHING, expert_curves, expert_facts, expert_findings, expert_map
from eigenloom.report.page import draw, render
from eigenloom.store.atomic import write_json


def evidence(**changes):
    return Evidence(experts=[{**tabulate(experts(**changes)), "path": "results/tables/x/experts.json"}])


def told(**changes):
    return list(expert_findings(evidence(**changes)))


def test_means_and_intervals_over_trainings():
    table = tabulate(experts())
    row = next(r for r in table["rows"] if (r["method"], r["size"]) == ("ts-pca", "r16-m08"))
    assert (row["role"], row["n_trainings"], row["parameters"]) == ("bank", 3, pytest.approx(0.379))
    assert row["relative_error"] == pytest.approx(0.6)
    assert row["relative_error_half"] == pytest.approx(4.302653 * 0.01 / 3**0.5)  # Student's t, two degrees of freedom
    roles = [(r["size"], r["role"], r["method"]) for r in table["rows"]]
    assert roles == [
        ("r16-m08", "bank", "slow"), ("r16-m08", "bank", "ts-pca"), ("r16-m08", "baseline", "truncated SVD"),
        ("r16-m16", "bank", "slow"), ("r16-m16", "bank", "ts-pca"), ("r16-m16", "baseline", "truncated SVD"),
        ("", "control", "dense"), ("", "control", "zeroed"),
    ]  # fmt: skip
    assert table["maps"]["m"]["ts-pca"]["r16-m08"] == {"gate": [0.6, 0.3], "up": [0.6, 0.6]}
    lines = list(csv.DictReader(io.StringIO(table_csv(table))))
    assert [line["method"] for line in lines] == [method for _, _, method in roles]
    assert tabulate(experts(n=1))["rows"][0]["accuracy_half"] is None


def test_a_bank_that_keeps_its_accuracy_and_beats_svd_is_a_finding():
    small, large, spread = told()
    assert small.tone == large.tone == "good"
    assert small.text == (
        "Experts, m: at 0.379 of the parameters ts-pca has the least error, 0.600, SVD of each expert 0.690. Accuracy"
        " 0.975 (SVD 0.970, as trained 0.980), NLL 0.120 (0.150, 0.100), KL to the trained network 0.020 (0.040); means"
        " of 3 trainings."
    )
    assert small.paths == ("results/tables/x/experts.json",)
    assert "from 0.600 (ts-pca) to 0.620 (slow) at 0.379" in spread.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy": 0.965}, "It costs more than a point of accuracy."),
        ({"nll": 0.15}, "SVD is as good in NLL."),
        ({"kl": 0.05}, "SVD is as good in KL."),
        ({"error": 0.8}, "SVD is as good in error"),
    ],
)
def test_one_that_does_not_is_a_warning(changes, words):
    small = told(**changes)[0]
    assert small.tone == "warning"
    assert words in small.text


def test_figures_show_every_method_and_facts_every_row():
    found = evidence()
    curves, per_expert = expert_curves(found), expert_map(found)
    for label in ("ts-pca", "slow", "truncated SVD", "as trained", "million operations"):
        assert f">{label}<" in curves or label in curves
    assert "r16-m08, gate: ts-pca" in per_expert
    assert "<image" not in curves + per_expert
    (facts,) = expert_facts(found)
    assert len(facts["rows"]) == 8
    assert facts["rows"][1][:5] == ["m", "r16-m08", "ts-pca", "0.379", "0.600 ± 0.025"]
    assert facts["rows"][-1][2] == "zeroed (control)"
    page = render("x", found, draw(found), "results/reports/x", [])
    assert page.count("Experts, m: ") == 3
    assert expert_curves(found) == curves


def test_without_experts_there_is_a_sentence():
    nothing = Evidence()
    assert NOTHING in expert_curves(nothing)
    assert NOTHING in expert_map(nothing)
    assert expert_facts(nothing) == list(expert_findings(nothing)) == []


def test_foreign_files_are_refused(tmp_path):
    write_json(tmp_path / "metrics.json", {"format": "other", "rows": expert_rows("a", "", 1, 0, 1, 0, 0)})
    with pytest.raises(StoreError, match="holds no results of experts"):
        read_results(tmp_path / "metrics.json")
    with pytest.raises(StoreError, match="is no table of experts"):
        gather(experts=[tmp_path / "metrics.json"])
