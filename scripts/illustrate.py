"""Collect the gallery of a source: per class and basis, the images that the class's best feature marks most."""

from eigenloom.batches import resolve_device
from eigenloom.codes.checks import layer_number, matching_basis
from eigenloom.codes.codings import coding_from
from eigenloom.codes.views import RowCodes
from eigenloom.errors import MismatchError
from eigenloom.report.evidence import gather
from eigenloom.report.illustrations import Sheets, chosen_results, rows_of, shown_classes
from eigenloom.sources.activations import ActivationRows
from eigenloom.sources.images import open_images
from eigenloom.store.atomic import explained, write_json
from eigenloom.store.recording import open_store
from job import Job, run

NAMES = ("source", "layer", "basis", "coding")


def main(job: Job) -> None:
    """Choose layers and codings by probe_train, walk probe_val once per basis, write the sheets, then the edge."""
    store, images = open_store(job["store"]), open_images(job["images"])
    if len(images) != store.n_examples:
        raise MismatchError(f"{job['store']}: {store.n_examples} examples, but {job['images']} lists {len(images)}")
    with explained(job.out):
        job.out.unlink(missing_ok=True)
    evidence, device = gather(metrics=job.lists["metrics"]), resolve_device(job.device)
    bases = {(path.parts[-3], path.parts[-2]): path for path in job.lists["bases"]}
    sheets, methods = Sheets(images, store), []
    chosen = chosen_results(evidence)
    classes = shown_classes(evidence, chosen)
    for path in chosen:
        document = evidence.metrics[path]
        basis = matching_basis(bases[document["basis"], document["layer"]], store, document["layer"], allow_shift=True)
        rows = ActivationRows(store, layer_number(store, document["layer"]))
        codes = RowCodes(rows, basis, coding_from(document["probe"]["coding"]), device=device, where="probe_val")
        entries = sheets.add(codes, list(rows_of(evidence, path, classes)))
        methods.append({**{name: document[name] for name in NAMES}, "metrics": path, "classes": entries})
    sheet_facts = sheets.write(job.out.with_name("pictures.jpg"), job.out.with_name("maps.png"))
    document = {
        "format": "eigenloom.gallery",
        "version": 1,
        "source": job.spec["source"],
        "split": "probe_val",
        **sheet_facts,
        "methods": methods,
    }
    write_json(job.out, {**document, "spec": job.spec, "inputs": job.inputs})


if __name__ == "__main__":
    run(main, "store", "images", "metrics", "bases")
