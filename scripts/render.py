"""Render the report of an experiment: one page, its figures also as files beside it."""

from eigenloom.report.evidence import gather
from eigenloom.report.page import draw, render
from eigenloom.store.atomic import write_text
from job import Job, run

EDGES = (
    "tables",
    "metrics",
    "reconstructions",
    "bases",
    "models",
    "spectra",
    "weights",
    "experts",
    "denoised",
    "arms",
    "races",
    "galleries",
)


def main(job: Job) -> None:
    """Read every edge, draw, write the figures, then the page."""
    edges = {name: job.lists.get(name, []) for name in EDGES}
    evidence = gather(**edges)
    figures = draw(evidence)
    for name, text in figures.items():
        write_text(job.out.with_name(f"{name}.svg"), text)
    write_text(job.out, render(job.spec["name"], evidence, figures, job.out.parent, edges["tables"]))


if __name__ == "__main__":
    run(main, *EDGES)
