"""Score a denoised survey: hits found, decibels gained, beside simpler methods; or injected hits without a truth."""

import json

from eigenloom.evaluation.denoising import examples, judge
from eigenloom.sources.pursuit import Pursuit
from eigenloom.store.atomic import write_json, write_text
from job import Job, run
from surveys import survey_of


def main(job: Job) -> None:
    """Write the spectra to be drawn, then the scores."""
    survey, path = survey_of(job), job["denoised"].with_name("survey.pcp.h5")
    document = judge(survey, path, Pursuit(**job.spec["denoise"]), seed=job.spec["seed"])
    text = json.dumps(examples(survey, path), separators=(",", ":"), allow_nan=False) + "\n"
    digest = write_text(job.out.with_name("examples.json"), text)
    head = {"format": "eigenloom.denoising", "version": 1, "source": job.spec["source"], **document}
    files = {"examples.json": {"bytes": len(text.encode()), "sha256": digest}}
    write_json(job.out, {**head, "files": files, "spec": job.spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "denoised", "survey")
