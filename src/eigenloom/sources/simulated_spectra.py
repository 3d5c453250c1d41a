"""A simulated survey of stars: continuum, absorption lines, velocities, noise and cosmic-ray hits that are known.

Physics-flavoured, not physics: a Planck curve and lines whose depths and widths move with the labels the way real ones
do, so that methods can be tried where the truth is known. Stars come in blocks of ``BLOCK_ROWS``; block ``i`` is a
function of ``(seed, i)`` alone, so a survey does not depend on how many stars it has, nor on how it is written.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eigenloom.errors import ConfigError
from eigenloom.sources.survey_keys import SurveyKeys
from eigenloom.store.atomic import atomic_path, explained

BLOCK_ROWS = 1024
PIECE_ROWS = 128
"""Stars of a block that are worked on at a time, to save memory."""
LIGHT_SPEED = 299_792.458
"""km/s"""
SECOND_RADIATION = 1.438777e8
"""h c / k in Angstrom kelvin."""
SOLAR = 5500.0
"""Temperature, in kelvin, at which a line has the strength it is listed with."""
RANGES = {"T_eff": (4000.0, 7500.0), "log_g": (1.0, 5.0), "M_H": (-2.0, 0.5)}
UNITS = {"T_eff": "K", "log_g": "dex(cm/s2)", "M_H": "dex", "rv": "km/s", "snr": ""}
READ_NOISE = 0.1
"""Variance of the read noise relative to that of the photons at the median of the continuum."""
TILT = (0.08, 0.05, 0.03)
"""Standard deviations of the Legendre coefficients of a star's own slow slope."""
HIT_PIXELS = 3
REACH = 5.0
"""Standard deviations of a line beyond which it is taken to be zero."""


