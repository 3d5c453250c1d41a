"""What Snakemake plans after a run, after each kind of edit, and for each target; scripts are stubs."""

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from projects import planned_in

pytestmark = pytest.mark.dag


def rules(planned: set[str]) -> set[str]:
    """The rules of planned jobs."""
    return {job.split()[0] for job in planned}


def of(planned: set[str], rule: str) -> set[str]:
    """What the planned jobs of a rule make."""
    return {job.split()[1] for job in planned if job.split()[0] == rule}


OF_A_BASIS = {"fit", "join_codes", "evaluate", "probe", "score", "tabulate", "illustrate", "render"}
"""Rules that an edit of a basis of patches runs again, codes aside."""


def test_nothing_is_planned_after_a_run_nor_in_a_clone_with_reversed_times(built, project):
    assert built.planned() == set()
    files = sorted((p for p in (project.root / "artifacts").rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
    times = [path.stat().st_mtime_ns for path in files]
    for path, made in zip(files, reversed(times), strict=True):
        os.utime(path, ns=(made, made))
    assert project.planned() == set()


def test_records_name_neither_machine_nor_user(built):
    records = [p for p in (built.root / ".snakemake/metadata").rglob("*") if p.is_file()]
    assert len(records) > 300
    text = "".join(path.read_text() for path in records)
    assert str(built.root) not in text
    assert socket.gethostname() not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_all_asks_for_every_file_that_any_rule_makes(built, unbuilt):
    text = unbuilt.snakemake("-n", "all")
    asked = set(re.search(r"^rule all:\n    input: (.*)$", text, re.M)[1].split(", "))
    made = {str(p.relative_to(built.root)) for d in ("artifacts", "results") for p in (built.root / d).rglob("*")}
    assert asked == {path for path in made if (built.root / path).is_file()}


def test_each_family_is_a_target(fresh):
    families = ("spectra", "stores", "weights", "experts", "moments", "bases", "codes", "probes", "metrics", "report")
    text = fresh.snakemake("-n", *families)
    assert set(families) <= set(re.findall(r"^rule (\w+):", text, re.M))


def test_an_edit_of_one_basis_plans_exactly_its_jobs_and_undoing_it_none(project):
    project.edit("config.yaml", "n_clusters: 16", "n_clusters: 15")
    planned = project.planned()
    jobs_of_it = {job for job in planned if "/kmeans-016" in job}
    assert rules(planned - jobs_of_it) == {"tabulate", "illustrate", "render"}
    layers, codings = ["layer-01"], ["onehot", "inverse-distance"]
    both = ["kmeans-016", "kmeans-016-random"]
    at = "tiny-scenes"
    assert of(planned, "fit") == {f"artifacts/{at}/bases/{b}/{layer}/meta.json" for b in both for layer in layers}
    assert of(planned, "evaluate") == {
        f"results/{at}/{layer}/{b}/reconstruction.json" for b in both for layer in layers
    }
    assert of(planned, "probe") == {
        f"artifacts/{at}/probes/{b}/{c}/{layer}/meta.json" for b in both for c in codings for layer in layers
    }
    assert of(planned, "score") == {
        f"results/{at}/{layer}/kmeans-016/{c}/metrics.json" for c in codings for layer in layers
    }
    assert {p.split("/")[4] for p in of(planned, "join_codes")} == {"label"}
    assert rules(jobs_of_it) == {"fit", "encode_label", "join_codes", "evaluate", "probe", "score"}
    target = f"results/{at}/layer-01/kmeans-016/onehot/metrics.json"
    of_the_target = project.planned(target)
    assert of_the_target < planned
    assert not any(
        "inverse-distance" in job or rules({job}) & {"tabulate", "illustrate", "render"} for job in of_the_target
    )
    project.edit("config.yaml", "n_clusters: 15", "n_clusters: 16")
    assert project.planned() == set()


def test_an_edit_that_keeps_the_size_leaves_the_floor_alone(project):
    project.edit("config.yaml", "n_clusters: 16,", "n_clusters: 16, max_iter: 7,")
    planned = project.planned()
    assert not any("random" in job for job in planned)
    assert rules(planned) == {*OF_A_BASIS, "encode_label"}


def test_device_threads_comments_and_docstrings_plan_nothing(project):
    project.edit("config.yaml", "device: cpu", "device: cuda")
    module = project.root / "src/eigenloom/bases/base.py"
    module.write_text("# a comment\n" + module.read_text().replace('"""The contract', '"""A contract', 1))
    assert project.planned("--set-threads", "fit=1", "--", "all") == set()


def test_an_edit_of_a_kind_plans_the_jobs_of_that_kind(project):
    # the floor of PCA is of another kind, and stays
    module = project.root / "src/eigenloom/bases/pca.py"
    module.write_text((module.read_text() if module.exists() else "") + "\nADDED = 1\n")
    os.utime(module)
    planned = project.planned()
    assert rules(planned) == {*OF_A_BASIS, "encode_topk"}
    assert {job.split("/")[3] for job in planned if job.startswith(("fit", "probe"))} == {"pca"}


def test_a_lost_array_is_remade_alone(project):
    lost = "artifacts/tiny-scenes/bases/pca/layer-01/arrays.safetensors"
    edge = (project.root / lost).with_name("meta.json")
    before = edge.read_bytes()
    (project.root / lost).unlink()
    assert rules(project.planned()) >= {"fit"}
    assert re.findall(r"rule (\w+):", project.snakemake(lost)) == ["fit"]
    assert edge.read_bytes() == before
    assert project.planned() == set()


def test_experiments_replace_the_default_and_overlays_overlay(fresh, unbuilt):
    text = (unbuilt.root / "config.yaml").read_text().replace("name: tiny", "name: o")
    text = text.replace("tiny-scenes", "other").replace("tiny-stars", "sky").replace("tiny-trajectory", "o-trajectory")
    text = text.replace("tiny-moe", "o-moe")
    (unbuilt.root / "other.yaml").write_text(text)
    planned = unbuilt.planned("all", "--configfile", "other.yaml", "--config", "seed=3")
    assert len(planned) > 90
    assert not any("tiny" in job for job in planned)
    renamed = (job.replace("tiny-scenes", "other").replace("tiny-stars", "sky") for job in fresh.planned())
    assert planned == {job.replace("tiny", "o") for job in renamed}


def test_a_mistake_stops_with_its_line(unbuilt):
    unbuilt.edit("config.yaml", "n_clusters: 16", "n_clutsers: 16")
    text = unbuilt.snakemake("-n", "all", status=1)
    assert "config.yaml: bases.kmeans-016: unknown key `n_clutsers`; did you mean `n_clusters`?" in text
    assert "Traceback" not in text


def test_a_gpu_is_asked_for_where_it_pays(fresh):
    text = fresh.snakemake("-n", "all", "--config", "device=auto")
    asked = dict.fromkeys(re.findall(r"^rule (\w+):", text, re.M), "")
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n(?:.+\n)*?    output: (\S+?),?[ \n](?:.+\n)*?    resources: .*gpu=(\d)", text, re.M
    )
    for rule, _, gpu in jobs:
        asked[rule] = asked.get(rule, "") + gpu
    fits = {(path.split("/")[3], gpu) for rule, path, gpu in jobs if rule == "fit"}
    profiting = {
        "kmeans-016",
        "kmeans-016-random",
        "kernel-pca",
        "kernel-pca-random",
        "robust-pca",
        "sae",
        "sae-random",
    }
    assert {basis for basis, gpu in fits if gpu == "1"} == profiting
    assert {basis for basis, gpu in fits if gpu == "0"} == {
        "pca", "pca-random", "srht-pca", "srht-pca-random", "robust-pca-random",
    }  # fmt: skip
    for rule in ("train", "record", "measure", "encode_label", "encode_topk", "evaluate", "probe"):
        assert set(asked[rule]) == {"1"}, rule
    spectra = ("simulate", "list_spectra", "record_spectra", "label_spectra", "denoise", "train_arms", "compare_arms")
    for rule in ("draw", "label", *spectra, "join_store", "join_moments", "join_codes", "score", "tabulate", "render"):
        assert set(asked[rule]) == {"0"}, rule


FOLDERS = """
  photos:
    images:
      plain: {kind: image_folder, root: data/plain}
      masked: {kind: segmentation_folder, root: data/masked, classes: {sky: [1], sea: [2]}}
      drawn: {kind: scenes, canvas: 32, zooms: [2]}
    splits:
      fit_train: {images: plain, n_examples: 500}
      fit_val: {images: drawn, n_examples: 40}
      probe_train: {images: masked, n_examples: 50}
      probe_val: {images: masked, n_examples: 50, first: 50}
    model: {kind: trained, source: tiny-scenes}
    layers: [1]

bases:"""


def test_folders_are_listed_and_recorded_with_another_sources_network(unbuilt):
    unbuilt.edit("config.yaml", "\nbases:", FOLDERS)
    unbuilt.edit("config.yaml", "encode: {", "encode: {materialize: [label, topk, dense], ")
    unbuilt.edit("config.yaml", "-distance], sources: [tiny-scenes]", "-distance], sources: [tiny-scenes, photos]")
    (unbuilt.root / "data/plain").mkdir(parents=True)
    (unbuilt.root / "data/masked").mkdir()
    text = unbuilt.snakemake("-n", "all")
    planned = planned_in(text)
    assert of(planned, "list_images") == {
        f"artifacts/photos/images/{split}/meta.json" for split in ("fit_train", "probe_train", "probe_val")
    }
    assert "artifacts/photos/images/fit_val/meta.json" in of(planned, "draw")
    assert "artifacts/photos/saev/shards/fit_train/labels.json" not in of(planned, "label")
    assert "artifacts/photos/saev/shards/fit_val/labels.json" in of(planned, "label")
    assert len(of(planned, "train")) == 1
    inputs = {out: names.split(", ") for names, out in re.findall(r"    input: (.*)\n    output: ([^\s,]+)", text)}
    assert inputs["artifacts/photos/images/probe_val/meta.json"] == ["data/masked"]
    shards = "artifacts/photos/saev/shards"
    assert inputs[f"{shards}/fit_train/shard-00000.json"] == [
        "artifacts/photos/images/fit_train/meta.json", "artifacts/tiny-scenes/model/meta.json",
    ]  # fmt: skip
    assert inputs[f"{shards}/probe_val/store.json"][-2:] == [
        f"{shards}/probe_val/shard-00000.json", f"{shards}/probe_val/labels.json",
    ]  # fmt: skip
    stores = [f"{shards}/probe_train/store.json", f"{shards}/probe_val/store.json"]
    for basis, coding, layout in (("kmeans-016", "onehot", "label"), ("pca", "topk-00004", "topk"),
                                  ("pca", "dense", "dense"), ("kmeans-016", "inverse-distance", "dense")):  # fmt: skip
        codes = f"artifacts/photos/codes/{basis}/{layout}/layer-01"
        assert inputs[f"artifacts/photos/probes/{basis}/{coding}/layer-01/meta.json"] == [
            *stores, f"artifacts/photos/bases/{basis}/layer-01/meta.json",
            f"{codes}/probe_train/manifest.json", f"{codes}/probe_val/manifest.json",
        ]  # fmt: skip
    floor = "artifacts/photos/bases/pca-random/layer-01/meta.json"
    assert inputs["artifacts/photos/probes/pca-random/dense/layer-01/meta.json"] == [*stores, floor]
    assert "is absent" not in text


def test_folders_that_are_absent_are_named(unbuilt):
    unbuilt.edit("config.yaml", "\nbases:", FOLDERS)
    text = unbuilt.snakemake("-n", "bases", status=1)
    assert "sources.photos.images.plain: data/plain is absent; edits of it are not seen" in text
    assert re.search(r"Missing input files for rule list_images:.*\n(.*\n)*?.*data/plain", text)


def test_an_edit_of_spectra_plans_what_follows_from_them_alone(project):
    project.edit("config.yaml", "classes: {label: T_eff, bins: 4}", "classes: {label: M_H, bins: 4}")
    planned = project.planned()
    assert {job for job in planned if "tiny-scenes" in job} == set()
    assert rules(planned) >= {"label_spectra", "join_store"}
    assert rules(planned).isdisjoint({"simulate", "list_spectra", "record_spectra", "train"})
    project.edit("config.yaml", "classes: {label: M_H, bins: 4}", "classes: {label: T_eff, bins: 4}")
    assert project.planned() == set()
    project.edit("config.yaml", "n_spectra: 256,", "n_spectra: 300,")
    planned = project.planned()
    assert {job for job in planned if "tiny-scenes" in job} == set()
    assert of(planned, "simulate") == {"artifacts/tiny-stars/spectra/meta.json"}
    assert rules(planned) >= {
        "list_spectra",
        "denoise",
        "score_denoised",
        "fit_patches",
        "train_arms",
        "compare_arms",
        "record_spectra",
        "label_spectra",
        "join_store",
        "measure",
        "fit",
        "score",
    }


def test_a_file_of_ones_own_takes_the_place_of_the_simulation_by_two_lines(unbuilt):
    simulated = "spectra: {kind: simulated, n_spectra: 256, n_pixels: 128}"
    unbuilt.edit("config.yaml", simulated, "spectra: {kind: hdf5, path: data/own.h5}")
    assert "sources.tiny-stars.spectra.path: data/own.h5: no such file" in unbuilt.snakemake("-n", "all", status=1)
    (unbuilt.root / "data").mkdir()
    with h5py.File(unbuilt.root / "data/own.h5", "w") as file:
        file["dataset/arrays/flux/value"] = np.ones((256, 128))
    text = unbuilt.snakemake("-n", "all")
    assert "rule simulate:" not in text
    inputs = {out: names.split(", ") for names, out in re.findall(r"    input: (.*)\n    output: ([^\s,]+)", text)}
    spectra, shards = "artifacts/tiny-stars/spectra", "artifacts/tiny-stars/saev/shards"
    assert inputs[f"{spectra}/fit_val/meta.json"] == ["data/own.h5"]
    assert inputs[f"{shards}/fit_train/shard-00001.json"] == [f"{spectra}/fit_train/meta.json"]
    assert inputs[f"{shards}/fit_val/store.json"] == [
        f"{spectra}/fit_val/meta.json", f"{shards}/fit_val/shard-00000.json", f"{shards}/fit_val/labels.json",
    ]  # fmt: skip
    assert "is absent" not in text


def test_planning_imports_nothing_heavy(fresh, tmp_path):
    """Modules that cannot be imported stand first on the path; a plan needs none of them."""
    heavy = ("torch", "scipy", "sklearn", "matplotlib", "safetensors", "PIL")  # numpy comes with Snakemake's plugins
    for name in heavy:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError({name!r})")
    text = fresh.snakemake("-n", "all", PYTHONPATH=str(tmp_path))
    assert "rule all:" in text
    broken = subprocess.run([sys.executable, "-c", "import torch"], env={"PYTHONPATH": str(tmp_path)}, check=False,
                            capture_output=True, text=True)  # fmt: skip
    assert "ImportError: torch" in broken.stderr


def test_the_published_scale_can_be_planned(unbuilt):
    for root in ("imagenet/train", "imagenet/val", "ade20k/training", "ade20k/validation"):
        (unbuilt.root / "data" / root).mkdir(parents=True)
    text = unbuilt.snakemake("-n", "all", "--configfile", "workflow/experiments/paper-scale/config.yaml")
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+)\s+(\d+)$", text, re.M)}
    assert jobs["list_images"] == 4
    assert jobs["record"] == 3 * 64 + 63 + 2
    assert jobs["fit"] == 4 * 7
    assert jobs["encode_topk"] == jobs["encode_label"] == 6 * (64 + 63)
    assert jobs["probe"] == 6 * 2 * (2 + 6)
    assert jobs["score"] == 6 * (2 + 6)
    assert "bases.pca: topk-01024 would keep all entries of imagenet and are left out" in text
    assert "is absent" not in text


