"""Accuracy, recall and losses agree with their definitions; the bar fails with all numbers."""

import math

import pytest
import torch
from coloured_patches import ColouredPatches
from sklearn.metrics import accuracy_score, log_loss, recall_score

from eigenloom.errors import ConfigError, DataError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.segmentation import Segmentation, check_bar, judge
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.sources.preprocess import Preprocess

FOUND = Segmentation(accuracy=0.9, recall=0.6, loss=1.0, prior_loss=1.5)


def problem(n, seed):
    return LabelledPatches.from_images(ColouredPatches(n, seed), Preprocess(4), torch.device("cpu"))


def test_figures_equal_those_of_scikit_learn():
    model = SmallViT(ViTConfig((2, 3), 4, 16, 2, 2, 3), seed=3)
    train, val = problem(20, 0), problem(130, 1)
    found = judge(model, train, val, 0.3)
    labels = val.labels.flatten().numpy()
    logits = model.label(val.plain(0, 130)[0]).detach().flatten(0, 1)
    weights = val.label_weights(0.3).numpy()[labels]
    assert found.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found.recall == pytest.approx(recall_score(labels, logits.argmax(1), labels=[1, 2], average="macro"))
    expected = log_loss(labels, logits.double().softmax(1).numpy(), sample_weight=weights)
    assert found.loss == pytest.approx(expected, rel=1e-5)  # float32 logits against float64
    counts = torch.bincount(train.labels.flatten()) + 1
    prior = (counts * train.label_weights(0.3)).double()
    prior = (prior / prior.sum()).expand(len(labels), -1).numpy()
    assert found.prior_loss == pytest.approx(log_loss(labels, prior, sample_weight=weights), rel=1e-6)


def test_classes_that_do_not_occur_are_left_out_of_recall():
    val = problem(10, 1)
    val.labels[val.labels == 2] = 0
    model = SmallViT(ViTConfig((2, 3), 4, 16, 2, 2, 3), seed=3)
    model.head.weight.data.zero_()
    model.head.bias.data = torch.tensor([0.0, 1.0, 0.0])
    found = judge(model, val, val, 0.3)
    assert found.recall == 1.0
    assert math.isfinite(found.prior_loss)
    val.labels.zero_()
    with pytest.raises(DataError, match="no patch has a class"):
        judge(model, val, val, 0.3)


@pytest.mark.parametrize("bar", [{"accuracy": 0.9, "recall": 0.6}, {"accuracy": 0.5}, {"below_prior": True}, {}])
def test_bars_that_are_cleared(bar):
    check_bar(FOUND, bar)


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        (
            {"accuracy": 0.87, "recall": 0.7},
            r"accuracy 0\.900, recall 0\.600, .* but the bar is accuracy 0\.87, recall 0\.7",
        ),
        ({"accuracy": 0.91, "recall": 0.5}, r"the bar is accuracy 0\.91"),
    ],
)
def test_bars_that_are_not_cleared(bar, words):
    with pytest.raises(DataError, match=words):
        check_bar(FOUND, bar)


def test_the_prior_and_unknown_bars():
    with pytest.raises(DataError, match=r"loss 1\.000, prior_loss 1\.000, but the bar is below_prior True"):
        check_bar(Segmentation(0.9, 0.9, 1.0, 1.0), {"below_prior": True})
    with pytest.raises(ConfigError, match="unknown precision; use accuracy, recall or below_prior"):
        check_bar(FOUND, {"precision": 0.5})