@dataclass(frozen=True)
class SurveyStyle:
    """What the stars and the instrument are like.

    Fields: ``n_pixels``, evenly spaced in the logarithm of the wavelength from ``wavelength[0]`` to ``wavelength[1]``
    Angstrom; ``n_lines`` drawn from ``line_seed``, the same for every star of every survey; radial velocities up to
    ``velocity`` km/s; ``snr``, least and greatest signal-to-noise ratio per pixel; ``hit_rate``, share of pixels that a
    cosmic ray hits; ``hit_amplitude``, their mean height in units of the continuum.
    """

    n_pixels: int = 512
    wavelength: tuple[float, float] = (5000.0, 6000.0)
    n_lines: int = 100
    line_seed: int = 0
    velocity: float = 150.0
    snr: tuple[float, float] = (10.0, 100.0)
    hit_rate: float = 0.005
    hit_amplitude: float = 1.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ConfigError: a size is out of range.
        """
        object.__setattr__(self, "wavelength", tuple(self.wavelength))
        object.__setattr__(self, "snr", tuple(self.snr))
        if self.n_pixels < 2 or self.n_lines < 0:
            raise ConfigError(f"spectra: {self.n_pixels} pixels and {self.n_lines} lines; at least 2 and 0 are needed")
        for name in ("wavelength", "snr"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ConfigError(f"spectra: {name} [{low:g}, {high:g}] must be [low, high] with 0 < low < high")
        if not 0 <= self.hit_rate <= 0.5 or self.velocity < 0 or self.hit_amplitude <= 0:
            raise ConfigError("spectra: hit_rate must be in 0..0.5, velocity at least 0 and hit_amplitude above 0")

    @property
    def grid(self) -> np.ndarray:
        """Wavelength of every pixel in Angstrom, ascending, float64 ``[n_pixels]``."""
        return np.geomspace(*self.wavelength, self.n_pixels)

    @property
    def pixel_velocity(self) -> float:
        """Width of a pixel, in km/s."""
        low, high = self.wavelength
        return LIGHT_SPEED * float(np.log(high / low)) / (self.n_pixels - 1)


@dataclass(frozen=True)
class Lines:
    """Absorption lines: ``centres`` in pixels, ``strengths`` (optical depth at ``SOLAR``), ``excitations`` in eV."""

    centres: np.ndarray
    strengths: np.ndarray
    excitations: np.ndarray

    @classmethod
    def draw(cls, style: SurveyStyle) -> "Lines":
        """Draw the list: centres even over the range, strengths log-normal, excitations even in 0..5 eV."""
        rng = np.random.default_rng([style.line_seed, 3])
        return cls(
            centres=np.sort(rng.uniform(0, style.n_pixels - 1, style.n_lines)),
            strengths=0.5 * np.exp(0.8 * rng.standard_normal(style.n_lines)),
            excitations=rng.uniform(0, 5, style.n_lines),
        )


@dataclass(frozen=True)
class Stars:
    """One block: ``flux = clean + noise + cosmic`` ``[b, m]`` float32; ``error``, one sigma; ``hits`` uint8; labels.

    ``labels`` maps names to float64 ``[b]``, ``UNITS`` says in which units.
    """

    flux: np.ndarray
    error: np.ndarray
    clean: np.ndarray
    hits: np.ndarray
    labels: dict[str, np.ndarray]


def simulate_block(style: SurveyStyle, seed: int, block: int, n_rows: int = BLOCK_ROWS) -> Stars:
    """Draw stars ``block * BLOCK_ROWS`` and following; fewer than ``BLOCK_ROWS`` are the first ones of the block.

    Flux is in units of the median of the star's continuum.
    """
    labels = draw_labels(style, np.random.default_rng([seed, block, 0]))
    tilts = np.random.default_rng([seed, block, 1]).standard_normal((BLOCK_ROWS, len(TILT))) * TILT
    lines = Lines.draw(style)
    clean = np.empty((BLOCK_ROWS, style.n_pixels), np.float32)
    for first in range(0, BLOCK_ROWS, PIECE_ROWS):
        piece = slice(first, first + PIECE_ROWS)
        some = {name: values[piece] for name, values in labels.items()}
        clean[piece] = continuum(style, some["T_eff"], tilts[piece]) * transmission(style, some, lines)
    sigma = clean + np.float32(READ_NOISE)
    np.sqrt(sigma / np.float32(1 + READ_NOISE), out=sigma)
    sigma /= labels["snr"][:, None].astype(np.float32)
    flux = np.random.default_rng([seed, block, 2]).standard_normal(clean.shape, dtype=np.float32)
    flux *= sigma
    flux += clean
    cosmic = cosmic_rays(style, np.random.default_rng([seed, block, 3]))
    flux += cosmic
    hits = (cosmic > 0).astype(np.uint8)
    chosen = {name: values[:n_rows] for name, values in labels.items()}
    return Stars(flux[:n_rows], sigma[:n_rows], clean[:n_rows], hits[:n_rows], chosen)


def draw_labels(style: SurveyStyle, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the labels of a block, even over their ranges, the signal-to-noise ratio even in its logarithm."""
    labels = {name: rng.uniform(*limits, BLOCK_ROWS) for name, limits in RANGES.items()}
    labels["rv"] = rng.uniform(-style.velocity, style.velocity, BLOCK_ROWS)
    labels["snr"] = np.exp(rng.uniform(np.log(style.snr[0]), np.log(style.snr[1]), BLOCK_ROWS))
    return labels


def continuum(style: SurveyStyle, temperature: np.ndarray, tilts: np.ndarray) -> np.ndarray:
    """Return Planck curves times slow polynomials of coefficients ``tilts [b, 3]``, over their medians: ``[b, m]``."""
    grid = style.grid
    flux = grid[0] ** 5 / grid**5 / np.expm1(SECOND_RADIATION / np.outer(temperature, grid))
    slopes = np.polynomial.legendre.legvander(np.linspace(-1, 1, style.n_pixels), len(TILT))[:, 1:]
    flux *= 1 + tilts @ slopes.T
    return flux / np.median(flux, axis=1, keepdims=True)


