"""Fit kernel PCA to random windows of the training spectra, for attention to start from."""

from eigenloom.bases.base import save_basis
from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.batches import resolve_device
from eigenloom.progress import Console
from eigenloom.sources.patches import PatchRows
from job import Job, run
from surveys import survey_of


def main(job: Job) -> None:
    """Cut, fit, save."""
    spec, survey, console = job.spec, survey_of(job), Console()
    rows = PatchRows(
        survey, survey.split(spec["seed"], 0, spec["n_train"]), patch_size=spec["patch"],
        patches_per_spectrum=spec["patches_per_spectrum"], seed=spec["seed"], bad_pixels=spec["bad_pixels"],
        normalise=spec["normalise"],
    )  # fmt: skip
    basis = KernelPCA.fit(
        rows, seed=spec["seed"], device=resolve_device(job.device), resume=job.snapshot, progress=console,
        n_components=spec["dim"], n_landmarks=spec["n_landmarks"],
    )  # fmt: skip
    save_basis(basis, job.out.parent, spec=spec, inputs=job.inputs, run=job.facts(**console.close()))


if __name__ == "__main__":
    run(main, "survey")
