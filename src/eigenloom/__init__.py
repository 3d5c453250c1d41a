"""eigenloom: spectral bases for transformer activations, 1-D spectra and model weights.

Public names are imported on first use, so that ``import eigenloom`` costs nothing and the Snakefile never
loads torch. Each name is listed once, in ``_EXPORTS``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Basis": "eigenloom.bases.base",
    "KMeans": "eigenloom.bases.kmeans",
    "PCA": "eigenloom.bases.pca",
    "RandomDirections": "eigenloom.bases.random_directions",
    "load_basis": "eigenloom.bases.base",
    "save_basis": "eigenloom.bases.base",
    "Batches": "eigenloom.batches",
    "ArrayRows": "eigenloom.sources.arrays",
    "ActivationRows": "eigenloom.sources.activations",
    "Moments": "eigenloom.moments",
    "Standardization": "eigenloom.moments",
    "StandardizedRows": "eigenloom.moments",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'eigenloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(["__version__", *_EXPORTS])
