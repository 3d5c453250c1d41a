"""Utilisation on counts whose answer is known."""

import math

import pytest
import torch

from eigenloom.evaluation.utilisation import describe, utilisation


def test_even_use():
    found = utilisation(torch.full((64,), 10))
    assert found.dead == 0
    assert found.entropy == pytest.approx(1.0)
    assert found.effective == pytest.approx(64.0)
    assert found.share_largest == pytest.approx(1 / 64)
    assert not found.collapsed


def test_uneven_use():
    counts = torch.tensor([8, 4, 4, 0])
    found = utilisation(counts)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert found.dead == 1
    assert found.entropy == pytest.approx(entropy / math.log(4))
    assert found.effective == pytest.approx(math.exp(entropy))
    assert found.share_largest == 0.5
    assert not found.collapsed


def test_the_largest_one_percent_of_many():
    counts = torch.ones(300, dtype=torch.int64)
    counts[[5, 17, 200]] = 101
    assert utilisation(counts).share_largest == pytest.approx(303 / 600)


@pytest.mark.parametrize(
    ("counts", "collapsed"), [([99, 1, 0], True), ([50, 50, 0], False), ([7], False), ([0, 0], True)]
)
def test_collapse(counts, collapsed):
    assert utilisation(torch.tensor(counts)).collapsed is collapsed


def test_a_collapse_is_an_error_line(caplog):
    facts = describe("onehot", [torch.tensor([5, 0, 1]), torch.tensor([900, 0, 1])])
    assert "onehot has collapsed: of 3 features 1.0" in caplog.text
    assert facts["counts"] == [905, 0, 2]
    assert [shard["collapsed"] for shard in facts["per_shard"]] == [True, True]
    assert facts["total"]["dead"] == 1
    caplog.clear()
    describe("onehot", [torch.tensor([5, 6, 1])])
    assert not caplog.text


def test_many_features_become_a_histogram():
    counts = torch.arange(5000) % 50
    facts = describe("dense", [counts])
    assert "counts" not in facts
    edges, features = facts["histogram"]["edges"], facts["histogram"]["features"]
    assert (len(edges), len(features)) == (65, 64)
    assert sum(features) == int((counts > 0).sum())
    assert edges[-1] == pytest.approx(49)
