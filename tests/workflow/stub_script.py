"""Stand in for any script of the workflow: write the edge and the files declared beside it, small and reproducible.

Copied over every file of ``scripts/`` where only the DAG matters; it starts fast, for it imports nothing heavy.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ARTIFACT = ["arrays.safetensors", "run.json"]
BESIDE = {
    "scenes": ["images.npy", "masks.npy", "files.json", "run.json"],
    "image_folder": ["files.json", "run.json"],
    "segmentation_folder": ["files.json", "run.json"],
    "ade20k": ["files.json", "run.json"],
    "train": ["config.json", "model.safetensors", "history.csv", "run.json"],
    "pin_model": ["run.json"],
    "pin_text_model": ["run.json"],
    "list_texts": ["tokens.npy", "labels.npy", "run.json"],
    "record_texts": ["acts0{number}.bin", "{stem}.run.json"],
    "label_texts": ["labels.bin", "labels.run.json"],
    "simulate": ["survey.h5", "run.json"],
    "list_spectra": ["rows.npy", "wavelength.npy", "run.json"],
    "denoise": ["survey.pcp.h5", "run.json"],
    "score_denoised": ["examples.json"],
    "fit_patches": ARTIFACT,
    "compare_arms": ["table.csv", "table.md"],
    "record": ["acts0{number}.bin", "{stem}.run.json"],
    "record_spectra": ["acts0{number}.bin", "{stem}.run.json"],
    "label": ["labels.bin", "labels.run.json"],
    "label_spectra": ["labels.bin", "labels.run.json"],
    "join_store": ["metadata.json", "shards.json", "run.json"],
    "adopt": ["run.json"],
    "measure": ["{stem}.safetensors", "{stem}.run.json"],
    "join_moments": ARTIFACT,
    "fit": ARTIFACT,
    "probe": ARTIFACT,
    "join_codes": ["run.json"],
    "evaluate": ["nmse_curve.csv"],
    "score": ["per_class.csv", "features.csv"],
    "illustrate": ["pictures.jpg", "maps.png"],
    "write_tables": ["table.csv", "table.md", "summary.json", "manifest.json", "manifest.csv"],
    "render": [
        "nmse_l0.svg",
        "layers.svg",
        "classes.svg",
        "probe_map.svg",
        "utilisation.svg",
        "history.svg",
        "weights.svg",
        "weight_paths.svg",
        "experts.svg",
        "expert_map.svg",
        "denoised.svg",
        "denoising.svg",
        "attention.svg",
        "optimizers.svg",
    ],
    "decompose": [*ARTIFACT, "components.npy", "mean.npy", "layout.json", "errors.json"],
    "rebuild": ["curve.csv"],
    "race": ["{stem}.timing.json"],
    "train_moe": ["config.json", "model.safetensors", "history.csv", "run.json"],
    "fit_bank": ARTIFACT,
    "judge_bank": [],
    "judge_baselines": [],
    "tabulate_experts": ["experts.csv"],
}
CODES = {"label": ["labels", "distances"], "topk": ["values", "indices"], "dense": ["values"]}


def siblings(script: str, spec: dict[str, Any]) -> list[str]:
    """Name the files beside the edge."""
    if script == "prepare":
        return BESIDE[spec["images"]["kind"]]
    if script == "encode":
        arrays = [f"{{stem}}.{name}.bin" for name in [*CODES[spec["layout"]], "errors"]]
        return [*arrays, "{stem}.stats.safetensors", "{stem}.run.json"]
    if script == "train":
        return BESIDE[script] + [f"snapshot-{i:02d}.safetensors" for i in range(1, spec["snapshots"] + 1)]
    if script == "train_arms":
        return [f"{arm}.json" for arm in spec["arms"] if arm != "cold"]
    return BESIDE[script]


def reached_by_import() -> None:
    """Name modules as the real scripts do, for the code digest; never called."""
    import eigenloom.bases.base  # noqa: F401


def main(words: list[str]) -> None:
    """Write an edge that depends on the specification and the inputs alone."""
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            options[word] = []
        else:
            options[list(options)[-1]].append(word)
    spec, out = json.loads(options.pop("--spec")[0]), Path(options.pop("--out")[0])
    for flag in ("--device", "--threads"):
        options.pop(flag)
    edges = sorted(path for paths in options.values() for path in paths)
    inputs = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in edges}
    script = Path(__file__).stem
    digest = hashlib.sha256(json.dumps([script, spec, inputs]).encode()).hexdigest()
    files = {}
    for name in siblings(script, spec):
        path = out.parent / name.format(stem=out.stem, number=out.stem.rpartition("-")[2])
        text = content(path.name, digest, edges)
        path.write_text(text)
        if not path.name.endswith("run.json"):
            files[path.name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    edge = {"files": files, "spec": spec, "inputs": inputs, "score": int(digest[:6], 16) / 2**24}
    out.write_text("" if out.suffix == ".html" else json.dumps(edge))


def content(name: str, digest: str, edges: list[str]) -> str:
    """Make up a file: the scores by the place of their metrics in a summary, else a line that names file and job."""
    if name == "summary.json":
        return json.dumps({str(Path(p).parent): {"nmse": json.loads(Path(p).read_text())["score"]} for p in edges})
    return json.dumps({"file": name, "job": digest}) if name.endswith(".json") else f"{name} {digest}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
