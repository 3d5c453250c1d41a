"""One-dimensional spectra: a row is a spectrum, normalised; the only layer is ``layer-00``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from eigenloom.errors import EigenloomError
from source import SPLITS, Source, Wildcards
from warm_study import Study, studies

Config = Mapping[str, Any]
STYLE = (
    "n_pixels", "wavelength", "n_lines", "line_seed", "velocity", "snr", "hit_rate", "hit_amplitude",
)  # fmt: skip
"""Keys of simulated spectra that say what stars and instrument are like."""
LABELS = ("T_eff", "log_g", "M_H", "rv", "snr")
"""Labels of simulated stars."""


@dataclass(frozen=True)
class SpectraSource(Source):
    """Spectra of one HDF5 file, simulated here or the user's own."""

    examples: ClassVar[str] = "spectra"
    recorder: ClassVar[str] = "record_spectra"
    labeller: ClassVar[str] = "label_spectra"

    @property
    def spectra(self) -> Config:
        """Where the spectra come from."""
        return self.config["spectra"]

    @property
    def is_simulated(self) -> bool:
        """Whether the stars are simulated here."""
        return self.spectra["kind"] == "simulated"

    @property
    def origin(self) -> str:
        """Name of the source."""
        return self.name

    @property
    def n_tokens(self) -> int:
        """One row per spectrum."""
        return 1

    @property
    def layer_numbers(self) -> list[int]:
        """The only layer."""
        return [0]

    @property
    def width(self) -> int:
        """Number of pixels: as configured, else as the file says, which is then looked at."""
        return self.spectra["n_pixels"] or self._measured[0]

    @cached_property
    def _measured(self) -> tuple[int, str]:
        """Pixels of the user's file, and what is wrong with it."""
        from eigenloom.store.hdf5 import open_matrix  # h5py is loaded where a file must be looked at, nowhere else

        try:
            return open_matrix(self.spectra["path"], self.spectra["keys"]["flux"]).shape[1], ""
        except EigenloomError as error:
            return 0, str(error)

    @cached_property
    def studies(self) -> list[Study]:
        """What is tried with attention: the default study and the full one, those that are configured."""
        return studies(self.config["attention"])

    def files(self) -> list[str]:
        """Return the user's file; none where the stars are simulated."""
        return [] if self.is_simulated else [self.spectra["path"]]

    def first(self, split: str) -> int:
        """Return where a split begins in the random order of the spectra: after the splits before it."""
        return sum(self.n_examples(s) for s in self.splits if SPLITS.index(s) < SPLITS.index(split))

    def absent(self) -> Iterator[str]:
        """Yield a remark where the user's file is not there."""
        for path in self.files():
            if not Path(path).exists():
                yield f"sources.{self.name}.spectra.path: {path} is absent; edits of it are not seen"

    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        return {
            "simulate": [{"source": self.name}] if self.is_simulated else [],
            "list_spectra": [self.of(split) for split in self.splits],
            "record_spectra": self.shards(),
            "label_spectra": [self.of(split) for split in self.splits] if self.config["classes"] else [],
            **dict.fromkeys(("denoise", "score_denoised"), [{"source": self.name}] if self.config["denoise"] else []),
            **{rule: jobs for study in self.studies for rule, jobs in study.jobs(self.name, self.is_simulated).items()},
        }

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction between the file, the splits and the classes."""
        at, spectra, classes = f"sources.{self.name}", self.spectra, self.config["classes"]
        if self.is_probed and not classes:
            yield f"{at}.classes: probes need classes; name a label, as in `classes: {{label: T_eff}}`"
        if classes and isinstance(classes["bins"], list) and sorted(set(classes["bins"])) != classes["bins"]:
            yield f"{at}.classes.bins: {classes['bins']} must ascend"
        if self.is_simulated:
            asked = sum(self.n_examples(split) for split in self.splits)
            if asked > spectra["n_spectra"]:
                yield f"{at}.splits: ask for {asked} spectra, but n_spectra is {spectra['n_spectra']}"
            if classes and classes["label"] not in LABELS:
                yield f"{at}.classes.label: simulated stars have no `{classes['label']}`; known: {', '.join(LABELS)}"
            for name in ("wavelength", "snr"):
                if spectra[name][0] >= spectra[name][1]:
                    yield f"{at}.spectra.{name}: {spectra[name][0]} is not below {spectra[name][1]}"
            for study in self.studies[:1]:
                yield from study.unknown_labels(at, LABELS)
        elif not spectra["n_pixels"] and self._measured[1]:
            absent = not Path(spectra["path"]).exists()
            advice = ", or set `n_pixels`, so that everything else can be planned without it" if absent else ""
            yield f"{at}.spectra.path: {self._measured[1]}{advice}"
        found = [study.contradictions(at, self.width, spectra.get("n_spectra")) for study in self.studies]
        yield from dict.fromkeys(line for own in found for line in own)
