"""A small Top-K sparse autoencoder, fitted like any other basis: what classical bases are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from eigenloom.bases.base import SILENT
from eigenloom.bases.projection import known_moments, refuse_constant
from eigenloom.bases.sae_settings import Settings
from eigenloom.bases.sae_training import State, Trainer
from eigenloom.bases.sparse_code import SparseCode, random_code
from eigenloom.batches import Batches, generator
from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import BLOCK_ROWS, row_blocks
from eigenloom.moments import Moments, Standardization, moments_of_rows, standardization_of
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

SAMPLE_ROWS = 4096


@final
@dataclass(frozen=True, eq=False)
class SparseAutoencoder(SparseCode):
    """Unit elements, an encoder of their own, and codes of at most ``n_active`` entries.

    Fields: ``history [passes, 3]`` float64: per pass over the rows the share of variance unexplained while training,
    entries per row, and dead elements at its end; ``parameters``, those of ``sae_settings.Settings``, and the seed.
    """

    kind: ClassVar[str] = "sae"

    history: Tensor
    parameters: dict[str, Any]

    @classmethod
    def fit(
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        **parameters: Any,
    ) -> Self:
        """Fit to shuffled mini-batches; see ``Basis.fit`` and, for ``parameters``, ``sae_settings.Settings``."""
        settings = Settings.parse(parameters)
        device, standardization = torch.device(device), standardization_of(batches)
        if batches.n_rows < 2:
            raise DataError(f"{batches.n_rows} row has no variance to fit a basis to; at least 2 are needed")
        if batches.n_rows < settings.n_components:
            raise DataError(
                f"{batches.n_rows} rows cannot carry n_components: {settings.n_components}; record more or lower it"
            )
        identity = {
            "kind": cls.kind,
            "seed": seed,
            "parameters": settings.as_parameters(),
            "rows": [batches.n_rows, batches.n_features],
            "standardization": standardization.digest,
            "block": BLOCK_ROWS,
        }
        with Snapshots(resume, identity) as snapshots:
            saved = snapshots.load()
            if saved is None or "step" not in saved[1]:
                moments = known_moments(batches)
                if moments is None:
                    moments = moments_of_rows(batches, device=device, snapshots=snapshots, progress=progress)
                refuse_constant(moments)
                center, scale, varying = _space(moments)
                state, step = _start(batches, settings, center, scale, varying, seed, device), 0
            else:
                state, step = State.restored(saved[0], device), saved[1]["step"]
                center, scale = saved[0]["center"], float(saved[0]["scale"])
            _train(batches, settings, state, step, center, scale, seed, device, snapshots, progress)
        return cls._of(state, settings, center, scale, standardization, seed)

    @classmethod
    def _of(
        cls, state: State, settings: Settings, center: Tensor, scale: float, standardization: Standardization, seed: int
    ) -> Self:
        """Go back from centred and scaled rows: codes grow with the rows, elements keep unit length."""
        bias = center + scale * state.bias.cpu()
        return cls(
            standardization=standardization,
            center=bias,
            encoder=state.encoder.cpu(),
            encoder_bias=scale * state.encoder_bias.cpu(),
            threshold=torch.zeros(settings.n_components),
            decoder=state.decoder.cpu(),
            decoder_bias=bias.clone(),
            activation="topk",
            n_active=settings.n_active,
            history=state.history,
            parameters={"seed": seed, **settings.as_parameters()},
        )


def _space(moments: Moments) -> tuple[Tensor, float, Tensor]:
    """Return the mean ``[d]`` and the root mean variance by which rows are moved, and which features vary."""
    varying = moments.minimum < moments.maximum
    center = torch.where(varying, moments.mean.float(), moments.minimum)
    return center, float(moments.variance.mean().sqrt()), varying


def _start(
    batches: Batches,
    settings: Settings,
    center: Tensor,
    scale: float,
    varying: Tensor,
    seed: int,
    device: torch.device,
) -> State:
    """Draw the elements; the encoder is theirs, times the number that reconstructs a sample best."""
    sample = batches.sample(min(SAMPLE_ROWS, batches.n_rows), generator(seed, "reservoir"))
    drawn = random_code(
        (sample - center) / scale, varying, settings.n_components, seed=seed, n_active=settings.n_active
    )
    return State.start(drawn["encoder"], drawn["decoder"], device)


def _train(
    batches: Batches,
    settings: Settings,
    state: State,
    step: int,
    center: Tensor,
    scale: float,
    seed: int,
    device: torch.device,
    snapshots: Snapshots,
    progress: Progress,
) -> None:
    """Walk the rows, each pass in an order of its own, until the steps are used up."""
    trainer = Trainer(settings, state)
    size = settings.batch_size
    per_pass = -(-batches.n_rows // size)
    moved = center.to(device)
    while step < settings.steps:
        number, at = divmod(step, per_pass)
        stream = batches.shuffled(generator(seed, "shuffle", number), skip_rows=at * size)
        blocks = row_blocks(stream, device=device, block_rows=size)
        left = batches.n_rows - at * size
        for rows in progress.track(blocks, f"pass {number}", left):
            trainer.step((rows - moved) / scale, step)
            step += 1
            if step % per_pass == 0 or step == settings.steps:
                trainer.close_pass(min(batches.n_rows, (step - number * per_pass) * size))
                _log(progress, state, number)
            if snapshots.due():
                own = {"center": center, "scale": torch.tensor(scale, dtype=torch.float64)}
                snapshots.tick({**state.tensors(), **own}, {"step": step})
            if step == settings.steps:
                break


def _log(progress: Progress, state: State, number: int) -> None:
    """Report the last line of the history."""
    nmse, l0, dead = state.history[-1].tolist()
    progress.log("sae", number, nmse=nmse, l0=l0, dead=dead)
