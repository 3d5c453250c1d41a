"""Mean, scatter and range of rows; the standardization they define; rows seen through it."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.batches import Batches, ColumnBlocks
from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.linalg.accumulate import ShiftedGram, refuse_nonfinite, row_blocks, zero_rows
from eigenloom.progress import Progress
from eigenloom.store.snapshots import Snapshots

logger = logging.getLogger("eigenloom")
WARN_SHIFT, REFUSE_SHIFT, REFUSE_SPREAD = 0.2, 2.0, 4.0
STANDARDIZATIONS = ("standard", "center", "none")


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact sums of ``n_rows`` rows of one layer, mergeable.

    Fields: ``mean [d]`` float64; ``scatter [d, d]`` float64, ``sum (x - mean)(x - mean)^T``; ``minimum [d]`` and
    ``maximum [d]`` float32; ``n_nonfinite`` counts entries that were NaN or infinite.
    """

    n_rows: int
    mean: Tensor
    scatter: Tensor
    minimum: Tensor
    maximum: Tensor
    n_nonfinite: int = 0

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return self.mean.shape[0]

    @property
    def variance(self) -> Tensor:
        """Population variance ``[d]``, float64."""
        return self.scatter.diagonal() / self.n_rows

    def arrays(self) -> dict[str, Tensor]:
        """Return the tensor fields, as the ``moments`` artifact stores them."""
        return {name: getattr(self, name) for name in ("mean", "scatter", "minimum", "maximum")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> "Moments":
        """Undo ``arrays``; the counts are the artifact's parameters ``n_rows`` and ``n_nonfinite``."""
        return cls(n_rows=parameters["n_rows"], n_nonfinite=parameters["n_nonfinite"], **arrays)

    def standardized(self, standardization: "Standardization") -> "Moments":
        """Return the moments of ``standardization.apply(rows)``; its float32 mean and scale are what counts."""
        mean, scale = (t.float().double() for t in (standardization.mean, standardization.scale))
        return Moments(
            n_rows=self.n_rows,
            mean=(self.mean - mean) / scale,
            scatter=self.scatter / torch.outer(scale, scale),
            minimum=standardization.apply(self.minimum),
            maximum=standardization.apply(self.maximum),
            n_nonfinite=self.n_nonfinite,
        )


@dataclass(frozen=True, eq=False)
class Standardization:
    """``(x - mean) / scale`` with moments of the fitting split; part of every basis and of every digest.

    Fields: ``kind`` (``standard``, ``center``, ``none``), ``layer`` (config name, empty where there is none),
    ``mean [d]`` and ``scale [d]`` float64.
    """

    kind: str
    layer: str
    mean: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, n_features: int, layer: str = "") -> "Standardization":
        """Return the one that changes nothing; its mean and scale are one number each, expanded to any length."""
        zero = torch.zeros(1, dtype=torch.float64)
        return cls("none", layer, zero.expand(n_features), torch.ones_like(zero).expand(n_features))

    @classmethod
    def from_moments(cls, moments: Moments, kind: str = "standard", layer: str = "") -> "Standardization":
        """Derive mean and population standard deviation; a constant feature gets scale 1.

        A feature is constant when its deviation is at most ``8 * 2^-23 * |mean|``.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in STANDARDIZATIONS:
            raise ConfigError(f"standardize: {kind!r} is unknown; use one of {', '.join(STANDARDIZATIONS)}")
        if kind == "none":
            return cls.identity(moments.n_features, layer)
        scale = torch.ones_like(moments.mean)
        if kind == "standard":
            std = moments.variance.clamp_min(0).sqrt()
            constant = std <= 8 * torch.finfo(torch.float32).eps * moments.mean.abs()
            scale = torch.where(constant, scale, std)
        return cls(kind, layer, moments.mean.clone(), scale)

    @property
    def digest(self) -> str:
        """sha256 hex of version tag, kind, layer, width and the little-endian float64 bytes of mean and scale."""
        head = f"eigenloom.standardization/1\x00{self.kind}\x00{self.layer}\x00{self.mean.shape[0]}\x00".encode()
        hasher = hashlib.sha256(head)
        for tensor in (self.mean, self.scale):
            for part in tensor.split(1 << 16):  # rows of millions are digested in little memory
                hasher.update(part.to(torch.float64).cpu().numpy().astype("<f8").tobytes())
        return hasher.hexdigest()

    def apply(self, x: Tensor) -> Tensor:
        """Standardize rows ``[b, d]`` of any float dtype; float32 on the same device."""
        x = x.to(torch.float32)
        if self.kind == "none":
            return x
        return (x - self.mean.to(x.device, torch.float32)) / self.scale.to(x.device, torch.float32)

    def invert(self, x: Tensor) -> Tensor:
        """Undo ``apply``: rows ``[b, d]`` back in the units they were recorded in, float32."""
        x = x.to(torch.float32)
        if self.kind == "none":
            return x
        return x * self.scale.to(x.device, torch.float32) + self.mean.to(x.device, torch.float32)


@dataclass(frozen=True, eq=False)
class StandardizedRows:
    """Rows seen through a standardization: a ``Batches`` over another one.

    ``moments`` are those of the *raw* rows, when known; fits use them instead of a pass of their own.
    """

    rows: Batches
    standardization: Standardization
    moments: Moments | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows.n_rows

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return self.rows.n_features

    def __iter__(self) -> Iterator[Tensor]:
        """Yield standardized batches in stored order."""
        return (self.standardization.apply(batch) for batch in self.rows)

    def shuffled(self, generator: torch.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
        """Yield standardized batches in the order of the rows' own shuffle."""
        return (self.standardization.apply(batch) for batch in self.rows.shuffled(generator, skip_rows))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` distinct standardized rows."""
        return self.standardization.apply(self.rows.sample(n, generator))

    def locate(self, row: int, feature: int) -> str:
        """Name a place the way the rows themselves do; empty where they cannot."""
        locate = getattr(self.rows, "locate", None)
        return locate(row, feature) if locate is not None else ""


def standardization_of(batches: Batches | ColumnBlocks) -> Standardization:
    """Return the standardization that rows come through; the identity for plain ones."""
    if isinstance(batches, StandardizedRows):
        return batches.standardization
    return Standardization.identity(batches.n_features)


def moments_of(batches: Batches) -> Moments | None:
    """Return the raw moments that come with standardized rows, None where nobody has computed them."""
    return batches.moments if isinstance(batches, StandardizedRows) else None


def moments_of_rows(
    batches: Batches,
    *,
    device: torch.device | str = "cpu",
    rows_per_example: int = 0,
    snapshots: Snapshots | None = None,
    progress: Progress | None = None,
    visit: Callable[[ShiftedGram], bool] = lambda gram: False,
    carried: dict[str, Tensor] | None = None,
) -> Moments:
    """Accumulate moments in one pass; their bytes do not depend on how the rows are cut into batches.

    Args:
        batches: the rows; walked once, and again only to say where a NaN is.
        device: where products are formed.
        rows_per_example: when given, an example whose rows are all exactly zero is refused.
        snapshots: an entered context to resume from and save to, block by block.
        progress: bar of rows.
        visit: called after every block; True ends the pass early.
        carried: tensors of the visitor that travel with the snapshots; updated in place on resume.

    Raises:
        DataError: NaN or Inf (place and count), an example that was never written, squares that overflow.
        Interrupted: a SIGTERM arrived and the state was saved.
    """
    gram, carried = ShiftedGram(batches.n_features, device), {} if carried is None else carried
    if rows_per_example:
        carried["zero_rows"] = torch.zeros(-(-batches.n_rows // rows_per_example), dtype=torch.int64)
    if snapshots is not None and (saved := snapshots.load()) is not None:
        gram.restore(saved[0], saved[1]["rows"])
        carried.update((name, saved[0][name]) for name in carried)
    stream = (progress or Progress()).track(batches, "moments", batches.n_rows)
    for block in row_blocks(stream, skip_rows=gram.n_rows, device=device):
        if rows_per_example:
            examples = (gram.n_rows + zero_rows(block)) // rows_per_example
            carried["zero_rows"] += torch.bincount(examples, minlength=len(carried["zero_rows"]))
        gram.add(block)
        if not (block.is_cuda or gram.finite()) or visit(gram):
            break
        if snapshots is not None and snapshots.due():
            snapshots.tick({**gram.state(), **carried}, {"rows": gram.n_rows})
    if not gram.finite():
        refuse_nonfinite(batches)
    if rows_per_example and (empty := carried["zero_rows"] == rows_per_example).any():
        example = int(empty.byte().argmax())
        locate = getattr(batches, "locate", lambda row, feature: f"example {example}")
        raise DataError(
            f"{locate(example * rows_per_example, 0)}: all {rows_per_example} rows of this example are exactly zero: "
            "preallocated and never written; record this shard again"
        )
    mean, scatter = gram.mean_and_scatter()
    return Moments(gram.n_rows, mean, scatter, gram.minimum.cpu(), gram.maximum.cpu())


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both sets of rows together (Chan, Golub & LeVeque 1983), in float64."""
    n_rows = a.n_rows + b.n_rows
    delta = b.mean - a.mean
    return Moments(
        n_rows=n_rows,
        mean=a.mean + delta * (b.n_rows / n_rows),
        scatter=a.scatter + b.scatter + torch.outer(delta, delta) * (a.n_rows * b.n_rows / n_rows),
        minimum=torch.minimum(a.minimum, b.minimum),
        maximum=torch.maximum(a.maximum, b.maximum),
        n_nonfinite=a.n_nonfinite + b.n_nonfinite,
    )


def denominator(evaluation: Moments, mean: Tensor, scale: Tensor | None = None) -> float:
    """Return the mean squared distance of the evaluation rows from ``mean [d]``: what an NMSE is divided by.

    Args:
        evaluation: raw moments of the rows that are reconstructed.
        mean: raw mean of the fitting rows; ``evaluation.mean`` gives the published variant.
        scale: scale ``[d]`` of the fitted space; None for raw units.
    """
    terms = evaluation.variance + (evaluation.mean - mean.double()) ** 2
    return (terms if scale is None else terms / scale.double() ** 2).sum().item()


def agreement(first_rows: Tensor, standardization: Standardization, allow_shift: bool = False) -> tuple[float, float]:
    """Compare raw rows ``[b, d]`` with the standardization they are about to pass through.

    A net for what signatures miss: another layer, another preprocessing, units already standardized. Nothing is
    enforced where the standardization has no scale of its own (``center``, ``none``).

    Returns:
        ``shift``, the median over features of ``|mean_new - mean| / scale``, and ``spread``, the median ratio of
        standard deviations.

    Raises:
        MismatchError: shift above 2 or spread outside [1/4, 4], unless ``allow_shift``.
    """
    rows = first_rows.double().cpu()
    scale = standardization.scale
    shift = float(np.median(((rows.mean(0) - standardization.mean).abs() / scale).numpy()))
    spread = float(np.median((rows.std(0, correction=0) / scale).numpy()))
    found = (
        f"the first {len(rows)} rows against the fitted standardization {standardization.digest[:8]}: shift "
        f"{shift:.3g}, spread {spread:.3g}"
    )
    logger.info("%s", found)
    if standardization.kind != "standard":
        return shift, spread
    if (shift > REFUSE_SHIFT or not 1 / REFUSE_SPREAD <= spread <= REFUSE_SPREAD) and not allow_shift:
        raise MismatchError(
            f"{found}: these rows are not of the recording the basis was fitted on (another layer, model, "
            "preprocessing or unit); fit on this recording, or set allow_shift: true"
        )
    if shift > WARN_SHIFT:
        logger.warning("%s: more than %s; is this the layer the basis was fitted on?", found, WARN_SHIFT)
    return shift, spread
