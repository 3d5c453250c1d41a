"""Spectra of a survey as ``Batches``: bad pixels found, spectra normalised, block by block."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from eigenloom.errors import ConfigError, DataError
from eigenloom.provenance import canonical_json
from eigenloom.sources.block_rows import BlockRows
from eigenloom.sources.hdf5 import BATCH_BYTES, Selection, chosen
from eigenloom.sources.survey import Survey, open_survey
from eigenloom.store.hdf5_reading import MatrixReader

ARCHITECTURE = "spectra"
POLICIES = ("refuse", "mask")
CONTINUUM_DEGREE = 4
CONTINUUM_ROUNDS = 3
BELOW, ABOVE = 1.0, 3.0
PIECE_BYTES = 4 << 20
logger = logging.getLogger("eigenloom")


def normalise_none(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return 1 for every spectrum: divide by nothing."""
    del good
    return np.ones((len(flux), 1))


def normalise_median(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the median of the good pixels of every spectrum, ``[b, 1]``."""
    median = np.median(flux, axis=1, keepdims=True)
    for row in np.flatnonzero(~good.all(axis=1)):  # one by one: a spectrum must not depend on its neighbours
        median[row] = np.median(flux[row, good[row]])
    return median


def normalise_continuum(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return a polynomial of degree 4 along the top of every spectrum, ``[b, m]``.

    Fitted by least squares to the good pixels, three times again without those more than one standard deviation below
    it, which are lines, or three above it.
    """
    terms = np.polynomial.legendre.legvander(np.linspace(-1, 1, flux.shape[1]), CONTINUUM_DEGREE)
    values = np.where(good, flux, 0.0)
    used = good.astype(np.float64)
    for _ in range(CONTINUUM_ROUNDS + 1):
        weighted = used[:, None, :] * terms.T  # stacks of small products: a spectrum must not depend on its neighbours
        coefficients = np.linalg.pinv(weighted @ terms, hermitian=True) @ (weighted @ values[:, :, None])
        curve = (terms @ coefficients)[:, :, 0]
        residual = values - curve
        spread = np.sqrt((used * residual**2).sum(1, keepdims=True) / np.maximum(used.sum(1, keepdims=True), 1))
        used = good * ((residual >= -BELOW * spread) & (residual <= ABOVE * spread)).astype(np.float64)
    return curve


NORMALISATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": normalise_none,
    "median": normalise_median,
    "continuum": normalise_continuum,
}
"""Name -> what spectra ``[b, m]`` with good pixels ``[b, m]`` are divided by; errors are divided alike."""


@dataclass(frozen=True)
class SpectraBlock:
    """Some spectra, normalised: ``flux`` float32 ``[b, m]``, ``good`` bool ``[b, m]``, ``error`` float32 or None.

    Bad pixels carry a flux interpolated between their good neighbours, and an error of infinity.
    """

    flux: np.ndarray
    good: np.ndarray
    error: np.ndarray | None


