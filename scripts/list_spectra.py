"""Fix which spectra of a survey a split consists of, and look for bad pixels in each."""

from eigenloom.sources.spectra_set import prepare_spectra
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Write the spectra edge and its siblings."""
    options = job.spec["spectra"]
    simulated = job["survey"].with_name("survey.h5").as_posix() if "survey" in job else ""
    keys = ("seed", "first", "n_examples", "n_pixels", "bad_pixels", "normalise")
    prepare_spectra(
        job.out,
        simulated or options["path"],
        keys=options.get("keys"),
        dataset=options.get("path", options["kind"]),
        **{key: job.spec[key] for key in keys},
        spec=job.spec,
        inputs=job.inputs,
    )
    write_json(job.out.with_name("run.json"), job.facts())


if __name__ == "__main__":
    run(main, "survey")
