"""Split a survey into what spectra share and what hit them, by principal component pursuit."""

from eigenloom.provenance import file_digest
from eigenloom.sources.denoising import denoise_survey
from eigenloom.sources.pursuit import Pursuit
from eigenloom.store.atomic import explained, write_json
from job import Job, run
from surveys import survey_of


def main(job: Job) -> None:
    """Write the denoised survey, then the edge that names it."""
    spec = job.spec
    path = job.out.with_name("survey.pcp.h5")
    with explained(job.out):
        job.out.unlink(missing_ok=True)
    facts = denoise_survey(
        survey_of(job), path, Pursuit(**spec["denoise"]), seed=spec["seed"], bad_pixels=spec["bad_pixels"],
        work=job.snapshot.with_suffix(""),
    )  # fmt: skip
    write_json(job.out.with_name("run.json"), job.facts())
    edge = {
        "format": "eigenloom.denoised",
        "version": 1,
        **facts,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}},
        "spec": spec,
        "inputs": job.inputs,
    }
    write_json(job.out, edge)


if __name__ == "__main__":
    run(main, "survey")
