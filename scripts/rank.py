"""Rank the optimizers of a race: a page of intervals and of what they support, and its figure."""

from eigenloom.report.races import draw_races, race_sentences, race_table, read_races
from eigenloom.store.atomic import read_json, write_text
from job import Job, run

HEAD = """# Race of optimizers

Validation losses with 95 % intervals over seeds, at learning rates swept by factors of 2 on another seed until the best
was inside. Initial weights, data order, schedule, weight decay and dtype are the same for all. Times are CPU seconds of
one thread inside `step`. Differences are claimed where the interval of the differences, paired by seed, excludes zero.
"""


def main(job: Job) -> None:
    """Read every race, write the page and the figure."""
    entries = read_races(job.lists.get("races", []))
    rows = race_table(entries)
    columns = list(rows[0]) if rows else []
    table = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    facts = read_json(job.lists["races"][0].with_suffix(".timing.json"))
    machine = ", ".join(f"{key} {facts[key]}" for key in ("machine", "python", "torch", "threads"))
    lines = [HEAD, *(f"- {sentence}" for sentence in race_sentences(entries)), ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    write_text(job.out.with_name("race.svg"), draw_races(entries))
    write_text(job.out, "\n".join([*lines, "", f"Measured on: {machine}. ![Race](race.svg)", ""]))


if __name__ == "__main__":
    run(main, "races")