class SpectraReader:
    """Normalised spectra of chosen rows; a context manager that holds the open file, flux and error read together."""

    def __init__(self, survey: Survey, rows: np.ndarray, bad_pixels: str = "refuse", normalise: str = "median"):
        """Choose rows, what happens to bad pixels, and by what spectra are divided.

        Raises:
            ConfigError: an unknown policy or normalisation.
        """
        if bad_pixels not in POLICIES:
            raise ConfigError(f"bad_pixels: {bad_pixels!r} is unknown; use one of {', '.join(POLICIES)}")
        if normalise not in NORMALISATIONS:
            raise ConfigError(f"normalise: {normalise!r} is unknown; use one of {', '.join(NORMALISATIONS)}")
        self._survey, self._rows = survey, rows
        self._policy, self._normalise = bad_pixels, normalise
        self._flux = MatrixReader(survey.flux, rows)
        self._error = None if survey.error is None else MatrixReader(survey.error, rows)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Return itself; files are opened when first read."""
        self._open.enter_context(self._flux)
        if self._error is not None:
            self._open.enter_context(self._error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self._open.close()

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, float32 ``[n, m]``, with the spectra from number ``first`` of the chosen ones on.

        Raises:
            DataError: a bad pixel where none may be, a spectrum without a good one, or one that cannot be divided.
            StoreError: the file cannot be read.
        """
        piece = max(1, PIECE_BYTES // out[:1].nbytes) if len(out) else 1
        for start in range(0, len(out), piece):
            part = out[start : start + piece]
            part[:] = self.block(first + start, len(part)).flux

    def block(self, first: int, n: int) -> SpectraBlock:
        """Return ``n`` spectra from number ``first`` of the chosen ones on, with their errors."""
        flux = np.empty((n, self._survey.n_pixels), np.float32)
        self._flux.read(first, flux)
        good = np.isfinite(flux)
        error = None
        if self._error is not None:
            error = np.empty_like(flux)
            self._error.read(first, error)
            good &= np.isfinite(error) & (error > 0)
        if self._policy == "refuse" and not good.all():
            raise DataError(self._complaint(first, flux, error, good))
        self._refuse(first, ~good.any(axis=1), "has no good pixel; leave the spectrum out")
        scale = NORMALISATIONS[self._normalise](flux, good)
        usable = np.isfinite(scale) & (scale > 0)
        self._refuse(
            first, ~usable.all(axis=1), f"cannot be divided by its {self._normalise}, which is not above 0 everywhere"
        )
        flux = (flux / scale).astype(np.float32)
        if not good.all():
            interpolate(flux, good, self._survey.wavelength)
        if error is not None:
            error = np.where(good, error / scale, np.inf).astype(np.float32)
        return SpectraBlock(flux, good, error)

    def _complaint(self, first: int, flux: np.ndarray, error: np.ndarray | None, good: np.ndarray) -> str:
        """Name the first bad pixel and say what can be done."""
        row, pixel = (int(i) for i in np.argwhere(~good)[0])
        found = f"flux {flux[row, pixel]:g}" + ("" if error is None else f", error {error[row, pixel]:g}")
        keys = self._survey.keys
        return (
            f"{self._survey.path}: `{keys.flux}`, row {self._rows[first + row]}, pixel {pixel} is bad ({found}), one "
            f"of {int((~good).sum())} in {len(flux)} spectra; repair the file, or set `bad_pixels: mask` to "
            "interpolate bad pixels"
        )

    def _refuse(self, first: int, wrong: Any, words: str) -> None:
        """Refuse the first spectrum with which something is wrong."""
        if wrong.any():
            row = int(self._rows[first + int(np.argmax(wrong))])
            raise DataError(f"{self._survey.path}: `{self._survey.keys.flux}`, row {row} {words}")


class SpectraRows(BlockRows):
    """Normalised spectra as ``Batches``, float32 ``[b, m]``; the order of ``shuffled`` is that of ``Hdf5Rows``."""

    def __init__(
        self,
        survey: Survey | str | Path,
        rows: Selection = None,
        bad_pixels: str = "refuse",
        normalise: str = "median",
        batch_size: int = 8192,
        block_bytes: int = 4 << 20,
        pool_bytes: int = 256 << 20,
    ) -> None:
        """Choose spectra (all by default) and how they are treated; nothing stays open.

        Args:
            survey: an open survey, or the path of a file in the default layout.
            rows: which spectra, as a slice, ascending numbers or a mask.
            bad_pixels: ``refuse`` NaN, infinities and errors that are not above 0, or ``mask``: interpolate them.
            normalise: ``none``, or divide by the ``median`` or the ``continuum`` of each spectrum.
            batch_size: rows per batch, at most; fewer where spectra are long.
            block_bytes: of spectra that stay together when shuffling, at least.
            pool_bytes: of spectra that are permuted in memory.

        Raises:
            StoreError: the file is missing or no HDF5 file.
            DataError: a data set is missing or of the wrong shape.
            ConfigError: an unknown policy or normalisation, rows that do not exist, a size that is not positive.
        """
        self.survey = survey if isinstance(survey, Survey) else open_survey(survey)
        flux = self.survey.flux
        self._rows = chosen(rows, flux.shape[0], f"{flux.path}: rows")
        self._bad_pixels, self._normalise = bad_pixels, normalise
        self._reader()
        row_bytes = flux.shape[1] * 4
        block_rows = -(-block_bytes // row_bytes)
        if flux.offset is None:
            block_rows = -(-block_rows // flux.chunk_rows) * flux.chunk_rows
        batch_size = min(batch_size, max(1, BATCH_BYTES // row_bytes))
        super().__init__(
            len(self._rows), flux.shape[1], batch_size=batch_size, block_rows=block_rows, pool_bytes=pool_bytes
        )

    def locate(self, row: int, feature: int) -> str:
        """Say where a number lies, for a message: file, data set, row and pixel as the file counts them, from 0."""
        return f"{self.survey.path}: `{self.survey.keys.flux}`, row {self._rows[row]}, pixel {feature}"

    def _reader(self) -> SpectraReader:
        """Return a new reader; nothing is open before the first read."""
        return SpectraReader(self.survey, self._rows, self._bad_pixels, self._normalise)


def interpolate(flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray) -> None:
    """Put a straight line over the wavelength in place of bad pixels; the nearest good one at the ends. In place."""
    for row in np.flatnonzero(~good.all(1)):
        bad = ~good[row]
        flux[row, bad] = np.interp(wavelength[bad], wavelength[good[row]], flux[row, good[row]])


def count_bad_pixels(survey: Survey, rows: np.ndarray, bad_pixels: str, normalise: str) -> dict[str, int]:
    """Read some spectra once, so that everything wrong with them is found now; count bad pixels and who has them.

    Returns:
        ``{"pixels", "spectra"}``.

    Raises:
        DataError: see ``SpectraReader.read``.
    """
    pixels = spectra = 0
    piece = max(1, PIECE_BYTES // (survey.n_pixels * 4))
    with SpectraReader(survey, rows, bad_pixels, normalise) as reader:
        for first in range(0, len(rows), piece):
            bad = ~reader.block(first, min(piece, len(rows) - first)).good
            pixels += int(bad.sum())
            spectra += int(bad.any(1).sum())
    return {"pixels": pixels, "spectra": spectra}


def signature(survey: Survey, bad_pixels: str, normalise: str) -> Mapping[str, object]:
    """Return what must agree between two recordings of spectra for a basis to move from one to the other."""
    return {
        "architecture": ARCHITECTURE,
        "n_pixels": survey.n_pixels,
        "wavelength_sha256": hashlib.sha256(survey.wavelength.astype("<f8").tobytes()).hexdigest(),
        "bad_pixels": bad_pixels,
        "normalise": normalise,
        "normalise_sha256": normalisation_digest(normalise),
    }


def normalisation_digest(name: str) -> str:
    """Return the sha256 hex of a normalisation's name and constants."""
    constants = [CONTINUUM_DEGREE, CONTINUUM_ROUNDS, BELOW, ABOVE] if name == "continuum" else []
    return hashlib.sha256(canonical_json(["eigenloom.normalise/1", name, constants]).encode()).hexdigest()
