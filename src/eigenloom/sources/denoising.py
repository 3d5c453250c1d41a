"""Denoising of a survey by principal component pursuit: what spectra share, what hit them, and where.

The result is again a survey, in the same layout (``docs/format.md``), written by blocks and published whole or not at
all. ``pursuit`` says how spectra are split.
"""

import errno
import logging
import mmap
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from eigenloom.batches import generator
from eigenloom.linalg.pcp import pcp
from eigenloom.provenance import file_digest
from eigenloom.sources.pursuit import Pursuit, Whitened, column_median, options, row_errors
from eigenloom.sources.spectra import PIECE_BYTES, count_bad_pixels
from eigenloom.sources.survey import Survey, open_survey
from eigenloom.sources.survey_keys import NONE
from eigenloom.store.atomic import atomic_path, explained
from eigenloom.store.hdf5 import is_numeric, open_hdf5
from eigenloom.store.hdf5_reading import MatrixReader

SPARSE, HITS, MEDIAN = "pcp/sparse", "pcp/hits", "pcp/median"
IN_MEMORY = 1 << 28
"""Bytes of a flux array up to which it is decomposed in memory."""
MEDIAN_NUMBERS = 1 << 21
"""Flux values whose column median is subtracted: all spectra, or seeded ones where there are more."""
SLACK_BYTES = 1 << 18
logger = logging.getLogger("eigenloom")


