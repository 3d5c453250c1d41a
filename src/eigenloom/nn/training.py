"""Train the small ViT to label patches: data on the device, augmentation by indices, exact resume.

The optimizer is an argument: a function from the network to a ``torch.optim.Optimizer``. Everything random is a
function of ``(seed, purpose, step)``, so that a resumed training ends with the bytes of an undisturbed one, on the
same machine and with the same number of threads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.nn.patch_data import LabelledPatches
from eigenloom.nn.vit import SmallViT
from eigenloom.progress import Progress
from eigenloom.store.atomic import write_text
from eigenloom.store.snapshots import Snapshots

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
SILENT = Progress()
LOG_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    Fields: ``steps`` of ``batch_size`` images; ``warmup`` steps of linearly rising learning rate, then a half cosine
    to zero; ``clip``, the largest norm of the gradient (None: any); ``void_weight`` of void patches in the loss;
    ``gain_sd`` and ``offset_sd``, deviations of the random contrast and brightness of each channel.
    """

    steps: int
    batch_size: int
    warmup: int = 50
    clip: float | None = 1.0
    void_weight: float = 0.3
    gain_sd: float = 0.2
    offset_sd: float = 0.2

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: nothing to train, or a negative number.
        """
        if min(self.steps, self.batch_size) < 1:
            raise ConfigError(f"model: steps ({self.steps}) and batch_size ({self.batch_size}) must be at least 1")
        if min(self.warmup, self.void_weight, self.gain_sd, self.offset_sd) < 0 or (self.clip or 1.0) < 0:
            raise ConfigError("model: warmup, clip and void_weight must not be negative")

    def rate(self, step: int) -> float:
        """Return the factor of the peak learning rate at a step, in (0, 1]."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + cos(pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


def adamw(lr: float, betas: tuple[float, float] = (0.9, 0.98), weight_decay: float = 0.05) -> MakeOptimizer:
    """Return a factory of AdamW (Loshchilov & Hutter 2019); weights of linear layers decay, nothing else does."""

    def make(module: nn.Module) -> torch.optim.Optimizer:
        decayed = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
        others = [p for p in module.parameters() if not any(p is d for d in decayed)]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=True)

    return make


def train(
    model: SmallViT,
    data: LabelledPatches,
    schedule: Schedule,
    make_optimizer: MakeOptimizer,
    *,
    seed: int,
    resume: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    on_step: Callable[[int, SmallViT], None] | None = None,
    save_every_seconds: float = 30.0,
) -> Tensor:
    """Train in place by weighted cross-entropy over all patches.

    Args:
        model: on the device where it is trained; ``data`` is on the same.
        data: patches and their labels.
        schedule: steps, batches, learning rate, augmentation.
        make_optimizer: called once with the model.
        seed: of order and augmentation.
        resume: where unfinished work is kept, and resumed from.
        identity: what makes that work this work.
        progress: bar and history.
        on_step: called after each step with the number of steps done; a resumed training calls it again for the
            steps it repeats.
        save_every_seconds: how often to save.

    Returns:
        The loss of every step, float32 ``[steps]``, on the CPU.

    Raises:
        Interrupted: SIGTERM arrived; what was done is saved.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = data.label_weights(schedule.void_weight)
    losses = torch.zeros(schedule.steps, device=device)
    model.train()
    with Snapshots(resume, identity or {}, save_every_seconds) as snapshots:
        first = _restore(snapshots, model, optimizer, losses)
        batches = batches_of(len(data), schedule, seed, first)
        rows = (schedule.steps - first) * schedule.batch_size
        for step, chosen in enumerate(progress.track(batches, "train", rows), start=first):
            x, labels = augmented(data, chosen, schedule, generator(seed, "vit augmentation", step))
            rate = schedule.rate(step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            loss = functional.cross_entropy(model.label(x).flatten(0, 1), labels.flatten(), weight=weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if schedule.clip:
                nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimizer.step()
            losses[step] = loss.detach()
            if (step + 1) % LOG_EVERY == 0:
                recent = losses[step + 1 - LOG_EVERY : step + 1].mean()
                progress.log("train", step + 1, loss=float(recent), lr=peaks[0] * rate)
            if on_step is not None:
                on_step(step + 1, model)
            if snapshots.due():
                snapshots.tick(_state(model, optimizer, losses), {"step": step + 1})
    model.eval()
    return losses.cpu()


def batches_of(n: int, schedule: Schedule, seed: int, first: int = 0) -> Iterator[Tensor]:
    """Yield the image numbers ``[batch_size]`` of the steps from ``first`` on: one permuted pass after the other."""
    size = schedule.batch_size
    n_passes = -(-schedule.steps * size // n)
    order = torch.cat([torch.randperm(n, generator=generator(seed, "vit order", i)) for i in range(n_passes)])
    return (order[step * size : (step + 1) * size] for step in range(first, schedule.steps))


def augmented(
    data: LabelledPatches, chosen: Tensor, schedule: Schedule, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of some images, each moved round by whole patches, contrast and brightness changed."""
    n = len(chosen)
    shifts = [torch.randint(side, (n,), generator=draw) for side in data.grid]
    gain = 1 + schedule.gain_sd * torch.randn(n, 3, generator=draw)
    offset = schedule.offset_sd * torch.randn(n, 3, generator=draw)
    return data.batch(chosen, shifts, gain, offset)


def _state(model: SmallViT, optimizer: torch.optim.Optimizer, losses: Tensor) -> dict[str, Tensor]:
    """Collect everything a training is continued from; optimizers keep their state in tensors."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": tensor for name, tensor in entries.items()}
    return {**state, "losses": losses}


def _restore(snapshots: Snapshots, model: SmallViT, optimizer: torch.optim.Optimizer, losses: Tensor) -> int:
    """Continue from the snapshot if there is one; return the number of steps already done."""
    saved = snapshots.load()
    if saved is None:
        return 0
    tensors, position = saved
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, entry = name.split(".", 2)
            state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    losses.copy_(tensors["losses"])
    return int(position["step"])


def write_history(path: str | Path, losses: Tensor, schedule: Schedule, lr: float) -> dict[str, Any]:
    """Write ``step,lr,loss`` of every step as CSV; return bytes and sha256.

    Args:
        path: of the file.
        losses: float32 ``[steps]``.
        schedule: of the training.
        lr: the learning rate at its peak.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    rows = (f"{i + 1},{lr * schedule.rate(i):.9g},{loss:.9g}\n" for i, loss in enumerate(losses.tolist()))
    text = "step,lr,loss\n" + "".join(rows)
    return {"bytes": len(text.encode()), "sha256": write_text(path, text)}
