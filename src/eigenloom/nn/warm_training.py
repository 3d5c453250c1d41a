"""Train the arms of the warm-start experiment: same spectra, order, optimizer and steps for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import DataError
from eigenloom.nn.freezing import FreezeSchedule
from eigenloom.nn.spectrum_vit import SpectrumViT
from eigenloom.nn.warm_arms import freezes
from eigenloom.sources.spectra import SpectraReader
from eigenloom.sources.survey import Survey

EVALUATED = 256
"""Spectra per forward pass where nothing is trained."""


@dataclass(frozen=True)
class LabelledSpectra:
    """``flux [n, m]`` and ``error [n, m]`` (None without), normalised; ``labels [n, q]``, in their own units."""

    flux: Tensor
    error: Tensor | None
    labels: Tensor

    @classmethod
    def read(
        cls, survey: Survey, rows: np.ndarray, names: Sequence[str], bad_pixels: str, normalise: str
    ) -> "LabelledSpectra":
        """Read chosen spectra whole; ascending row numbers.

        Raises:
            DataError: a label is missing or unknown for one of them, or a pixel is bad where none may be.
        """
        with SpectraReader(survey, rows, bad_pixels, normalise) as reader:
            block = reader.block(0, len(rows))
        labels = np.stack([survey.label(name)[0][rows] for name in names], 1)
        if not np.isfinite(labels).all():
            row = int(rows[np.flatnonzero(~np.isfinite(labels).all(1))[0]])
            raise DataError(f"{survey.path}: row {row} lacks one of the labels {', '.join(names)}; name others")
        error = None if block.error is None else torch.from_numpy(block.error)
        return cls(torch.from_numpy(block.flux), error, torch.from_numpy(labels).float())

    def noisier(self, factor: float, seed: int) -> Tensor:
        """Return flux whose noise is ``factor`` times as large: what is missing is added from the errors.

        Raises:
            DataError: the survey has no errors and the factor is not 1.
        """
        if factor == 1:
            return self.flux
        if self.error is None:
            raise DataError(f"noise {factor} times as large needs an error array in the survey, or set noise: [1]")
        draws = torch.randn(self.flux.shape, generator=generator(seed, "test noise", round(factor * 1000)))
        sigma = torch.where(torch.isfinite(self.error), self.error, 0.0)
        return self.flux + (factor**2 - 1) ** 0.5 * sigma * draws


@dataclass(frozen=True)
class Course:
    """``epochs`` of batches of ``batch_size``, the learning rate falling to zero as a half cosine from ``lr``."""

    epochs: int
    freeze_qk_epochs: int
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05


def nmse(predicted: Tensor, labels: Tensor) -> list[float]:
    """Return for each label ``[n, q]`` the mean squared error over its variance among these spectra."""
    squares = (predicted.double() - labels.double()).square().mean(0)
    return (squares / labels.double().var(0, correction=0)).tolist()


@torch.no_grad()
def predict(model: SpectrumViT, flux: Tensor) -> Tensor:
    """Return standardised labels of spectra ``[n, m]``."""
    model.eval()
    return torch.cat([model(part) for part in flux.split(EVALUATED)])


def train_arm(
    arm: str, model: SpectrumViT, train: LabelledSpectra, val: LabelledSpectra, course: Course, seed: int
) -> list[list[float]]:
    """Train in place by squared error of standardised labels.

    Returns:
        NMSE of each label on ``val`` after each epoch, ``[epochs][q]``.
    """
    mean, deviation = standard(train.labels)
    target = (train.labels - mean) / deviation
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=course.weight_decay, fused=True
    )
    schedule = FreezeSchedule(course.freeze_qk_epochs if freezes(arm) else 0)
    per_epoch = -(-len(target) // course.batch_size)
    n_steps, step, history = course.epochs * per_epoch, 0, []
    for epoch in range(course.epochs):
        schedule.start_epoch(model, epoch)
        model.train()
        order = torch.randperm(len(target), generator=generator(seed, "arm order", epoch))
        for chosen in order.split(course.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = course.lr * 0.5 * (1 + cos(pi * step / n_steps)) * min(1.0, (step + 1) / per_epoch)
            loss = functional.mse_loss(model(train.flux[chosen]), target[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
            step += 1
        history.append(nmse(predict(model, val.flux) * deviation + mean, val.labels))
    return history


def standard(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each label ``[q]``.

    Raises:
        DataError: a label that is the same for all.
    """
    mean, deviation = labels.mean(0), labels.std(0)
    if not (deviation > 0).all():
        raise DataError("a label is the same for all training spectra; name others")
    return mean, deviation


def judge_arm(
    model: SpectrumViT, train: LabelledSpectra, test: LabelledSpectra, factors: Sequence[float], seed: int
) -> dict[str, Any]:
    """Return NMSE on ``test``, mean over labels and for each, by factor of the noise."""
    mean, deviation = standard(train.labels)
    found = {}
    for factor in factors:
        values = nmse(predict(model, test.noisier(factor, seed)) * deviation + mean, test.labels)
        found[f"{factor:g}"] = {"nmse": sum(values) / len(values), "by_label": values}
    return found
