"""Which kinds of basis exist, where they live, and which random counterpart is their floor.

Standard library only and no import of the kinds themselves: the Snakefile reads this at parse time.
Kinds from outside register under the entry point group ``eigenloom.bases``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from eigenloom.errors import ConfigError

if TYPE_CHECKING:
    from eigenloom.bases.base import Basis

GROUP = "eigenloom.bases"


@dataclass(frozen=True)
class Kind:
    """Where a kind's class is and how its codes are made.

    ``beyond_width`` kinds may have more elements than a row has features, though they are projections.
    """

    module: str
    name: str
    geometry: str
    beyond_width: bool = False


KINDS = {
    "dictionary": Kind("eigenloom.bases.dictionary", "ExternalDictionary", "projection", beyond_width=True),
    "kernel_pca": Kind("eigenloom.bases.kernel_pca", "KernelPCA", "projection", beyond_width=True),
    "kmeans": Kind("eigenloom.bases.kmeans", "KMeans", "distance"),
    "pca": Kind("eigenloom.bases.pca", "PCA", "projection"),
    "robust_pca": Kind("eigenloom.bases.robust_pca", "RobustPCA", "projection"),
    "random_directions": Kind("eigenloom.bases.random_directions", "RandomDirections", "projection"),
    "sae": Kind("eigenloom.bases.sae", "SparseAutoencoder", "projection", beyond_width=True),
    "srht_pca": Kind("eigenloom.bases.srht_pca", "SRHTPCA", "projection"),
}


def find_kind(kind: str) -> Kind:
    """Return the entry of a kind, ours or an installed package's.

    Raises:
        ConfigError: nobody registered it.
    """
    if kind in KINDS:
        return KINDS[kind]
    for entry in entry_points(group=GROUP, name=kind):
        module, _, name = entry.value.partition(":")
        return Kind(module, name, "projection")
    known = sorted({*KINDS, *(entry.name for entry in entry_points(group=GROUP))})
    raise ConfigError(f"{kind!r} is not a kind of basis; known: {', '.join(known)}")


def basis_class(kind: str) -> "type[Basis]":
    """Import and return the class of a kind.

    Raises:
        ConfigError: the kind is unknown.
    """
    entry = find_kind(kind)
    return getattr(import_module(entry.module), entry.name)


def floor_of(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind and parameters of the random basis of the same size: what any result must beat.

    Seeded random training rows as centres for distances, a seeded random orthonormal basis for projections. Directions
    of a kernel's feature space are compared with random directions of that space: functions drawn from the Gaussian
    process of the same kernel, on uniform landmarks. A sparse autoencoder is compared with itself before its training,
    and another dictionary with random directions that are active as often.
    """
    if kind == "sae":
        sizes = {name: parameters[name] for name in ("n_components", "n_active") if name in parameters}
        return {"kind": kind, **sizes, "steps": 0}
    if kind == "dictionary":
        return {"kind": kind, **parameters, "random": True}
    if kind == "kernel_pca":
        return {"kind": kind, **parameters, "landmark_choice": "uniform", "directions": "random"}
    if find_kind(kind).geometry == "distance":
        floor = (
            {"kind": "kmeans", "n_clusters": parameters["n_clusters"]}
            if "n_clusters" in parameters
            else {"kind": "kmeans"}
        )
        return {**floor, "init": "random", "n_init": 1, "max_iter": 0, "relocate": 0.0}
    size = {"n_components": parameters["n_components"]} if "n_components" in parameters else {}
    return {"kind": "random_directions", **size}
