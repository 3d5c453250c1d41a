"""The spectra of one split: which rows of a survey they are and how they are treated, fixed in an edge."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.errors import DataError, StoreError
from eigenloom.sources.spectra import SpectraRows, count_bad_pixels
from eigenloom.sources.spectra_edge import FORMAT, VERSION, read_spectra_edge
from eigenloom.sources.survey import Survey, open_survey
from eigenloom.store.atomic import explained, write_bytes, write_json
from eigenloom.store.listing import file_problems


@dataclass(frozen=True)
class SpectraSet:
    """Fields: ``survey``; ``rows`` in it, ascending int64 ``[n]``; treatment of bad pixels; normalisation."""

    survey: Survey
    rows: np.ndarray
    bad_pixels: str
    normalise: str

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.rows)

    def batches(self, first: int, stop: int) -> SpectraRows:
        """Return some of the spectra, normalised."""
        return SpectraRows(self.survey, self.rows[first:stop], self.bad_pixels, self.normalise)


def prepare_spectra(
    path: str | Path,
    survey: str | Path,
    *,
    keys: Mapping[str, str] | None = None,
    dataset: str = "",
    seed: int,
    first: int,
    n_examples: int,
    n_pixels: int | None = None,
    bad_pixels: str = "refuse",
    normalise: str = "median",
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fix which spectra a split consists of, read each once, and publish the edge ``path`` with its siblings.

    Args:
        path: the edge, ``meta.json``.
        survey: the HDF5 file, as later jobs will name it.
        keys: where its parts are, see ``SurveyKeys``.
        dataset: origin as the configuration spells it; the file if empty.
        seed: of the order that splits are cut from.
        first: position of the split in that order.
        n_examples: how many spectra.
        n_pixels: what the configuration says of their length, None where it says nothing.
        bad_pixels: ``refuse`` or ``mask``.
        normalise: ``none``, ``median`` or ``continuum``.
        spec: canonical parameters of the job.
        inputs: path of every input edge -> sha256 hex.

    Returns:
        The document of the edge.

    Raises:
        ConfigError: an unknown treatment or normalisation.
        DataError: the file does not hold what the configuration states, or a spectrum cannot be used.
        StoreError: the file is missing or no HDF5 file, or nothing can be written.
    """
    path = Path(path)
    with explained(path):
        path.unlink(missing_ok=True)
    opened = open_survey(survey, keys)
    if n_pixels not in (None, opened.n_pixels):
        raise DataError(f"{survey}: spectra have {opened.n_pixels} pixels, but n_pixels is {n_pixels}; correct it")
    rows = opened.split(seed, first, n_examples)
    bad = count_bad_pixels(opened, rows, bad_pixels, normalise)
    arrays = {"rows.npy": rows.astype("<i8"), "wavelength.npy": opened.wavelength.astype("<f8")}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset or str(survey),
        "survey": str(survey),
        "keys": {**vars(opened.keys)},
        "n_examples": n_examples,
        "n_spectra": opened.n_spectra,
        "n_pixels": opened.n_pixels,
        "wavelength": {"first": opened.wavelength[0], "last": opened.wavelength[-1], "unit": opened.unit},
        "normalise": normalise,
        "bad_pixels": {"treatment": bad_pixels, **bad},
        "files": {name: _write_array(path.with_name(name), array) for name, array in arrays.items()},
        "spec": spec,
        "inputs": dict(inputs or {}),
    }
    write_json(path, document)
    return document


def open_spectra(path: str | Path) -> SpectraSet:
    """Open the spectra of a split by their edge.

    Raises:
        StoreError: the edge, a sibling or the survey is missing or damaged.
        DataError: the survey is not the one that was looked at.
    """
    path = Path(path)
    edge = read_spectra_edge(path)
    if problems := file_problems(path.parent, edge["files"], verify=False):
        raise StoreError("; ".join(problems) + "; delete the edge and run the rule that makes it")
    rows = np.load(path.with_name("rows.npy"), allow_pickle=False)
    survey = open_survey(edge["survey"], edge["keys"])
    found, due = (survey.n_spectra, survey.n_pixels), (edge["n_spectra"], edge["n_pixels"])
    if found != due:
        raise DataError(
            f"{edge['survey']}: holds {found[0]} spectra of {found[1]} pixels, but {path} was made from {due[0]} of "
            f"{due[1]}; delete {path.parent.parent} and run again"
        )
    return SpectraSet(survey, rows, edge["bad_pixels"]["treatment"], edge["normalise"])


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Publish an array as ``.npy``; return its size and digest."""
    memory = io.BytesIO()
    np.save(memory, array, allow_pickle=False)
    digest = write_bytes(path, memory.getvalue())
    return {"bytes": path.stat().st_size, "sha256": digest}
