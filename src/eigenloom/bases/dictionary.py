"""An external dictionary, such as a sparse autoencoder trained elsewhere, as a basis: read and moved, not fitted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch

from eigenloom.bases.base import SILENT
from eigenloom.bases.dictionary_file import read_dictionary
from eigenloom.bases.sparse_code import ACTIVATIONS, SparseCode, random_code
from eigenloom.batches import Batches, generator
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.moments import Standardization, standardization_of
from eigenloom.progress import Progress

ROWS = ("raw", "standardized")
SAMPLE_ROWS = 4096


@final
@dataclass(frozen=True, eq=False)
class ExternalDictionary(SparseCode):
    """A dictionary from a safetensors file, expressed in the fitted space.

    Fields: ``path`` and ``sha256`` of the file; ``keys``, the names under which its arrays were found; ``rows``, the
    space they were given in; ``random``, whether directions were drawn in place of the file's.
    """

    kind: ClassVar[str] = "dictionary"

    path: str
    sha256: str
    keys: dict[str, str]
    rows: str
    random: bool

    @classmethod
    def fit(  # type: ignore[override]  # a kind names its own parameters
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        path: str | Path = "",
        activation: str = "relu",
        n_active: int | None = None,
        threshold: float | None = None,
        rows: str = "raw",
        subtract_bias: bool = True,
        n_components: int | None = None,
        keys: dict[str, str] | None = None,
        random: bool = False,
    ) -> Self:
        """Read the file; of ``batches`` only width and standardization count, and for the floor a sample.

        Args:
            batches: rows in the fitted space.
            seed: of the floor's directions and sample; the file needs none.
            device: unused.
            resume: unused, this takes no time.
            progress: unused.
            path: of the safetensors file.
            activation: ``relu``, ``topk`` (with ``n_active``) or ``jumprelu`` (with a threshold from the file, or
                ``threshold`` for all elements).
            n_active: entries that ``topk`` leaves of a row.
            threshold: of ``jumprelu``; None takes the file's.
            rows: what the dictionary was trained on: ``raw`` rows, as recorded, or ``standardized`` ones, which are
                those of the fitted space.
            subtract_bias: whether its encoder sees rows minus the decoder's bias.
            n_components: the number of elements that the file must have; None takes what it has.
            keys: names of the arrays in the file, see ``dictionary_file.NAMES``; those left out are looked for.
            random: draw directions in place of the file's, as many and as often active: the floor.

        Raises:
            ConfigError: a parameter is out of range, or the file lacks what one asks for.
            MismatchError: the file is of another width or number of elements; both numbers are named.
            StoreError: the file is missing, damaged, of odd shapes or not finite.
        """
        del device, resume, progress
        _check(activation, n_active, threshold, rows)
        found = read_dictionary(path, batches.n_features, keys)
        k = found.decoder.shape[0]
        if n_components is not None and n_components != k:
            raise MismatchError(f"{path}: has {k} elements, but n_components is {n_components}; set it to {k}")
        if n_active is not None and n_active > k:
            raise ConfigError(f"n_active: {n_active}, but {path} has {k} elements")
        bounds = torch.zeros(k, dtype=torch.float64)
        if activation == "jumprelu":
            own = found.threshold if threshold is None else torch.tensor(float(threshold))
            if own is None:
                raise ConfigError(
                    f"{path}: has no threshold, which jumprelu needs; set `threshold` or name it in `keys`"
                )
            bounds = bounds + own
            if bounds.min() < 0:
                raise StoreError(
                    f"{path}: {found.keys['threshold']} goes down to {bounds.min():.3g}; jumprelu wants none below 0"
                )
        standardization = standardization_of(batches)
        space = standardization if rows == "raw" else Standardization.identity(batches.n_features)
        basis = cls(
            standardization=standardization,
            **found.in_space_of(space.mean, space.scale, subtract_bias),
            threshold=bounds.float(),
            activation=activation,
            n_active=n_active or 0,
            path=str(path),
            sha256=found.sha256,
            keys=found.keys,
            rows=rows,
            random=False,
        )
        return basis._randomised(batches, seed) if random else basis

    def _randomised(self, batches: Batches, seed: int) -> Self:
        """Draw directions in place of the file's, with as many entries on a sample of the rows."""
        sample = batches.sample(min(SAMPLE_ROWS, batches.n_rows), generator(seed, "reservoir"))
        share = float((self.encode(sample) != 0).double().mean())
        center = sample.double().mean(0).float()
        varying = sample.amax(0) > sample.amin(0)
        drawn = random_code(sample - center, varying, self.n_elements, seed=seed, n_active=self.n_active, share=share)
        return replace(
            self,
            center=center,
            encoder=drawn["encoder"],
            encoder_bias=torch.zeros(self.n_elements),
            threshold=drawn["threshold"],
            decoder=drawn["decoder"],
            decoder_bias=center.clone(),
            activation="topk" if self.n_active else "jumprelu",
            random=True,
        )


def _check(activation: str, n_active: Any, threshold: float | None, rows: str) -> None:
    """Refuse parameters that no file could make right."""
    for name, value, known in (("activation", activation, ACTIVATIONS), ("rows", rows, ROWS)):
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is unknown; use {' or '.join(known)}")
    if (activation == "topk") != (n_active is not None):
        raise ConfigError(f"n_active: {n_active}, but it goes with `activation: topk`, and only with it")
    if n_active is not None and (isinstance(n_active, bool) or not isinstance(n_active, int) or n_active < 1):
        raise ConfigError(f"n_active: {n_active!r} is not a whole number of at least 1")
    if threshold is not None and (activation != "jumprelu" or not 0 <= threshold < float("inf")):
        raise ConfigError(f"threshold: {threshold}, but it goes with `activation: jumprelu` and is not negative")
