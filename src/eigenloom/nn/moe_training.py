"""Train the small mixture of experts, and judge what it predicts."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.nn.moe import SmallMoE
from eigenloom.nn.training import Schedule
from eigenloom.progress import Progress

SILENT = Progress()
LOG_EVERY = 100


@dataclass(frozen=True)
class MoETraining:
    """How to train.

    Fields: ``steps`` of ``batch_size`` images; ``lr`` at its peak, after ``warmup`` steps and before a half cosine to
    zero; ``weight_decay`` of all matrices per unit of learning rate; ``noise``, deviation of what is added to pixels;
    ``label_smoothing``; ``balance``, weight of the load-balance loss.
    """

    steps: int = 600
    batch_size: int = 128
    lr: float = 0.003
    warmup: int = 50
    weight_decay: float = 0.1
    noise: float = 0.1
    label_smoothing: float = 0.05
    balance: float = 0.01

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: nothing to train, or a negative number.
        """
        if min(self.steps, self.batch_size) < 1 or min(asdict(self).values()) < 0:
            raise ConfigError(f"training: steps and batch_size must be at least 1, all else at least 0: {asdict(self)}")

    @property
    def schedule(self) -> Schedule:
        """Steps, batches and the course of the learning rate."""
        return Schedule(self.steps, self.batch_size, min(self.warmup, self.steps))


def train_moe(
    model: SmallMoE, x: Tensor, y: Tensor, training: MoETraining, *, seed: int, progress: Progress = SILENT
) -> Tensor:
    """Train in place by AdamW (Loshchilov & Hutter 2019) on smoothed cross-entropy and the load-balance loss.

    Args:
        model: on the CPU; a training takes seconds and keeps no unfinished work.
        x: float32 ``[n, n_inputs]``.
        y: int64 ``[n]``.
        training: how.
        seed: of order and noise.
        progress: bar and history.

    Returns:
        The loss of every step, float32 ``[steps]``.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, weight_decay=training.weight_decay, fused=True)
    losses = torch.zeros(training.steps)
    schedule, size = training.schedule, training.batch_size
    n_passes = -(-training.steps * size // len(x))
    order = torch.cat([torch.randperm(len(x), generator=generator(seed, "moe order", i)) for i in range(n_passes)])
    model.train()
    batches = (order[step * size : (step + 1) * size] for step in range(training.steps))
    for step, chosen in enumerate(progress.track(batches, "train", training.steps * size)):
        noise = torch.randn(len(chosen), x.shape[1], generator=generator(seed, "moe noise", step))
        for group in optimizer.param_groups:
            group["lr"] = training.lr * schedule.rate(step)
        logits, balance = model.balanced(x[chosen] + training.noise * noise)
        loss = functional.cross_entropy(logits, y[chosen], label_smoothing=training.label_smoothing)
        loss = loss + training.balance * balance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        if (step + 1) % LOG_EVERY == 0:
            progress.log("train", step + 1, loss=float(losses[step + 1 - LOG_EVERY : step + 1].mean()))
    model.eval()
    return losses


@dataclass(frozen=True)
class Judgement:
    """On test images: share predicted right; mean negative log-likelihood in nats; mean divergence from the original.

    ``kl`` is ``KL(original || this)`` of the predicted classes, in nats; 0 for the original itself.
    """

    accuracy: float
    nll: float
    kl: float


@torch.no_grad()
def judge_logits(logits: Tensor, y: Tensor, original: Tensor) -> Judgement:
    """Compare logits ``[n, n_labels]`` with labels ``[n]`` and with those of the original network, in float64."""
    found, base = logits.double().log_softmax(-1), original.double().log_softmax(-1)
    accuracy = (logits.argmax(-1) == y).double().mean()
    kl = (base.exp() * (base - found)).sum(-1).mean()
    return Judgement(float(accuracy), float(functional.nll_loss(found, y)), float(kl))
