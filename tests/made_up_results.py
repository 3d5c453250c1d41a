"""Small hand-made edges for the report: one source, two layers, k-means and PCA, their floors, three classes."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from eigenloom.report import scores
from eigenloom.store.artifact import write_artifact
from eigenloom.store.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("layer-01", "layer-03")
METHODS = {"kmeans-004": ("onehot", "inverse-distance"), "pca": ("topk-00001", "dense")}
HOSTILE = '<script src="http://evil.example/x.js"></script>|*a*|$x_1$'
PREVALENCES = [0.5, 0.3, 0.2]


def reconstruction(layer, basis, nmse=0.25):
    """A ``reconstruction.json``; random bases are twice as wrong."""
    clusters = basis.startswith("kmeans")
    nmse *= 2 if basis.endswith("-random") else 1
    names = {"onehot": 1} if clusters else {"topk-00001": 1, "dense": 4}
    counts = [30, 10, 8, 0] if clusters else [12, 12, 12, 12]
    total = {"dead": counts.count(0), "share_largest": 0.6, "entropy": 0.6, "effective": 2.4, "collapsed": False}
    return {
        "format": "eigenloom.reconstruction",
        "version": 1,
        "layer": layer,
        "basis": {
            "kind": "kmeans" if clusters else "pca",
            "geometry": "distance" if clusters else "projection",
            "k": 4,
        },
        "n_rows": 48,
        "codings": {
            name: {"nmse": nmse / l0, "nmse_raw": nmse, "nmse_raw_own_mean": nmse, "l0": float(l0), "nominal_l0": l0}
            for name, l0 in names.items()
        },
        "utilisation": {name: {"total": total, "per_shard": [total], "counts": counts} for name in names},
        "spec": {"layer": layer},
        "inputs": {f"artifacts/s/bases/{basis}/{layer}/meta.json": "a" * 64},
    }


def probe(layer, coding, probe_r=0.4, mean_ap=0.6):
    """The ``meta.json`` of a probe over three classes, the last of which has a hostile name."""
    precisions = [mean_ap + 0.1, mean_ap, mean_ap - 0.1]
    classes = {
        "class": ["one", "two", HOSTILE],
        "skipped": [None, None, None],
        "n_train": [50, 30, 20],
        "n_val": [50, 30, 20],
        "prevalence_train": PREVALENCES,
        "prevalence_val": PREVALENCES,
        "best_feature": [0, 1, 2],
        "ap": precisions,
        "ap_floor": PREVALENCES,
        "purity": [1.0, 0.5, float("nan")],
    }
    metrics = {
        "probe_r": probe_r,
        "probe_r_train": probe_r + 0.01,
        "map": mean_ap,
        "coverage_03": 1.0,
        "purity_16": 0.75,
        "floor_map": 1 / 3,
        "floor_probe_r": 0.0,
        "floor_coverage_03": 1 / 3,
        "l0_train": 3.9,
        "l0_val": 4.0,
    }
    counts = {"n_classes": 3, "n_evaluated": 3, "n_rows_train": 100, "n_rows_val": 100}
    counts |= {"n_pairs": 12, "n_pairs_max_iter": 1, "n_pairs_approximate": 2}
    return {
        "kind": "probe",
        "parameters": {
            "metrics": metrics,
            "counts": counts,
            "classes": classes,
            "path": "histogram",
            "top_features": {"class": [0, 0], "rank": [1, 2], "feature": [0, 3], "ap": [0.7, 0.6]},
        },
        "spec": {"seed": 7, "layer": layer, "coding": {"kind": coding}, "probe": {"l2": 1e-8, "polish": "best"}},
        "inputs": {"artifacts/s/saev/shards/probe_val/store.json": "b" * 64},
    }


def metrics(layer, basis, coding, *, value=0.4, floor=0.3, seed=None, with_floor=True):
    """A ``metrics.json`` document whose Probe R is ``value`` and whose mAP is 0.2 more; likewise its floor's."""
    spec = {"source": "s", "layer": layer, "basis": basis, "coding": coding, **({} if seed is None else {"seed": seed})}
    own = (reconstruction(layer, basis), probe(layer, coding, value, value + 0.2))
    random = (reconstruction(layer, f"{basis}-random"), probe(layer, coding, floor, floor + 0.2))
    return scores.merge(spec, {"some/path.json": "c" * 64}, *own, *(random if with_floor else ()))


def path_of(layer, basis, coding):
    """Where its metrics.json belongs."""
    return f"results/s/{layer}/{basis}/{coding}/metrics.json"


def weights(kept=0.8, mean=0.3, random=0.35, left=0.1, walk=0.3, runs=("model",)):
    """The ``metrics.json`` of a collection: accuracy and error of held-out checkpoints at k = 2, and their controls."""
    samples = [
        {"training": run, "step": 10 * i, "held_out": i == 2, "scores": [10.0 * place + i, i**2 / 4], "accuracy": None}
        for place, run in enumerate(runs)
        for i in range(4)
    ]
    rows = []
    for k in (0, 2):
        accuracy = {"fitted": mean if k == 0 else 0.9, "held_out": mean if k == 0 else kept}
        errors = {"fitted": 1.0 if k == 0 else 0.01, "held_out": 1.0 if k == 0 else left}
        rows.append({
            "k": k, "bytes": 400 * (k + 1), "nmse_fitted": errors["fitted"], "nmse_held_out": errors["held_out"],
            "nmse_held_out_random": 1.0 - 0.001 * k, "nmse_fitted_walk": 1.0 - 0.4 * k,
            "nmse_held_out_walk": 1.0 if k == 0 else walk, "accuracy_fitted": accuracy["fitted"],
            "accuracy_held_out": accuracy["held_out"], "accuracy_held_out_random": mean if k == 0 else random,
        })  # fmt: skip
    optimizer = {"kind": "adamw", "lr": 0.002}
    return {
        "format": "eigenloom.weights", "version": 1, "n_features": 100, "n_components": 2, "method": "dual",
        "orthonormality_error": 1e-7,
        "trainings": [{"name": run, "seed": i, "steps": 40, "optimizer": optimizer} for i, run in enumerate(runs)],
        "samples": samples, "shares": [0.8, 0.1], "shares_walk": [0.6, 0.15],
        "original": {"fitted": 0.9, "held_out": 0.85}, "curve": rows,
        "groups": [
            {"group": "blocks.0", "n_numbers": 90, "nmse": 0.2}, {"group": HOSTILE, "n_numbers": 10, "nmse": None}
        ],
        "groups_k": 2, "sketch": {"residual_ratio": 1.0123, "largest_angle": 3.21},
        "files": {}, "spec": {}, "inputs": {},
    }  # fmt: skip