def test_the_dinov3_experiment_names_all_that_is_missing_and_is_planned_once_it_is_there(unbuilt):
    config = "workflow/experiments/dinov3-ade20k/config.yaml"
    model, ade = "data/dinov3-vitl16-pretrain-lvd1689m", "data/ADEChallengeData2016"
    roots = ["data/imagenet/train", "data/imagenet/val", ade, model]
    text = unbuilt.snakemake("-n", "all", "--configfile", config, status=1)
    assert "Missing input files for rule" in text
    assert re.findall(r"sources\.dinov3-l16\.(?:model\.path|images\.[a-z-]+): (\S+) is absent", text) == [
        model, "data/imagenet/train", "data/imagenet/val", ade, ade,
    ]  # fmt: skip
    for root in roots:
        (unbuilt.root / root).mkdir(parents=True)
    text = unbuilt.snakemake("-n", "all", "--configfile", config)
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+)\s+(\d+)$", text, re.M)}
    expected = {"pin_model": 1, "list_images": 4, "label": 2, "join_store": 4, "fit": 6 * 4, "score": 6 * (2 + 6)}
    assert {rule: jobs[rule] for rule in expected} == expected
    assert jobs["probe"] == 2 * jobs["score"]  # each with its floor
    assert jobs["record"] == 252 + 33 + 13 + 2  # 1556 images per shard
    assert "train" not in jobs
    inputs = {out: names for names, out in re.findall(r"    input: (.*)\n    output: ([^\s,]+)", text)}
    assert inputs["artifacts/dinov3-l16/model/meta.json"] == model
    shard = "artifacts/dinov3-l16/saev/shards/fit_train/shard-00251.json"
    assert inputs[shard].endswith(", artifacts/dinov3-l16/model/meta.json")
    assert set(re.findall(r"bases/pca/(layer-\d\d)", text)) == {f"layer-{i}" for i in range(18, 24)}


