"""Simulate a survey of stars as one HDF5 file in the layout that real surveys use."""

from eigenloom.provenance import file_digest
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
from eigenloom.store.atomic import explained, write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the file, then the edge that names it."""
    style = SurveyStyle(**job.spec["style"])
    path = job.out.with_name("survey.h5")
    with explained(job.out):
        job.out.unlink(missing_ok=True)
    write_survey(path, style, job.spec["seed"], job.spec["n_spectra"])
    write_json(job.out.with_name("run.json"), job.facts(spectra=job.spec["n_spectra"]))
    edge = {
        "format": "eigenloom.survey",
        "version": 1,
        "n_spectra": job.spec["n_spectra"],
        "n_pixels": style.n_pixels,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}},
        "spec": job.spec,
        "inputs": job.inputs,
    }
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main)
