"""eigenloom: spectral bases for transformer activations, 1-D spectra and model weights.

Public names are imported on first use, so that ``import eigenloom`` costs nothing and the Snakefile never
loads torch. Each name is listed once, in ``_EXPORTS``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Basis": "eigenloom.bases.base",
    "KernelPCA": "eigenloom.bases.kernel_pca",
    "KMeans": "eigenloom.bases.kmeans",
    "PCA": "eigenloom.bases.pca",
    "SRHTPCA": "eigenloom.bases.srht_pca",
    "SparseAutoencoder": "eigenloom.bases.sae",
    "ExternalDictionary": "eigenloom.bases.dictionary",
    "RandomDirections": "eigenloom.bases.random_directions",
    "RobustPCA": "eigenloom.bases.robust_pca",
    "load_basis": "eigenloom.bases.base",
    "save_basis": "eigenloom.bases.base",
    "Batches": "eigenloom.batches",
    "ColumnBlocks": "eigenloom.batches",
    "ArrayRows": "eigenloom.sources.arrays",
    "ActivationRows": "eigenloom.sources.activations",
    "Hdf5Rows": "eigenloom.sources.hdf5",
    "PatchRows": "eigenloom.sources.patches",
    "SpectraRows": "eigenloom.sources.spectra",
    "Moments": "eigenloom.moments",
    "pcp": "eigenloom.linalg.pcp",
    "SRHT": "eigenloom.linalg.srht",
    "fwht": "eigenloom.linalg.fwht",
    "Standardization": "eigenloom.moments",
    "StandardizedRows": "eigenloom.moments",
    "FreezeSchedule": "eigenloom.nn.freezing",
    "KPCAWarmSelfAttention": "eigenloom.nn.warm_attention",
    "denoise_survey": "eigenloom.sources.denoising",
    "SpectraTEON": "eigenloom.optim.spectra_teon",
    "spectra_shape": "eigenloom.optim.shape",
    "orthogonalize": "eigenloom.linalg.orthogonalize",
    "AlternatingBankTrainer": "eigenloom.experts.trainer",
    "ExpertCheckpoint": "eigenloom.experts.checkpoint",
    "export_dense": "eigenloom.experts.export",
    "ExpertBank": "eigenloom.experts.bank",
    "ExpertSource": "eigenloom.experts.source",
    "Normalizer": "eigenloom.experts.normalizer",
    "SeedingConfig": "eigenloom.experts.settings",
    "SeedingMethod": "eigenloom.experts.settings",
    "WarmStart": "eigenloom.experts.warm_start",
    "create_warm_start": "eigenloom.experts.warm_start",
    "load_bank": "eigenloom.experts.bank",
    "save_bank": "eigenloom.experts.bank",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'eigenloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(["__version__", *_EXPORTS])