def denoise_survey(
    survey: Survey | str | Path,
    out: str | Path,
    pursuit: Pursuit | None = None,
    *,
    seed: int = 0,
    bad_pixels: str = "refuse",
    work: str | Path | None = None,
    in_memory: bool | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """Write the denoised copy of a survey: low-rank flux under the same keys, sparse part, hits.

    Memory in blocks: beyond ``IN_MEMORY`` bytes, or with ``in_memory=False``, the survey is read again in every
    iteration, and two arrays of its size, and the parts, lie in ``work`` meanwhile. A killed run resumes from there.

    Args:
        survey: opened, or the path of one in the default layout.
        out: HDF5 file, ``{stem}.pcp.h5`` by habit; an older one stays until the new one is whole.
        pursuit: how; ``Pursuit()`` by default.
        seed: of the solver's starts and of the spectra whose median is subtracted (all, up to 2M values).
        bad_pixels: ``refuse`` them, or ``mask``: weight 0.
        work: folder for unfinished work; beside ``out`` by default. It is removed at the end.
        in_memory: whether the flux is held in memory; None decides by its size.
        digest: sha256 of the survey where it is known already.

    Returns:
        The attributes that were written, and ``hits``, their number.

    Raises:
        DataError: a bad pixel where none may be.
        StoreError: the survey cannot be read, the disk is full, or the folder cannot be written.
    """
    survey, out = survey if isinstance(survey, Survey) else open_survey(survey), Path(out)
    pursuit = pursuit or Pursuit()
    work = out.with_name(f".{out.name}.work") if work is None else Path(work)
    n, m = survey.flux.shape
    if in_memory is None:
        in_memory = n * m * 4 <= IN_MEMORY
    in_memory = in_memory or n < m  # a wide matrix is walked by columns, and is smaller than the square of its width
    bad = count_bad_pixels(survey, np.arange(n), bad_pixels, "none")
    scale, median = _scales(survey), _sampled_median(survey, seed)
    with ExitStack() as stack:
        x = Whitened(survey.flux, scale, median)
        stack.callback(x.close)
        weights = None
        if survey.error is not None:
            weights = Whitened(survey.error, scale, None)
            stack.callback(weights.close)
        if in_memory:
            held, weighed = x[:], None if weights is None else weights[:]
            low, sparse, history = pcp(held, **options(pursuit, (n, m), weighed, seed), resume=work)
        else:
            low, sparse, history = pcp(x, **options(pursuit, (n, m), weights, seed), out=work, resume=work / "state")
        facts = _facts(history, pursuit, digest or file_digest(survey.path), bad)
        parts = _blocks(survey, pursuit, (low, sparse), scale, median, history["noise_std"])
        hits = _write(survey, out, parts, median, facts, history["nnz"][-1] if history["nnz"] else 0)
    del low, sparse
    for name in ("L.npy", "S.npy"):
        (work / name).unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
    logger.info("denoised: rank %d, %s, gap %.2g, %d hits", facts["rank"], facts["status"], facts["gap"], hits)
    return {**facts, "hits": hits}


def _pieces(survey: Survey) -> Iterator[slice]:
    """Yield rows of about ``PIECE_BYTES``."""
    n, m = survey.flux.shape
    size = max(1, PIECE_BYTES // (m * 4))
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def _scales(survey: Survey) -> np.ndarray:
    """Return the median error of every spectrum, 1 where the file has none."""
    if survey.error is None:
        return np.ones(survey.n_spectra)
    found = []
    with MatrixReader(survey.error) as reader:
        for rows in _pieces(survey):
            piece = np.empty((rows.stop - rows.start, survey.n_pixels), np.float32)
            reader.read(rows.start, piece)
            found.append(row_errors(piece))
    return np.concatenate(found)


def _sampled_median(survey: Survey, seed: int) -> np.ndarray:
    """Return the median of the good pixels of all spectra, or of seeded ones, ``[m]``."""
    order = torch.randperm(survey.n_spectra, generator=generator(seed, "reservoir"))
    rows = np.sort(order[: max(1, MEDIAN_NUMBERS // survey.n_pixels)].numpy())
    flux = np.empty((len(rows), survey.n_pixels), np.float32)
    with MatrixReader(survey.flux, rows) as reader:
        reader.read(0, flux)
    if survey.error is not None:
        error = np.empty_like(flux)
        with MatrixReader(survey.error, rows) as reader:
            reader.read(0, error)
        flux[~(np.isfinite(error) & (error > 0))] = np.nan
    return column_median(flux)


def _facts(history: Mapping[str, Any], pursuit: Pursuit, digest: str, bad: Mapping[str, int]) -> dict[str, Any]:
    """Return the attributes of the file."""
    return {
        "lambda": history["lambda_"],
        "lambda_scale": pursuit.lambda_scale,
        "status": history["status"],
        "gap": history["gap"],
        "rank": history["rank"][-1] if history["rank"] else 0,
        "iterations": history["iters"],
        "noise_std": history["noise_std"],
        "threshold": pursuit.threshold,
        "positive": pursuit.positive,
        "seed": history["seed"],
        "bad_pixels": bad["pixels"],
        "input_sha256": digest,
    }


def _blocks(
    survey: Survey,
    pursuit: Pursuit,
    parts: tuple[np.ndarray, np.ndarray],
    scale: np.ndarray,
    median: np.ndarray,
    noise_std: float,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows, low-rank flux, sparse part in units of the flux, and hits, block by block."""
    with ExitStack() as stack:
        flux_reader = stack.enter_context(MatrixReader(survey.flux))
        error_reader = None if survey.error is None else stack.enter_context(MatrixReader(survey.error))
        for rows in _pieces(survey):
            flux = np.empty((rows.stop - rows.start, survey.n_pixels), np.float32)
            flux_reader.read(rows.start, flux)
            sigma = np.full_like(flux, noise_std)
            if error_reader is not None:
                error_reader.read(rows.start, sigma)
            low, sparse = ((part[rows] * scale[rows, None]).astype(np.float32) for part in parts)
            for part in parts:
                _forget(part)
            low += median
            good = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
            residual = np.divide(flux - low, sigma, out=np.full_like(flux, np.nan), where=good)
            yield rows, low, sparse, pursuit.is_hit(residual)


def _write(
    survey: Survey,
    out: Path,
    parts: Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]],
    median: np.ndarray,
    facts: Mapping[str, Any],
    n_entries: int,
) -> int:
    """Write the file, whose sparse part has ``n_entries``; return the number of hits."""
    keys, n_hits = survey.keys, 0
    _refuse_full(out, survey.n_spectra * (survey.n_pixels * 5 + 256) + n_entries * 8 + SLACK_BYTES)
    with atomic_path(out) as partial, explained(out), h5py.File(partial, "w", locking=False) as file:
        for name, value in facts.items():
            file.attrs[name] = value
        flux = file.create_dataset(keys.flux, survey.flux.shape, "<f4")
        hits = file.create_dataset(HITS, survey.flux.shape, "u1", chunks=True, compression="gzip", compression_opts=1)
        file[MEDIAN] = median
        ends, data, indices = [0], _growing(file, "data", "<f4"), _growing(file, "indices", "<i4")
        for rows, low, sparse, hit in parts:
            flux[rows], hits[rows] = low, hit
            n_hits += int(hit.sum())
            row, column = np.nonzero(sparse)
            ends += (ends[-1] + np.bincount(row, minlength=len(sparse)).cumsum()).tolist()
            for dataset, values in ((data, sparse[row, column]), (indices, column)):
                dataset.resize(ends[-1], axis=0)
                dataset[ends[-1] - len(values) :] = values
        file[f"{SPARSE}/indptr"] = np.asarray(ends, "<i8")
        if keys.wavelength != NONE:
            file[keys.wavelength] = survey.wavelength
            file[keys.wavelength].attrs["units"] = survey.unit
        _copy_labels(survey, file)
    return n_hits


def _refuse_full(path: Path, size: int) -> None:
    """Refuse to begin a file that has no room: HDF5 does not survive a disk that fills up while it writes.

    Raises:
        StoreError: less than ``size`` bytes are free.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, "")


def _forget(array: np.ndarray) -> None:
    """Let the system reclaim the pages of a memory map that has been read."""
    if isinstance(array, np.memmap):
        pages: Any = array._mmap  # type: ignore[attr-defined]
        pages.madvise(mmap.MADV_DONTNEED)


def _growing(file: h5py.File, name: str, dtype: str) -> h5py.Dataset:
    """Make an empty data set that grows."""
    return file.create_dataset(f"{SPARSE}/{name}", 0, dtype, maxshape=(None,), chunks=(1 << 14,))


def _copy_labels(survey: Survey, target: h5py.File) -> None:
    """Copy the labels: numbers, one per spectrum, that lie in the file itself."""
    key = survey.keys.labels
    with open_hdf5(survey.path) as source:
        if isinstance(source.get(key, getlink=True) if key in source else None, h5py.ExternalLink):
            return
        found = source.get(key)
        if isinstance(found, h5py.Dataset) and found.shape == (survey.n_spectra,) and not found.is_virtual:
            source.copy(found, target, key)
        elif isinstance(found, h5py.Group):
            for name in found:
                label = found[name] if isinstance(found.get(name, getlink=True), h5py.HardLink) else None
                if (
                    isinstance(label, h5py.Dataset)
                    and is_numeric(label.dtype)
                    and label.shape[:1] == (survey.n_spectra,)
                ):
                    source.copy(label, target, f"{key}/{name}")