def test_experiments_share_a_source_and_add_bases(project):
    """Another experiment over the same recordings: its own bases, results and report, nothing recorded again."""
    text = (project.root / "config.yaml").read_text().replace("name: tiny", "name: more")
    text = text.replace("kmeans-016: {kind: kmeans, n_clusters: 16,", "kmeans-008: {kind: kmeans, n_clusters: 8,")
    (project.root / "workflow/experiments/more").mkdir()
    (project.root / "workflow/experiments/more/config.yaml").write_text(text)
    more = ("--configfile", "workflow/experiments/more/config.yaml")
    planned = project.planned("all", *more)
    assert {"record", "train", "join_store", "measure", "join_moments"} & rules(planned) == set()
    assert rules(planned) == {
        "fit", "encode_label", "join_codes", "evaluate", "probe", "score", "tabulate", "illustrate", "tabulate_experts",
        "render",
    }  # fmt: skip
    assert all("kmeans-008" in job or "/more/" in job for job in planned)
    before = {p: p.read_bytes() for p in (project.root / "results").rglob("*") if p.is_file()}
    project.snakemake("--quiet", "all", *more, "--", "all")
    assert project.planned("all", *more) == set()
    assert project.planned() == set()
    assert {path: path.read_bytes() for path in before} == before
    assert (project.root / "results/reports/more/index.html").is_file()


