"""Put all arms of the warm-start experiment into one table, and let a rule say what may be claimed."""

from eigenloom.evaluation import arms
from eigenloom.store.atomic import write_json, write_text
from job import Job, run


def main(job: Job) -> None:
    """Read every result; write the table in three forms, `table.json` last."""
    documents = [arms.read_arm(path) for path in job.lists["arms"]]
    order = {arm: place for place, arm in enumerate(job.spec["arms"])}
    table = arms.compare(sorted(documents, key=lambda d: (d["n_train"], order[d["arm"]], d["seed"])))
    texts = {"table.csv": arms.table_csv(table), "table.md": arms.markdown(table)}
    files = {
        name: {"bytes": len(text.encode()), "sha256": write_text(job.out.with_name(name), text)}
        for name, text in texts.items()
    }
    head = {"format": arms.TABLE_FORMAT, "version": arms.VERSION, **table}
    write_json(job.out, {**head, "files": files, "spec": job.spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "arms")
