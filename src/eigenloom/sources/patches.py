"""Random windows of spectra as rows: virtual, cut while they are read."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from eigenloom.errors import ConfigError
from eigenloom.sources.block_rows import BlockRows
from eigenloom.sources.hdf5 import Selection, chosen
from eigenloom.sources.spectra import SpectraReader
from eigenloom.sources.survey import Survey, open_survey

BATCH_ROWS = 8192


class PatchReader:
    """Windows of normalised spectra by number; window ``j`` of spectrum ``i`` is number ``i * per_spectrum + j``."""

    def __init__(self, spectra: SpectraReader, starts: np.ndarray, patch_size: int, n_pixels: int):
        """Take spectra, and where each window begins, ``[n_spectra, per_spectrum]``."""
        self._spectra, self._starts = spectra, starts
        self._window, self._n_pixels = np.arange(patch_size), n_pixels
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Return itself; files are opened when first read."""
        self._open.enter_context(self._spectra)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._open.close()

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out [n, patch_size]`` with windows from number ``first`` on."""
        if not len(out):
            return
        numbers = np.arange(first, first + len(out))
        owners, places = np.divmod(numbers, self._starts.shape[1])
        flux = np.empty((owners[-1] - owners[0] + 1, self._n_pixels), np.float32)
        self._spectra.read(int(owners[0]), flux)
        begins = self._starts[owners, places]
        out[:] = flux[(owners - owners[0])[:, None], begins[:, None] + self._window]


class PatchRows(BlockRows):
    """``patches_per_spectrum`` windows of ``patch_size`` pixels of each spectrum as ``Batches``.

    Where the windows of a spectrum begin is a function of the seed and of its row in the file.
    """

    def __init__(
        self,
        survey: Survey | str | Path,
        rows: Selection = None,
        *,
        patch_size: int,
        patches_per_spectrum: int,
        seed: int,
        bad_pixels: str = "refuse",
        normalise: str = "median",
        block_bytes: int = 4 << 20,
        pool_bytes: int = 256 << 20,
    ) -> None:
        """Choose spectra and windows; nothing stays open.

        Args:
            survey: an open survey, or the path of one in the default layout.
            rows: which spectra, as a slice, ascending numbers or a mask; all by default.
            patch_size: pixels of a window.
            patches_per_spectrum: windows of each spectrum; they may overlap.
            seed: of their places.
            bad_pixels: as for ``SpectraRows``.
            normalise: as for ``SpectraRows``; of the whole spectrum, before it is cut.
            block_bytes: of windows that stay together when shuffling, at least.
            pool_bytes: of windows that are permuted in memory.

        Raises:
            ConfigError: windows longer than the spectra, or a size that is not positive.
            StoreError: the file is missing or no HDF5 file.
            DataError: a data set is missing or of the wrong shape.
        """
        self.survey = survey if isinstance(survey, Survey) else open_survey(survey)
        self._rows = chosen(rows, self.survey.n_spectra, f"{self.survey.path}: rows")
        if not 1 <= patch_size <= self.survey.n_pixels or patches_per_spectrum < 1:
            raise ConfigError(
                f"patch_size {patch_size} and patches_per_spectrum {patches_per_spectrum} must be at least 1, and a "
                f"patch no longer than the spectra of {self.survey.path}, {self.survey.n_pixels} pixels"
            )
        self._patch, self._policy, self._normalise = patch_size, bad_pixels, normalise
        last = self.survey.n_pixels - patch_size
        draws = (np.random.default_rng([seed, 6, row]) for row in self._rows.tolist())
        self._starts = np.stack([rng.integers(0, last + 1, patches_per_spectrum) for rng in draws])
        block_rows = max(1, block_bytes // (patch_size * 4))
        super().__init__(
            self._starts.size, patch_size, batch_size=BATCH_ROWS, block_rows=block_rows, pool_bytes=pool_bytes
        )

    def locate(self, row: int, feature: int) -> str:
        """Say where a number lies, for a message: file, data set, row and pixel as the file counts them, from 0."""
        owner, place = divmod(row, self._starts.shape[1])
        pixel = int(self._starts[owner, place]) + feature
        return f"{self.survey.path}: `{self.survey.keys.flux}`, row {self._rows[owner]}, pixel {pixel}"

    def _reader(self) -> PatchReader:
        """Return a new reader; nothing is open before the first read."""
        spectra = SpectraReader(self.survey, self._rows, self._policy, self._normalise)
        return PatchReader(spectra, self._starts, self._patch, self.survey.n_pixels)
