"""Put the results of all banks and baselines into one table, over trainings."""

from eigenloom.report.expert_table import read_results, table_csv, tabulate
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def main(job: Job) -> None:
    """Read, tabulate, write; ``experts.json`` last."""
    table = tabulate([read_results(path) for path in job.lists["metrics"]])
    write_text(job.out.with_name("experts.csv"), table_csv(table))
    write_json(job.out, {**table, "name": job.spec["name"], "spec": job.spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "metrics")
