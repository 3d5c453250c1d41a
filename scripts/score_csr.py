r"""Probe codes that somebody else wrote as CSR matrices, such as saev's ``token_acts.npz``, and put them into one table
with results of this repository::

    python scripts/score_csr.py --train a/token_acts.npz --val b/token_acts.npz \\
        --train-store artifacts/theirs/saev/shards/probe_train/store.json \\
        --val-store artifacts/theirs/saev/shards/probe_val/store.json \\
        --layer layer-23 --name their-sae --out results/theirs/layer-23/their-sae/csr/metrics.json \\
        --beside results/theirs/layer-23/*/*/metrics.json

Rows of the codes are those of the recordings, void ones included, in stored order. Beside the codes stand the same
codes dealt to other rows. Codes alone reconstruct nothing, so there is no NMSE.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.batches import generator
from eigenloom.codes.csr import CsrCodes
from eigenloom.errors import DataError, MismatchError
from eigenloom.probes.fit import fit_probe
from eigenloom.probes.inputs import refuse_shared_examples
from eigenloom.provenance import file_digest
from eigenloom.report import scores, tables
from eigenloom.store.atomic import write_json, write_text
from eigenloom.store.recording import ActivationStore, open_store
from tool import run_tool

CODING = "csr"


def labels_of(store: ActivationStore) -> np.ndarray:
    """Return the label of every row."""
    labels = store.labels()
    if labels is None or store.classes is None:
        raise DataError(
            f"{store.directory}: has no labels with names; adopt it with `classes` (docs/howto/dictionaries.md)"
        )
    return labels.numpy()


def probe(streams: list[CsrCodes], labels: list[np.ndarray], store: ActivationStore, words: Any) -> dict[str, Any]:
    """Fit and measure; return what ``scores`` takes for the ``meta.json`` of a probe."""
    settings = {"l2": words.l2, "top_n": words.top_n, "memory_mb": words.memory_mb, "device": words.device}
    void = store.void if words.void == "masked" else None
    result = fit_probe(streams[0], labels[0], streams[1], labels[1], classes=store.classes or (), void=void, **settings)
    parameters = {**result.document(), "coding_name": CODING, "layer": words.layer, "void": words.void}
    return {"parameters": parameters, "spec": None, "inputs": {}}


def main(words: argparse.Namespace) -> None:
    """Write ``metrics.json``, its tables of classes and features, and with ``--beside`` a ``table.md``."""
    paths = (words.train_store, words.val_store)
    opened = (open_store(paths[0]), open_store(paths[1]))
    refuse_shared_examples(paths, opened)
    if (opened[0].classes, opened[0].void) != (opened[1].classes, opened[1].void):
        raise MismatchError(f"{paths[0]} and {paths[1]} differ in their classes; adopt both alike")
    streams = [CsrCodes(path, store.n_rows) for path, store in zip((words.train, words.val), opened, strict=True)]
    labels = [labels_of(store) for store in opened]
    found = probe(streams, labels, opened[0], words)
    draw = np.random.default_rng(generator(words.seed, "shuffle").initial_seed())
    floor = probe(streams, [draw.permutation(rows) for rows in labels], opened[0], words)
    spec = {"source": (opened[0].sidecar or {}).get("source", "foreign"), "layer": words.layer, "basis": words.name}
    spec |= {"coding": CODING, "seed": words.seed, "codes": [file_digest(path) for path in (words.train, words.val)]}
    inputs = {str(path): file_digest(path) for path in paths}
    basis = {"kind": CODING, "geometry": "projection", "k": streams[0].n_features}
    nothing = {**dict.fromkeys(scores.RECONSTRUCTION), "l0": found["parameters"]["metrics"]["l0_val"]}
    reconstruction = {"codings": {CODING: nothing}, "basis": basis, "utilisation": {}, "spec": None, "inputs": {}}
    document = scores.merge(spec, inputs, reconstruction, found, reconstruction, floor)
    texts = {"per_class.csv": scores.csv_text(scores.class_rows(found, floor), scores.PER_CLASS)}
    texts["features.csv"] = scores.csv_text(scores.feature_rows(found))
    document["files"] = {
        n: {"bytes": len(t.encode()), "sha256": write_text(words.out.with_name(n), t)} for n, t in texts.items()
    }
    write_json(words.out, document)
    every = {path.as_posix(): tables.read_metrics(path) for path in (words.out, *words.beside)}
    text = tables.markdown(tables.tabulate(every))
    write_text(words.out.with_name("table.md"), text)
    print(text)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, text in {"--train": "codes of probe_train", "--val": "codes of probe_val"}.items():
        found.add_argument(flag, type=Path, required=True, help=f"{text}, as scipy.sparse.save_npz writes them")
        found.add_argument(f"{flag}-store", type=Path, required=True, help="store.json of their rows, with labels")
    found.add_argument("--layer", required=True, help="name of the layer, such as layer-23")
    found.add_argument("--name", required=True, help="name of the dictionary in the table")
    found.add_argument("--out", type=Path, required=True, help="metrics.json to write; tables go beside it")
    found.add_argument("--beside", type=Path, nargs="*", default=[], help="metrics.json of other results of one table")
    found.add_argument(
        "--void", choices=("masked", "class"), default="masked", help="what becomes of rows without class"
    )
    found.add_argument("--l2", type=float, default=1e-8, help="ridge on the slope")
    found.add_argument("--top-n", type=int, default=10, help="best features listed per class")
    found.add_argument("--memory-mb", type=int, default=1024, help="bound on the working set")
    found.add_argument("--seed", type=int, default=0, help="of the floor")
    return found


if __name__ == "__main__":
    run_tool(main, parser())
