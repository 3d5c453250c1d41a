"""Put every score into one table, and everything it was made with into a manifest."""

from eigenloom.report import tables
from eigenloom.report.scores import csv_text
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def main(job: Job) -> None:
    """Read the metrics; write the table, its summary and the manifest in every form, `table.json` last."""
    paths = sorted(job.lists.get("metrics", []))
    documents = {path.as_posix(): tables.read_metrics(path) if path.exists() else None for path in paths}
    job.lists["metrics"] = [path for path in paths if path.exists()]
    table = tables.tabulate(documents)
    manifest = table.pop("manifest")
    write_text(job.out.with_name("table.csv"), tables.table_csv(table))
    write_text(job.out.with_name("table.md"), tables.markdown(table))
    write_text(job.out.with_name("manifest.csv"), csv_text(manifest))
    write_json(job.out.with_name("manifest.json"), manifest)
    write_json(job.out.with_name("summary.json"), tables.summary(table))
    head = {"format": "eigenloom.table", "version": 1, "name": job.spec["name"]}
    write_json(job.out, {**head, **table, "spec": job.spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "metrics")
