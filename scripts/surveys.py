"""The survey that a job on spectra reads: simulated by the job before it, or the user's own file."""

from eigenloom.sources.survey import Survey, open_survey
from job import Job


def survey_of(job: Job) -> Survey:
    """Open it."""
    options = job.spec["spectra"]
    path = job["survey"].with_name("survey.h5").as_posix() if "survey" in job else options["path"]
    return open_survey(path, options.get("keys"))
