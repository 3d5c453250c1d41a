"""A fair race of optimizers: equal tasks for all, learning rates swept until the best is inside, seeds paired.

A task is a network, data and a schedule; an optimizer is a function from the network. Losses are a function of the
seed; CPU seconds spent in ``step`` are kept apart, so that losses stay reproducible bytes.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.nn.char_gpt import Characters, CharGPT, mean_loss
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.segmentation import judge
from eigenloom.nn.training import MakeOptimizer, Schedule, train
from eigenloom.nn.vit import SmallViT, ViTConfig

FACTOR = 2.0
"""Neighbouring learning rates of a sweep."""


@dataclass(frozen=True)
class Outcome:
    """One training: losses by step ``[steps]``, validation loss, CPU seconds of the optimizer by step ``[steps]``."""

    losses: Tensor
    loss: float
    seconds: Tensor


class Task(Protocol):
    """Something to train."""

    def run(self, make_optimizer: MakeOptimizer, seed: int) -> Outcome:
        """Train from the initial weights of ``seed`` on the data in the order of ``seed``."""
        ...


class Stopwatch:
    """CPU seconds of this process spent in an optimizer's ``step``, by its hooks."""

    def __init__(self, make_optimizer: MakeOptimizer):
        """Wrap a factory; call the stopwatch instead of it."""
        self._make = make_optimizer
        self._seconds: list[float] = []
        self._began = 0.0

    def __call__(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer and listen to it."""
        optimizer = self._make(module)
        optimizer.register_step_pre_hook(self._start)
        optimizer.register_step_post_hook(self._stop)
        return optimizer

    @property
    def seconds(self) -> Tensor:
        """Seconds of each step so far, float64 ``[steps]``."""
        return torch.tensor(self._seconds, dtype=torch.float64)

    def _start(self, *_: Any) -> None:
        self._began = time.process_time()

    def _stop(self, *_: Any) -> None:
        self._seconds.append(time.process_time() - self._began)


@dataclass(frozen=True)
class PatchTask:
    """Label the patches of the embedded images with a small ViT."""

    train: LabelledPatches
    val: LabelledPatches
    config: ViTConfig
    schedule: Schedule

    def run(self, make_optimizer: MakeOptimizer, seed: int) -> Outcome:
        """See ``Task``."""
        model, watch = SmallViT(self.config, seed), Stopwatch(make_optimizer)
        losses = train(model, self.train, self.schedule, watch, seed=seed)
        found = judge(model, self.train, self.val, self.schedule.void_weight)
        return Outcome(losses, found.loss, watch.seconds)


@dataclass(frozen=True)
class TextTask:
    """Predict the next character of Python's help texts with a small causal transformer."""

    text: Characters
    width: int
    depth: int
    heads: int
    context: int
    schedule: Schedule

    def run(self, make_optimizer: MakeOptimizer, seed: int) -> Outcome:
        """See ``Task``."""
        shape = (len(self.text.alphabet), self.width, self.depth, self.heads, self.context)
        model, watch = CharGPT(*shape, seed=seed), Stopwatch(make_optimizer)
        optimizer = watch(model)
        peaks = [group["lr"] for group in optimizer.param_groups]
        losses = torch.zeros(self.schedule.steps)
        for step in range(self.schedule.steps):
            x, y = self.text.batch(self.schedule.batch_size, self.context, generator(seed, "text batch", step))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.schedule.rate(step)
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.schedule.clip:
                nn.utils.clip_grad_norm_(model.parameters(), self.schedule.clip)
            optimizer.step()
            losses[step] = loss.detach()
        return Outcome(losses, mean_loss(model, self.text.val), watch.seconds)


@dataclass(frozen=True)
class Sweep:
    """Losses by learning rate, and whether the best lies inside of what was tried."""

    losses: Mapping[float, float]

    @property
    def best(self) -> float:
        """The rate of the lowest loss."""
        return min(self.losses, key=lambda rate: (_finite(self.losses[rate]), rate))

    @property
    def is_interior(self) -> bool:
        """Whether a lower and a higher rate than the best were tried."""
        return min(self.losses) < self.best < max(self.losses)


def sweep(evaluate: Callable[[float], float], start: float, most: int) -> Sweep:
    """Try ``start`` and its neighbours by a factor of 2, and go on beyond the edge until the best is inside.

    Args:
        evaluate: learning rate -> loss; a loss that is not finite counts as infinite.
        start: where to begin.
        most: number of rates at which to give up.
    """
    found = Sweep({rate: evaluate(rate) for rate in (start / FACTOR, start, start * FACTOR)})
    while not found.is_interior and len(found.losses) < most:
        rate = found.best * FACTOR if found.best == max(found.losses) else found.best / FACTOR
        found = replace(found, losses={**found.losses, rate: evaluate(rate)})
    return found


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