def documents(**overrides):
    """All metrics by path; PCA loses to its floor, k-means beats it, and the later layer knows more."""
    found = {}
    for i, layer in enumerate(LAYERS):
        for basis, codings in METHODS.items():
            for coding in codings:
                values = {"value": (0.5 if basis == "pca" else 0.4) - 0.1 * (1 - i)}
                values["floor"] = values["value"] + (0.05 if basis == "pca" else -0.05)
                found[path_of(layer, basis, coding)] = metrics(
                    layer, basis, coding, **{**values, **overrides.get(basis, {})}
                )
    return found


def run_script(name, cwd, spec, out, **edges):
    """Run a rule's script as Snakemake does; return its exit status and what it wrote to stderr."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--spec", json.dumps(spec), "--out", out]
    for flag, paths in edges.items():
        command += [f"--{flag.replace('_', '-')}", *paths]
    environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(cwd)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stderr


def write_tree(root, names=("", "-random")):
    """Write every edge that ``score`` reads below ``root``, and the bases' and the model's artifacts."""
    for layer in LAYERS:
        for basis, codings in METHODS.items():
            for suffix in names:
                write_json(
                    root / f"results/s/{layer}/{basis}{suffix}/reconstruction.json",
                    reconstruction(layer, basis + suffix),
                )
                arrays = {"inertia_history": torch.tensor([4.0, 2.0, 1.0]), "lr_history": torch.ones(3, 3)}
                if basis == "pca":
                    arrays = {"explained_variance": torch.tensor([4.0, 2.0, 1.0])}
                write_artifact(
                    root / f"artifacts/s/bases/{basis}{suffix}/{layer}",
                    kind="kmeans" if basis != "pca" else "pca",
                    parameters={"total_variance": 8.0, "rank": 3},
                    arrays=arrays,
                    spec={"seed": 7, "layer": layer, "basis": {"kind": "x", "n_clusters": 4}},
                )
                for coding in codings:
                    document = probe(layer, coding, 0.4 if suffix else 0.5)
                    document["parameters"] = scores.finite(document["parameters"])
                    write_json(root / f"artifacts/s/probes/{basis}{suffix}/{coding}/{layer}/meta.json", document)
    write_json(root / "results/weights/pooled/metrics.json", weights(runs=("model", "other")))
    model, history = root / "artifacts/s/model", "step,loss,lr\n0,2.0,0.1\n1,1.0,\n"
    edge = {
        "format": "eigenloom.model",
        "metrics": {"accuracy": 0.9, "recall": 0.75},
        "bar": {"accuracy": 0.87, "recall": 0.7},
    }
    write_json(
        model / "meta.json", {**edge, "files": {"history.csv": {"sha256": write_text(model / "history.csv", history)}}}
    )


def expert_rows(method, size, parameters, error, accuracy, nll, kl, n=3):
    """Rows of results of one method over ``n`` trainings that spread a little round some means."""
    return [
        {
            "method": method, "size": size, "parameters": parameters, "training": f"seed-{i}",
            "relative_error": error + 0.01 * (i - 1), "accuracy": accuracy + 0.002 * (i - 1),
            "nll": nll + 0.01 * (i - 1), "kl": kl + 0.001 * (i - 1),
            "per_expert": {"gate": [error, error / 2], "up": [error, error]} if error else {},
        }
        for i in range(n)
    ]  # fmt: skip


def experts(accuracy=0.975, nll=0.12, kl=0.02, error=0.6, n=3, names=("ts-pca", "slow")):
    """Results of two banks, the second of larger error, and of baselines and controls, as documents."""
    head = {"format": "eigenloom.experts", "version": 1, "moe": "m", "files": {}, "spec": {}, "inputs": {}}
    documents = []
    for place, name in enumerate(names):
        rows = expert_rows(name, "r16-m08", 0.379, error + 0.02 * place, accuracy, nll, kl, n)
        rows += expert_rows(name, "r16-m16", 0.508, error - 0.1, accuracy, nll, kl, n)
        seeding = {"method": "ts_pca", "operations": {"r16-m08": 2e6 * (1 + place), "r16-m16": 3e6}}
        documents.append({**head, "bank": name, "rows": rows, "seeding": seeding})
    rows = [
        *expert_rows("dense", "", 1.0, 0.0, 0.98, 0.1, 0.0, n),
        *expert_rows("zeroed", "", 0.0, 1.0, 0.1, 2.3, 2.0, n),
    ]
    for size, share in (("r16-m08", 0.375), ("r16-m16", 0.5)):
        rows += expert_rows("truncated SVD", size, share, 0.69, 0.97, 0.15, 0.04, n)
    return [*documents, {**head, "bank": "baselines", "rows": rows}]
