"""SRHT-PCA of checkpoints, with the files that only weights have: ``layout.json`` and ``errors.json``."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from eigenloom.bases.base import SILENT, save_basis
from eigenloom.bases.srht_pca import SRHTPCA
from eigenloom.progress import Progress
from eigenloom.provenance import file_digest
from eigenloom.sources.checkpoints import Checkpoints
from eigenloom.store.atomic import write_json

ERRORS_FORMAT = "eigenloom.weight-errors"
ERRORS_VERSION = 1
ERROR_KEYS = ("sample", "L2", "rel", "explained_variance", "rel_centred", "explained_variance_centred")
_ROUNDING = 2.0**-23
logger = logging.getLogger("eigenloom")


def fit_weights(
    checkpoints: Checkpoints,
    directory: str | Path,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    progress: Progress = SILENT,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    run: Callable[[], Mapping[str, Any]] = dict,
    **parameters: Any,
) -> SRHTPCA:
    """Fit to checkpoints and write the whole artifact; memory does not grow with their size.

    Args:
        checkpoints: at least ``n_components + 1`` of them; digests of the first pass go to their ledger.
        directory: of the artifact; ``components.npy`` and ``mean.npy`` grow there while the fit runs.
        seed: of the sketch, where one is drawn.
        device: where large products are formed.
        resume: file for snapshots; the same call continues, and ends with the same bytes.
        progress: bars.
        spec: parameters of the job.
        inputs: path -> sha256 of its input edges.
        run: called at the end for the facts of ``run.json``.
        parameters: those of ``SRHTPCA.fit``.

    Raises:
        DataError: NaN or Inf, or no more checkpoints than components.
        MismatchError: a checkpoint changed between two passes.
        Interrupted: a SIGTERM arrived and the state was saved.
    """
    directory = Path(directory)
    basis = SRHTPCA.fit(
        checkpoints, seed=seed, device=device, resume=resume, progress=progress,
        components_out=directory / "components.npy", **parameters,
    )  # fmt: skip
    samples = checkpoints.samples()
    for sample in samples:
        logger.info("%s: %d bytes, digest %s", sample["sample"], sample["bytes"], sample["sha256"])
    errors = {"format": ERRORS_FORMAT, "version": ERRORS_VERSION, "samples": error_records(basis, checkpoints.labels)}
    files = {
        **{name: file_digest(directory / name) for name in ("components.npy", "mean.npy")},  # read, not mapped
        "layout.json": write_json(directory / "layout.json", checkpoints.layout.document()),
        "errors.json": write_json(directory / "errors.json", errors),
    }
    origin = {
        "n_rows": checkpoints.n_rows,
        "n_features": checkpoints.n_features,
        "layout_hash": checkpoints.layout.digest,
        "samples": samples,
    }
    save_basis(basis, directory, spec=spec, inputs=inputs, run=run(), origin=origin, mapped=True, files=files)
    checkpoints.forget()
    return basis


def error_records(basis: SRHTPCA, labels: list[str]) -> list[dict[str, Any]]:
    """Say how well every fitted checkpoint is reconstructed.

    ``L2 = ||x - x_rec||``, ``rel = L2 / ||x||`` and ``explained_variance = 1 - rel^2`` are what others report; the mean
    alone makes the latter nearly 1. ``rel_centred`` and ``explained_variance_centred`` are the same against
    ``||x - mean||`` and say what the components add; null where a checkpoint equals the mean to float32 rounding.
    """
    records = []
    lengths = zip(basis.norms.tolist(), basis.centred_norms.tolist(), basis.residuals.tolist(), strict=True)
    for label, (norm, centred, left) in zip(labels, lengths, strict=True):
        rel = left / norm if norm > 0 else None
        rel_centred = left / centred if centred > _ROUNDING * norm else None
        shares = (None if r is None else 1 - r**2 for r in (rel, rel_centred))
        values = (label, left, rel, next(shares), rel_centred, next(shares))
        records.append(dict(zip(ERROR_KEYS, values, strict=True)))
    return records
