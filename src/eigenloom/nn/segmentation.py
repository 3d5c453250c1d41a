"""How well a network labels patches, and the bar it has to clear."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eigenloom.errors import ConfigError, DataError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.vit import SmallViT


@dataclass(frozen=True)
class Segmentation:
    """Figures of one network on one split.

    Fields: ``accuracy``, share of patches with the right label, void counted; ``recall``, mean over the classes that
    occur (void is none) of the share of their patches found; ``loss``, weighted cross-entropy; ``prior_loss``, that of
    the best constant answer, the label frequencies of the training split.
    """

    accuracy: float
    recall: float
    loss: float
    prior_loss: float


@torch.inference_mode()
def judge(model: SmallViT, train: LabelledPatches, val: LabelledPatches, void_weight: float) -> Segmentation:
    """Judge a network on ``val``; ``train`` supplies the label frequencies.

    Raises:
        DataError: no patch of ``val`` has a class.
    """
    n_labels = len(val.classes)
    weights = val.label_weights(void_weight)
    confusion = torch.zeros(n_labels, n_labels, dtype=torch.int64, device=weights.device)
    summed = torch.zeros((), dtype=torch.float64, device=weights.device)
    model.eval()
    for start in range(0, len(val), 100):
        x, labels = val.plain(start, start + 100)
        logits, labels = model.label(x).flatten(0, 1), labels.flatten()
        summed += functional.cross_entropy(logits, labels, weight=weights, reduction="sum")
        cells = labels * n_labels + logits.argmax(1)
        confusion += torch.bincount(cells, minlength=n_labels**2).view(n_labels, n_labels)
    confusion, weights = confusion.cpu().double(), weights.cpu().double()
    counts = confusion.sum(1)
    present = counts > 0
    present[val.void] = False
    if not present.any():
        raise DataError("fit_val: no patch has a class, so recall is undefined; draw more images or check the masks")
    return Segmentation(
        accuracy=float(confusion.trace() / counts.sum()),
        recall=float((confusion.diagonal()[present] / counts[present]).mean()),
        loss=float(summed / (weights * counts).sum()),
        prior_loss=_constant_loss(torch.bincount(train.labels.flatten().cpu(), minlength=n_labels), counts, weights),
    )


def _constant_loss(train_counts: Tensor, counts: Tensor, weights: Tensor) -> float:
    """Return the weighted cross-entropy of the training split's label frequencies, each count one higher."""
    mass = weights * (train_counts + 1).double()
    weighted = weights * counts
    return float(-(weighted * torch.log(mass / mass.sum())).sum() / weighted.sum())


def check_bar(found: Segmentation, bar: Mapping[str, Any]) -> None:
    """Refuse a network that did not learn its task.

    Args:
        found: its figures.
        bar: least ``accuracy`` and ``recall``, or ``below_prior: true`` to ask only for a loss below the constant
            answer's.

    Raises:
        ConfigError: an unknown key.
        DataError: it is below the bar; the message has all numbers.
    """
    if unknown := bar.keys() - {"accuracy", "recall", "below_prior"}:
        raise ConfigError(f"model.bar: unknown {', '.join(sorted(unknown))}; use accuracy, recall or below_prior")
    figures = asdict(found)
    reached = [figures[name] >= bar[name] for name in ("accuracy", "recall") if name in bar]
    if bar.get("below_prior"):
        reached.append(found.loss < found.prior_loss)
    if not all(reached):
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        asked = ", ".join(f"{name} {value}" for name, value in bar.items())
        raise DataError(
            f"fit_val: the trained network has {shown}, but the bar is {asked}; raise model.steps, check the labels,"
            " or lower model.bar"
        )
