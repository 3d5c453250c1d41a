"""Fit kernel PCA to the rows of one matrix in a file, or convert a ``.pt`` state: one ``.safetensors`` file comes out.

``--state old.pt --out new.safetensors`` converts; ``--data`` then only fits the decoder. Stopped by SIGTERM, the same
command resumes.
"""

import argparse
from pathlib import Path

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.kernel_pca_import import import_kernel_pca
from eigenloom.batches import resolve_device
from eigenloom.errors import ConfigError
from eigenloom.linalg.kernels import KERNELS
from eigenloom.linalg.landmarks import CHOICES
from eigenloom.progress import Console
from eigenloom.sources.files import open_rows
from job import finish


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="rows: .h5, .hdf5, .npy, .npz or .pt")
    p.add_argument("--dataset-key", default="", help="data set of an HDF5 file, array of an .npz or .pt file (flux)")
    p.add_argument("--r", type=int, default=64, help="largest number of components (64)")
    p.add_argument("--landmarks", type=int, help="number of landmarks (2048, or all rows where there are fewer)")
    p.add_argument("--kernel", choices=KERNELS, default="rbf")
    p.add_argument("--gamma", default="auto", help="a number, or auto: 1 / median squared distance (rbf), 1 / d (poly)")
    p.add_argument("--degree", type=int, default=3, help="of poly (3)")
    p.add_argument("--coef0", type=float, default=1.0, help="of poly (1.0)")
    p.add_argument("--landmark-choice", choices=CHOICES, default="rpcholesky")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--state", type=Path, help="convert this .pt state instead of fitting")
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    return p


def main(a: argparse.Namespace) -> None:
    """Fit or convert, and save."""
    if a.out.suffix != ".safetensors":
        raise ConfigError(f"--out {a.out}: no pickles are written; type --out {a.out.with_suffix('.safetensors')}")
    if a.data is None and a.state is None:
        raise ConfigError("--data (rows to fit) or --state (a .pt file to convert) is needed")
    try:
        gamma = a.gamma if a.gamma == "auto" else float(a.gamma)
    except ValueError:
        raise ConfigError(f"--gamma: {a.gamma!r} is neither a number nor auto") from None
    if a.state is not None:
        rows = None if a.data is None else open_rows(a.data, a.dataset_key)
        import_kernel_pca(a.state, gamma=None if gamma == "auto" else gamma, rows=rows).save(a.out)
        return
    basis = KernelPCA.fit(
        open_rows(a.data, a.dataset_key), seed=a.seed, device=resolve_device(a.device), progress=Console(),
        resume=a.out.with_name(f".{a.out.name}.resume"), n_components=a.r, n_landmarks=a.landmarks, kernel=a.kernel,
        gamma=gamma, degree=a.degree, coef0=a.coef0, landmark_choice=a.landmark_choice,
    )  # fmt: skip
    basis.save(a.out)


if __name__ == "__main__":
    arguments = parser().parse_args()
    finish(lambda: main(arguments))
