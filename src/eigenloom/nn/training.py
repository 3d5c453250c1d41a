"""Train the small vision transformer to label patches, so that its activations mean something."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenloom.batches import generator
from eigenloom.errors import DataError
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

AUGMENT_SD = 0.2
LOG_EVERY = 50

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainingSettings:
    """How long and on what scale: steps, images per step, warm-up steps, gradient clip, weight of void patches."""

    steps: int = 1600
    batch_size: int = 32
    warmup: int = 50
    clip: float = 1.0
    void_weight: float = 0.3

    def rate(self, step: int) -> float:
        """Return the share of the peak learning rate at a step: linear rise, then a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


@dataclass(frozen=True)
class LabeledPatches:
    """Images cut into patches float32 ``[n, P, 3 patch^2]``, with one label per patch, int64 ``[n, P]``."""

    patches: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Bar:
    """What a trained network must reach on validation: patch accuracy, mean recall over the classes, or a loss.

    With ``below_prior`` the mean loss must lie below that of predicting the frequencies of the training labels.
    """

    accuracy: float = 0.0
    recall: float = 0.0
    below_prior: bool = False

    def check(self, scores: Mapping[str, float]) -> None:
        """Refuse a network below the bar.

        Raises:
            DataError: with every number and its bar.
        """
        missed = scores["accuracy"] < self.accuracy or scores["recall"] < self.recall
        if missed or (self.below_prior and scores["loss"] >= scores["prior_loss"]):
            bar = f"accuracy >= {self.accuracy}, recall >= {self.recall}"
            bar += ", loss below that of the label prior" if self.below_prior else ""
            said = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            raise DataError(f"the trained network misses its bar on fit_val: {said}; needed: {bar}; train longer")


@dataclass
class History:
    """Training loss and learning rate at every logged step."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def csv(self) -> str:
        """Format as CSV."""
        rows = zip(self.steps, self.losses, self.rates, strict=True)
        return "step,loss,lr\n" + "".join(f"{step},{loss!r},{rate!r}\n" for step, loss, rate in rows)


def train(
    config: ViTConfig,
    data: LabeledPatches,
    optimizer: OptimizerFactory,
    settings: TrainingSettings,
    *,
    void: int = 0,
    seed: int,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    identity: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> tuple[SmallViT, History]:
    """Train on patches with cross-entropy; the result is a function of the arguments and torch's thread count.

    Args:
        config: shape of the network.
        data: the training images.
        optimizer: makes the optimizer; the learning rate of each of its groups is the peak.
        settings: lengths and weights.
        void: the label that weighs ``void_weight``.
        seed: of weights, batches and augmentation.
        device: where it runs.
        resume: file for snapshots; an interrupted training called again with it ends with the same weights.
        identity: what the snapshot must belong to.
        progress: bar and history.

    Returns:
        The trained network in evaluation mode, and its history.

    Raises:
        Interrupted: SIGTERM arrived and the state was saved.
    """
    progress = progress or Progress()
    model = SmallViT(config, seed).to(device).train()
    stepper = optimizer(model)
    peaks = [group["lr"] for group in stepper.param_groups]
    weight = torch.ones(config.n_labels, device=device)
    weight[void] = settings.void_weight
    history = History()
    with Snapshots(resume, dict(identity or {})) as snapshots:
        start = 0
        if (saved := snapshots.load()) is not None:
            _restore(saved[0], model, stepper, history)
            start = saved[1]["step"]
        for step in range(start, settings.steps):
            for group, peak in zip(stepper.param_groups, peaks, strict=True):
                group["lr"] = peak * settings.rate(step)
            patches, labels = draw_batch(data, config, settings.batch_size, seed, step)
            logits = model.label(patches.to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), labels.to(device).flatten(), weight=weight)
            stepper.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            stepper.step()
            if step % LOG_EVERY == 0 or step == settings.steps - 1:
                history.steps.append(step)
                history.losses.append(loss.item())
                history.rates.append(stepper.param_groups[0]["lr"])
                progress.log("train", step, loss=history.losses[-1], lr=history.rates[-1])
            if snapshots.due():
                snapshots.tick(_state(model, stepper, history), {"step": step + 1})
    return model.eval(), history


def draw_batch(data: LabeledPatches, config: ViTConfig, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Draw and augment the batch of a step: patches ``[b, P, f]``, labels ``[b, P]``.

    Images are shifted cyclically by whole patches, labels with them, and every channel gets a random gain and
    offset. Everything comes from ``(seed, step)``.
    """
    source = generator(seed, "training batch", step)
    rows, columns = config.grid
    chosen = torch.randint(len(data.patches), (batch_size, 1), generator=source)
    down = torch.randint(rows, (batch_size, 1, 1), generator=source)
    right = torch.randint(columns, (batch_size, 1, 1), generator=source)
    row, column = torch.arange(rows).view(1, -1, 1), torch.arange(columns).view(1, 1, -1)
    places = (((row - down) % rows) * columns + (column - right) % columns).flatten(1)
    gain = 1 + AUGMENT_SD * torch.randn(batch_size, 1, 3, 1, generator=source)
    offset = AUGMENT_SD * torch.randn(batch_size, 1, 3, 1, generator=source)
    patches = data.patches[chosen, places].unflatten(2, (3, -1)).mul_(gain).add_(offset).flatten(2)
    return patches, data.labels[chosen, places]


@torch.inference_mode()
def score(
    model: SmallViT, data: LabeledPatches, prior: Tensor, void: int = 0, batch_size: int = 100
) -> dict[str, float]:
    """Measure patch accuracy, mean recall over the classes other than void, mean loss, and the loss of a prior.

    Args:
        model: trained.
        data: validation images.
        prior: frequencies of the training labels ``[n_labels]``.
        void: the label that recall leaves out.
        batch_size: images at a time.
    """
    device = next(model.parameters()).device
    logits = torch.cat([model.label(part.to(device)).cpu() for part in data.patches.split(batch_size)]).flatten(0, 1)
    labels = data.labels.flatten()
    right = logits.argmax(1) == labels
    classes = [label for label in labels.unique().tolist() if label != void]
    recalls = [right[labels == label].double().mean().item() for label in classes]
    return {
        "accuracy": right.double().mean().item(),
        "recall": sum(recalls) / max(1, len(recalls)),
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "prior_loss": -prior.clamp_min(1e-12).log()[labels].mean().item(),
    }


def _state(model: SmallViT, stepper: torch.optim.Optimizer, history: History) -> dict[str, Tensor]:
    """Collect everything a training is resumed from; every entry of an optimizer's state must be a tensor."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entries in stepper.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    tensors["history.steps"] = torch.tensor(history.steps)
    tensors["history.values"] = torch.tensor([history.losses, history.rates], dtype=torch.float64)
    return tensors


def _restore(tensors: Mapping[str, Tensor], model: SmallViT, stepper: torch.optim.Optimizer, history: History) -> None:
    """Undo ``_state``."""
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".", 2)
            state.setdefault(int(index), {})[entry] = tensor
    stepper.load_state_dict({**stepper.state_dict(), "state": state})
    history.steps[:] = tensors["history.steps"].tolist()
    history.losses[:], history.rates[:] = tensors["history.values"].tolist()
