"""The contract every basis honours, and the two generic functions that save and load any of them."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from eigenloom.bases.registry import basis_class
from eigenloom.batches import Batches
from eigenloom.errors import MismatchError, StoreError
from eigenloom.moments import Standardization
from eigenloom.progress import Progress
from eigenloom.store.artifact import Artifact, read_artifact, write_artifact
from eigenloom.store.atomic import read_json

SILENT = Progress()


@dataclass(frozen=True, eq=False)
class Basis(ABC):
    """A fitted, frozen basis of ``k`` elements for rows of length ``d``.

    Subclasses are final frozen dataclasses: tensor fields are the artifact's arrays, the rest its parameters,
    and there is no unfitted state. All formulas hold in the *fitted space*, that of
    ``standardization.apply(x)``: ``encode`` takes and ``decode`` returns such rows.
    """

    kind: ClassVar[str]
    geometry: ClassVar[str]
    """``projection`` (codes are coordinates) or ``distance`` (codes come from distances to centres)."""

    standardization: Standardization

    @classmethod
    @abstractmethod
    def fit(
        cls,
        batches: Batches,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        resume: Path | None = None,
        progress: Progress = SILENT,
        **parameters: Any,
    ) -> Self:
        """Fit to the rows of ``batches``, holding no more of them than a block at a time.

        Args:
            batches: rows in the fitted space; a ``StandardizedRows`` lends its standardization to the basis.
            seed: the only source of randomness.
            device: where the large products run.
            resume: file for snapshots; an interrupted fit called again with it ends with the same bytes.
            progress: bar and history.
            parameters: the kind's own.

        Raises:
            DataError: NaN or Inf, fewer rows than elements, one row, all features constant.
            ConfigError: a parameter is out of range or unknown.
            Interrupted: SIGTERM arrived and the state was saved.
        """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return codes ``[b, k]`` float32 of rows ``[b, d]`` in the fitted space, on the rows' device."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction ``[b, d]`` float32, in the fitted space, of codes ``[b, k]``."""

    @property
    @abstractmethod
    def n_elements(self) -> int:
        """The number of elements ``k``, which is the width of a code."""

    def code_energies(self, z: Tensor) -> Tensor | None:
        """Return the energy ``[b, k]`` that each code entry adds to the reconstruction, where that is defined.

        Only a basis whose elements are orthonormal has one: then dropping entries raises the squared error by
        exactly their sum. None elsewhere.
        """
        del z
        return None

    @property
    def n_features(self) -> int:
        """Length ``d`` of a row."""
        return self.standardization.mean.shape[0]


def save_basis(
    basis: Basis,
    directory: str | Path,
    *,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    run: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> str:
    """Write a basis as an artifact (see ``write_artifact``); return the digest of its ``meta.json``.

    ``origin`` says what the rows were, ``{"layer": ..., "signature": ...}``; ``check_origin`` compares it later.
    """
    arrays: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {} if origin is None else {"origin": dict(origin)}
    _flatten(basis, "", arrays, parameters)
    return write_artifact(
        directory, kind=basis.kind, parameters=parameters, arrays=arrays, spec=spec, inputs=inputs, run=run
    )


def load_basis(path: str | Path, verify: bool = False) -> Basis:
    """Load a basis of any registered kind from its directory or ``meta.json``.

    Raises:
        StoreError: the artifact is damaged, of an unknown kind, or lacks a field.
    """
    artifact = read_artifact(path, verify=verify)
    return _build(basis_class(artifact.meta["kind"]), "", artifact)


def check_origin(path: str | Path, origin: Mapping[str, Any]) -> None:
    """Refuse to apply a basis to rows of another origin than those it was fitted on.

    Args:
        path: directory or ``meta.json`` of the basis.
        origin: of the rows at hand, in the words of ``save_basis``.

    Raises:
        MismatchError: with the fields that differ and both their values.
    """
    meta_path = Path(path) if Path(path).name == "meta.json" else Path(path) / "meta.json"
    fitted = _leaves(read_json(meta_path)["parameters"].get("origin", {}))
    found = _leaves(origin)
    differing = [name for name in sorted({*fitted, *found}) if fitted.get(name) != found.get(name)]
    if differing:
        listed = "; ".join(f"{name}: fitted on {fitted.get(name)!r}, found {found.get(name)!r}" for name in differing)
        raise MismatchError(f"{meta_path}: this basis belongs to other rows ({listed}); fit one on this recording")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def _flatten(value: Any, prefix: str, arrays: dict[str, Tensor], parameters: dict[str, Any]) -> None:
    """Sort the fields of a dataclass, nested ones under dotted names, into tensors and the rest."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            _flatten(item, f"{prefix}{field.name}.", arrays, parameters)
        elif isinstance(item, Tensor):
            arrays[prefix + field.name] = item
        else:
            parameters[prefix + field.name] = item


def _build(cls: type[Any], prefix: str, artifact: Artifact) -> Any:
    """Undo ``_flatten``."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if field.type is Standardization or field.type == "Standardization":
            values[field.name] = _build(Standardization, f"{name}.", artifact)
        elif name in artifact.arrays:
            values[field.name] = artifact.arrays[name]
        elif name in artifact.parameters:
            values[field.name] = artifact.parameters[name]
        else:
            raise StoreError(f"{artifact.directory}: a {cls.__name__} needs {name!r}, which the artifact lacks")
    return cls(**values)
