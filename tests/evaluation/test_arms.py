"""The rule of claims, intervals against scipy, and tables of arms."""

import json

import numpy as np
import pytest
from scipy import stats

from eigenloom.errors import StoreError
from eigenloom.evaluation import arms

NAMES = ("cold", "small", "linear-pca", "random-features", "kpca-warm")


def result(arm, seed, nmse, n_train=300, **changes):
    test = {"1": {"nmse": nmse, "by_label": [nmse]}, "4": {"nmse": nmse + 0.2, "by_label": [nmse + 0.2]}}
    return {
        "format": arms.FORMAT, "version": arms.VERSION, "arm": arm, "seed": seed, "n_train": n_train,
        "labels": ["T_eff"], "parameters": 1000, "entropy": 0.99, "logit_std": 0.1, "val_nmse": [0.9, nmse],
        "epochs_to_cold": 2, "test": test, **changes,
    }  # fmt: skip


def results(n_seeds, gains, spread=0.01, seed=0):
    """Arms around .5, each arm lower by its gain, with noise that seeds share and noise of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.05, n_seeds)
    return [
        result(arm, s, 0.5 + common[s] - gains.get(arm, 0) + rng.normal(0, spread))
        for arm in NAMES for s in range(n_seeds)
    ]  # fmt: skip


def test_an_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 7), rng.normal(0.3, 1, 7)
    found = arms.paired(one.tolist(), two.tolist())
    wanted = stats.ttest_rel(one, two).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([wanted.low, wanted.high])
    assert found["mean"] == pytest.approx((one - two).mean())
    assert arms.paired([1.0], [2.0]) == {"mean": -1.0, "interval": None, "n": 1}


@pytest.mark.parametrize(
    ("n_seeds", "gains", "helps", "words"),
    [
        (6, {"kpca-warm": 0.1}, True, "kernel PCA helps"),
        (4, {"kpca-warm": 0.1}, False, "nothing is claimed from 4 seeds"),
        (6, {"kpca-warm": 0.1, "small": 0.1}, False, arms.NOTHING),
        (6, {"kpca-warm": 0.1, "linear-pca": 0.1}, False, arms.NOTHING),
        (6, {"kpca-warm": -0.1}, False, arms.NOTHING),
        (6, {}, False, arms.NOTHING),
        (1, {"kpca-warm": 0.1}, False, "nothing is claimed from 1 seed,"),
    ],
)
def test_a_benefit_needs_five_seeds_and_both_controls(n_seeds, gains, helps, words):
    table = arms.compare(results(n_seeds, gains))
    assert [condition["helps"] for condition in table["conditions"]] == [helps, helps]
    for claim in table["claims"]:
        assert words in claim
        assert ("helps" in claim) == helps


def test_the_table_holds_what_was_measured():
    documents = results(5, {"kpca-warm": 0.02})
    table = arms.compare(documents)
    assert table["arms"] == list(NAMES)
    assert (table["seeds"], table["parameters"]) == ([0, 1, 2, 3, 4], 1000)
    (first, second) = table["conditions"]
    assert (first["noise"], second["noise"]) == (1.0, 4.0)
    values = [d["test"]["1"]["nmse"] for d in documents if d["arm"] == "small"]
    assert first["arms"]["small"]["values"] == values
    assert first["arms"]["small"]["mean"] == pytest.approx(np.mean(values))
    assert second["arms"]["small"]["mean"] == pytest.approx(np.mean(values) + 0.2)
    assert table["curves"]["300"]["cold"][0] == documents[0]["val_nmse"]
    rows = arms.table_csv(table).splitlines()
    assert len(rows) == 1 + 2 * len(NAMES)
    assert "| 300 | 4x |" in arms.markdown(table)
    assert table["claims"][0] in arms.markdown(table)
    json.dumps(table, allow_nan=False)


def test_unequal_parameters_are_refused():
    documents = results(2, {})
    documents[3]["parameters"] = 1001
    with pytest.raises(StoreError, match="differ in their trainable parameters"):
        arms.compare(documents)


def test_a_missing_result_is_named():
    documents = results(2, {})
    with pytest.raises(StoreError, match=r"\(300, 'small', 1\)"):
        arms.compare([d for d in documents if (d["arm"], d["seed"]) != ("small", 1)])


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "cold.json"
    path.write_text('{"format": "other"}')
    with pytest.raises(StoreError, match="holds no result of an arm"):
        arms.read_arm(path)


def test_epochs_until_a_goal():
    assert arms.epochs_to([0.9, 0.5, 0.6, 0.4], 0.5) == 2
    assert arms.epochs_to([0.9, 0.5], 0.4) is None
