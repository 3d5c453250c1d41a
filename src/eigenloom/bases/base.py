"""The contract every basis honours, and the two generic functions that save and load any of them."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from eigenloom.bases.registry import basis_class
from eigenloom.batches import Batches
from eigenloom.errors import MismatchError, StoreError
from eigenloom.moments import Standardization
from eigenloom.progress import Progress
from eigenloom.store.artifact import Artifact, read_artifact, read_single, write_artifact, write_single
from eigenloom.store.atomic import explained, read_json
from eigenloom.store.npy import keep_npy, map_npy

SILENT = Progress()
_LARGE_BYTES = 1 << 28

MemoryMapped = Annotated[Tensor, "memory-mapped"]
"""Type of a float32 tensor field that ``save_basis`` can keep as ``NAME.npy`` of its own, and ``load_basis`` maps."""


@dataclass(frozen=True, eq=False)
class Basis(ABC):
    """A fitted, frozen basis of ``k`` elements for rows of length ``d``.

    Subclasses are final frozen dataclasses: tensor fields are the artifact's arrays, those of type ``MemoryMapped``
    perhaps in files of their own, the rest its parameters, and there is no unfitted state. All formulas hold in the
    *fitted space*, that of ``standardization.apply(x)``: ``encode`` takes and ``decode`` returns such rows.
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
    mapped: bool | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Write a basis as an artifact (see ``write_artifact``); return the digest of its ``meta.json``.

    A path that ends in ``.safetensors`` becomes one file instead (see ``write_single``), without ``run``; the digest is
    then that of the file. ``origin`` says what the rows were, ``{"layer": ..., "signature": ...}``; ``check_origin``
    compares it later.
    ``mapped`` says whether ``MemoryMapped`` fields become files of their own; None: those above 256 MiB do. Such a file
    that a fit has already put there is digested, not written again. ``files`` are siblings that the caller has written
    and digested, such files or others: name -> sha256.
    """
    arrays: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {} if origin is None else {"origin": dict(origin)}
    _flatten(basis, "", arrays, parameters)
    if Path(directory).suffix == ".safetensors":
        return write_single(directory, kind=basis.kind, parameters=parameters, arrays=arrays, spec=spec, inputs=inputs)
    siblings = [f.name for f in dataclasses.fields(basis) if f.type == MemoryMapped]
    if mapped is not True:
        siblings = [name for name in siblings if mapped is None and arrays[name].nbytes > _LARGE_BYTES]
    with explained(Path(directory, "meta.json")):
        Path(directory, "meta.json").unlink(missing_ok=True)
    files = dict(files or {})
    for name, tensor in ((name, arrays.pop(name)) for name in siblings):
        if f"{name}.npy" not in files:
            files[f"{name}.npy"] = keep_npy(Path(directory, f"{name}.npy"), tensor)
    return write_artifact(
        directory, kind=basis.kind, parameters=parameters, arrays=arrays, spec=spec, inputs=inputs, run=run, files=files
    )


def load_basis(path: str | Path, verify: bool = False) -> Basis:
    """Load a basis of any registered kind from its directory, its ``meta.json``, or the one file it was saved as.

    Raises:
        StoreError: the artifact is damaged, of an unknown kind, or lacks a field.
    """
    artifact = read_single(path) if Path(path).suffix == ".safetensors" else read_artifact(path, verify=verify)
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
    """Sort the fields of a dataclass, nested ones under dotted names, into tensors and the rest.

    A tensor that is one number expanded to a length (of the identity, at any length of row) stays that: a parameter.
    """
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            _flatten(item, f"{prefix}{field.name}.", arrays, parameters)
        elif isinstance(item, Tensor) and item.ndim and len(item) > 1 and not any(item.stride()):
            parameters[prefix + field.name] = {"constant": item[0].item(), "length": len(item)}
        elif isinstance(item, Tensor):
            arrays[prefix + field.name] = item
        else:
            parameters[prefix + field.name] = item


def _build(cls: type[Any], prefix: str, artifact: Artifact) -> Any:
    """Undo ``_flatten``."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        constant = artifact.parameters.get(name)
        if field.type == MemoryMapped and name not in artifact.arrays:
            values[field.name] = _mapped_sibling(artifact, field.name)
        elif isinstance(constant, dict) and constant.keys() == {"constant", "length"}:
            values[field.name] = torch.tensor([constant["constant"]], dtype=torch.float64).expand(constant["length"])
        elif field.type is Standardization or field.type == "Standardization":
            values[field.name] = _build(Standardization, f"{name}.", artifact)
        elif name in artifact.arrays:
            values[field.name] = artifact.arrays[name]
        elif name in artifact.parameters:
            values[field.name] = artifact.parameters[name]
        else:
            raise StoreError(f"{artifact.directory}: a {cls.__name__} needs {name!r}, which the artifact lacks")
    return cls(**values)


def _mapped_sibling(artifact: Artifact, name: str) -> Tensor:
    """Map the file of a ``MemoryMapped`` field, whose size ``read_artifact`` has compared."""
    if f"{name}.npy" not in artifact.meta["files"]:
        raise StoreError(f"{artifact.directory}: a {artifact.meta['kind']} needs {name}.npy, which the artifact lacks")
    return map_npy(artifact.directory / f"{name}.npy")
