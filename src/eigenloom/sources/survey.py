"""A survey of one-dimensional spectra in one HDF5 file: its parts, its splits, classes from its labels.

Rows are spectra. Only the flux is needed; an error array says which pixels are bad, wavelengths name the pixels, labels
are for what is supervised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from eigenloom.batches import generator
from eigenloom.errors import DataError
from eigenloom.sources.survey_keys import AUTO, NONE, SurveyKeys
from eigenloom.store.hdf5 import Matrix, find_dataset, open_hdf5, open_matrix, read_vector


@dataclass(frozen=True)
class Survey:
    """What a file holds, looked at and closed again.

    Fields: ``path``, ``keys``; ``flux`` and ``error`` (None where there is none), both ``[n, m]``; ``wavelength``,
    float64 ``[m]``, the number of the pixel where the file has none; ``unit`` of the wavelength, ``pixel`` then.
    """

    path: Path
    keys: SurveyKeys
    flux: Matrix
    error: Matrix | None
    wavelength: np.ndarray
    unit: str

    @property
    def n_spectra(self) -> int:
        """Number of spectra."""
        return self.flux.shape[0]

    @property
    def n_pixels(self) -> int:
        """Length of a spectrum."""
        return self.flux.shape[1]

    def label(self, name: str) -> tuple[np.ndarray, str]:
        """Return one label of every spectrum, float64 ``[n]``, and its unit, empty where the file states none.

        Raises:
            DataError: there is no such label, or it is not one number per spectrum.
        """
        key = f"{self.keys.labels}/{name}"
        with open_hdf5(self.path) as file:
            values = read_vector(file, self.path, key, self.n_spectra)
            return values, _unit(file.get(key)) if key in file else ""

    def split(self, seed: int, first: int, n: int) -> np.ndarray:
        """Return the spectra of a split, ascending row numbers int64 ``[n]``.

        The seed puts all spectra of the file in a random order; a split is ``n`` of it from ``first`` on. Splits whose
        ranges do not overlap share no spectrum.

        Raises:
            DataError: the file does not hold so many.
        """
        if first + n > self.n_spectra:
            raise DataError(
                f"{self.path}: holds {self.n_spectra} spectra, but the splits ask for {first + n}; lower n_examples"
            )
        order = torch.randperm(self.n_spectra, generator=generator(seed, "split"))
        return np.sort(order[first : first + n].numpy())


def open_survey(path: str | Path, keys: Mapping[str, str] | None = None) -> Survey:
    """Look at the parts of a survey and compare their shapes.

    Args:
        path: of the HDF5 file.
        keys: of data sets that lie elsewhere than ``SurveyKeys`` says; ``auto`` and ``none`` as described there.

    Raises:
        StoreError: the file is missing or no HDF5 file.
        DataError: a data set is missing or of another shape, or wavelengths do not ascend.
    """
    path, layout = Path(path), SurveyKeys()
    asked = dict(keys or {})
    with open_hdf5(path) as file:
        for name in ("error", "wavelength"):
            key = asked.get(name, AUTO)
            if key == AUTO:
                key = getattr(layout, name) if getattr(layout, name) in file else NONE
            asked[name] = key
        chosen = SurveyKeys(**{**vars(layout), **asked})
        flux = open_matrix(path, chosen.flux)
        wavelength, unit = np.arange(flux.shape[1], dtype=np.float64), "pixel"
        if chosen.wavelength != NONE:
            wavelength = read_vector(file, path, chosen.wavelength, flux.shape[1])
            unit = _unit(find_dataset(file, path, chosen.wavelength))
    error = None if chosen.error == NONE else open_matrix(path, chosen.error)
    if error is not None and error.shape != flux.shape:
        raise DataError(f"{path}: `{chosen.error}` is {_size(error)}, but `{chosen.flux}` is {_size(flux)}")
    if not (np.diff(wavelength) > 0).all():
        pixel = int(np.argmin(np.diff(wavelength) > 0))
        raise DataError(
            f"{path}: `{chosen.wavelength}` must ascend, but pixel {pixel} has {wavelength[pixel]:g} and the next "
            f"{wavelength[pixel + 1]:g}"
        )
    return Survey(path, chosen, flux, error, wavelength, unit)


def classes_of(values: np.ndarray, bins: int | list[float], name: str, unit: str = "") -> tuple[list[str], np.ndarray]:
    """Cut a label into classes.

    Args:
        values: float64 ``[n]``, of the whole survey; NaN where unknown.
        bins: how many classes of equal numbers of spectra, or the edges of the classes, ascending.
        name: of the label, and ``unit`` in which it is.
        unit: shown in the names of the classes.

    Returns:
        Names of the classes, ``void`` first, and the class of every spectrum, uint8 ``[n]``: 0 (void) where the label
        is unknown or outside the edges. A class holds its lower edge, the last one its upper edge, too.

    Raises:
        DataError: fewer different values than classes.
    """
    known = values[np.isfinite(values)]
    if isinstance(bins, int):
        if len(np.unique(known)) < bins:
            raise DataError(f"{name}: {len(np.unique(known))} different values cannot make {bins} classes")
        edges = np.quantile(known, np.linspace(0, 1, bins + 1))
        if not (np.diff(edges) > 0).all():
            raise DataError(f"{name}: one value is so common that {bins} equal classes cannot be cut; give edges")
    else:
        edges = np.asarray(bins, dtype=np.float64)
    number = np.searchsorted(edges, values, side="right")
    number[values == edges[-1]] = len(edges) - 1
    number[~np.isfinite(values) | (number == len(edges))] = 0
    tail = f" {unit}" if unit else ""
    names = [f"{name} {low:.4g} to {high:.4g}{tail}" for low, high in pairwise(edges)]
    return ["void", *names], number.astype(np.uint8)


def _unit(item: Any) -> str:
    """Return what a data set says of its unit, empty where it says nothing."""
    if isinstance(item, h5py.Dataset):
        for name in ("units", "unit"):
            value = item.attrs.get(name)
            if isinstance(value, bytes):
                return value.decode(errors="replace")
            if isinstance(value, str):
                return value
    return ""


def _size(matrix: Matrix) -> str:
    """Write a shape."""
    return f"{matrix.shape[0]} x {matrix.shape[1]}"