def test_of_two_runs_at_once_the_second_is_told_of_the_lock(unbuilt):
    """And after kill -9 of the first, unlocking lets the next one finish."""
    script, hold = unbuilt.root / "scripts/prepare.py", unbuilt.root / "hold"
    waiting = "import time\n\nwhile Path('hold').exists():\n    time.sleep(0.02)\n\n"
    script.write_text(script.read_text().replace("if __name__", f"{waiting}if __name__"))
    hold.touch()
    first = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", "all"], cwd=unbuilt.root, env=unbuilt.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while not list((unbuilt.root / ".snakemake/incomplete").glob("*")):
            assert first.poll() is None
            time.sleep(0.02)
        second = unbuilt.snakemake("all", status=1)
        assert "LockException" in second
        assert "cannot be locked" in second
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        hold.unlink()
    assert "LockException" in unbuilt.snakemake("all", status=1)
    subprocess.run([sys.executable, "scripts/unlock.py"], cwd=unbuilt.root, env=unbuilt.environment(), check=True,
                   capture_output=True)  # fmt: skip
    unbuilt.snakemake("--quiet", "all", "--rerun-incomplete", "--", "all")
    assert unbuilt.planned() == set()


def test_edges_hold_what_the_guard_compares(built):
    for path in (built.root / "artifacts").rglob("*/meta.json"):
        edge = json.loads(path.read_text())
        assert set(edge["spec"]) > {"code"}
        assert all(name.startswith(("artifacts/", "results/")) for name in edge["inputs"])