def transmission(style: SurveyStyle, labels: dict[str, np.ndarray], lines: Lines) -> np.ndarray:
    """Return the share of light that the lines let through, float64 ``[b, m]``: ``exp`` of minus summed optical depths.

    A line grows with the metals, shrinks with the temperature the faster the less excited it is, and is broadened by
    the temperature, the surface gravity and the instrument, whose width is 1.2 pixels; broadening keeps its area.
    """
    own = 15 * np.sqrt(labels["T_eff"] / SOLAR) + 12 * (labels["log_g"] - RANGES["log_g"][0])
    own = own / style.pixel_velocity
    width = np.sqrt(own**2 + 1.2**2)
    shift = labels["rv"] / style.pixel_velocity
    growth = 10 ** (0.6 * labels["M_H"]) * own / width
    reach = int(np.ceil(np.abs(shift).max() + REACH * width.max()))
    depth = np.zeros((len(width), style.n_pixels))
    for centre, strength, excitation in zip(lines.centres, lines.strengths, lines.excitations, strict=True):
        first, stop = max(0, int(centre) - reach), min(style.n_pixels, int(centre) + reach + 2)
        peak = strength * growth * np.exp((excitation - 2.5) * (labels["T_eff"] / SOLAR - 1))
        offset = (np.arange(first, stop) - centre - shift[:, None]) / width[:, None]
        depth[:, first:stop] += peak[:, None] * np.exp(-0.5 * offset**2)
    return np.exp(-depth)


def cosmic_rays(style: SurveyStyle, rng: np.random.Generator) -> np.ndarray:
    """Return what cosmic rays add, float32 ``[b, m]``: 1 to 3 neighbouring pixels, heights drawn exponentially."""
    added = np.zeros((BLOCK_ROWS, style.n_pixels), dtype=np.float32)
    mean_width = (1 + HIT_PIXELS) / 2
    n_hits = rng.poisson(BLOCK_ROWS * style.n_pixels * style.hit_rate / mean_width)
    rows, pixels = rng.integers(BLOCK_ROWS, size=n_hits), rng.integers(style.n_pixels, size=n_hits)
    widths, heights = rng.integers(1, HIT_PIXELS + 1, size=n_hits), rng.exponential(style.hit_amplitude, n_hits)
    for step in range(HIT_PIXELS):
        reached = (step < widths) & (pixels + step < style.n_pixels)
        share = rng.uniform(0.3, 1.0, n_hits)
        np.add.at(added, (rows[reached], pixels[reached] + step), (share * heights)[reached].astype(np.float32))
    return added


def blocks(style: SurveyStyle, seed: int, n_spectra: int) -> Iterator[tuple[int, Stars]]:
    """Yield the number of the first star of each block and the block, the last one cut."""
    for block, first in enumerate(range(0, n_spectra, BLOCK_ROWS)):
        yield first, simulate_block(style, seed, block, min(BLOCK_ROWS, n_spectra - first))


def write_survey(path: str | Path, style: SurveyStyle, seed: int, n_spectra: int, **options: Any) -> None:
    """Write a survey as one HDF5 file in the layout that ``SurveyKeys`` names by default, block by block.

    Args:
        path: of the file, published whole or not at all.
        style: of stars and instrument.
        seed: of the stars.
        n_spectra: how many.
        options: of the data sets ``[n, m]``, as h5py takes them (``chunks``, ``compression``).

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    path, keys = Path(path), SurveyKeys()
    shape = (n_spectra, style.n_pixels)
    with atomic_path(path) as partial, explained(path), h5py.File(partial, "w", locking=False) as file:
        file.attrs["simulated"] = "stars by eigenloom; physics-flavoured, not physics"
        file.attrs["seed"] = seed
        for name, value in asdict(style).items():
            file.attrs[name] = value
        wave = file.create_dataset(keys.wavelength, data=style.grid)
        wave.attrs["units"] = "Angstrom"
        names = {"flux": keys.flux, "error": keys.error, "clean": "truth/clean", "hits": "truth/hits"}
        sets = {
            name: file.create_dataset(key, shape, "u1" if name == "hits" else "<f4", **options)
            for name, key in names.items()
        }
        labels = {name: file.create_dataset(f"{keys.labels}/{name}", n_spectra, "<f8") for name in UNITS}
        for name, dataset in labels.items():
            dataset.attrs["units"] = UNITS[name]
        for first, stars in blocks(style, seed, n_spectra):
            stop = first + len(stars.flux)
            for name, dataset in sets.items():
                dataset[first:stop] = getattr(stars, name)
            for name, dataset in labels.items():
                dataset[first:stop] = stars.labels[name]
