"""The cost of an experiment follows from its configuration; figures here are computed by hand."""

import subprocess
import sys
from math import log
from pathlib import Path

import pytest

from experiments import load
from plan import FAMILIES, Plan
from scale import WORK, Cost, Machine, Work, costs
from scale_table import markdown

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "workflow/experiments/paper-scale/config.yaml"
AT = {"source": "imagenet", "layer": "layer-23"}


@pytest.fixture(scope="module")
def plan():
    return Plan(load(PAPER))


def test_the_sizes_are_the_published_ones(plan):
    source = plan.sources["imagenet"]
    assert [source.n_shards(split) for split in source.splits] == [64, 64, 64, 63]  # 2000 images in shards of 32
    assert source.n_rows("fit_train") == 100_000_000
    assert (len(source.layers), source.width, source.n_tokens) == (6, 1024, 256)
    assert list(plan.config["bases"]) == ["kmeans-16384", "pca"]
    assert plan.topk("pca", "imagenet") == [1, 4, 16, 64, 256]
    assert plan.dropped("imagenet") == {"pca": ["topk-01024"]}
    assert len(source.images("probe_val")["classes"]) == 150


def test_products_and_bytes_by_hand(plan):
    work = WORK["record"](plan, {"source": "imagenet", "split": "fit_train", "part": "00000"})
    images = 390625 / 64
    assert work.flops == pytest.approx(images * 24 * (24 * 257 * 1024**2 + 4 * 257**2 * 1024))
    assert work.written == pytest.approx(images * 257 * 6 * 1024 * 4)
    fit = WORK["fit"](plan, {**AT, "basis": "kmeans-16384"})
    passes = 15 * 2 * 1e8 * 16384 * 1024
    assert fit.flops == pytest.approx(passes + 2 * 4 * (2 + log(16384)) * 163840 * 16384 * 1024)
    assert WORK["fit"](plan, {**AT, "basis": "kmeans-16384-random"}).flops == 0
    moments = WORK["measure"](plan, {"source": "imagenet", "split": "fit_train", "part": "00000"})
    assert moments.flops == pytest.approx(2 * 1e8 * 6 * 1024**2 / 16)
    part = {**AT, "basis": "pca", "split": "probe_train", "part": "00000"}
    assert WORK["encode_topk"](plan, part).written == pytest.approx(20210 * 256 / 64 * (256 * 8 + 5 * 4))
    rows = (20210 + 2000) * 256
    assert WORK["probe"](plan, {**AT, "basis": "pca", "coding": "topk-00016"}) == Work(
        steps=rows * 16, read=rows * 128.0
    )
    streamed = WORK["probe"](plan, {**AT, "basis": "kmeans-16384", "coding": "inverse-distance"})
    assert (streamed.flops, streamed.steps) == (2.0 * rows * 16384 * 1024, rows * 16384)


def test_a_pretrained_network_costs_what_one_of_its_size_does():
    plan = Plan(load(ROOT / "workflow/experiments/dinov3-ade20k/config.yaml"))
    job = {"source": "dinov3-l16"}
    assert WORK["pin_model"](plan, job).read == 4 * 12 * 24 * 1024**2  # float32 weights of the blocks
    shard = WORK["record"](plan, {**job, "split": "probe_val", "part": "00000"})
    assert shard.flops == pytest.approx(1000 * 24 * (24 * 257 * 1024**2 + 4 * 257**2 * 1024))
    assert shard.written == 1000 * 257 * 6 * 1024 * 4


def test_time_is_the_start_and_then_the_slower_of_computing_and_moving():
    machine = Machine(core_flops=10, gpu_flops=100, core_steps=1, gpu_steps=10, disk=2, start=3)
    assert Work(flops=100, steps=5).seconds(machine, gpu=False) == 3 + 10 + 5
    assert Work(flops=100, steps=5, core_steps=2).seconds(machine, gpu=True) == 3 + 1 + 0.5 + 2
    assert Work(flops=100, read=30, written=10).seconds(machine, gpu=False) == 3 + 20


def test_every_job_is_counted_once_and_gpus_take_what_profits(plan):
    found = costs(plan, Machine())
    assert {rule: cost.jobs for rule, cost in found.items()} == {
        rule: len(plan.jobs(rule)) for rules in FAMILIES.values() for rule in rules if plan.jobs(rule)
    }
    assert found["record"].rest_core_hours == found["join_store"].gpu_hours == 0
    assert 0 < found["record"].gpu_hours < found["record"].core_hours
    assert found["fit"].rest_core_hours > 0  # PCA, which asks for no GPU
    recorded = sum(plan.sources["imagenet"].n_examples(s) for s in plan.sources["imagenet"].splits) * 257 * 6 * 4096
    assert found["record"].written == pytest.approx(recorded, rel=0.02)


def test_banks_by_hand():
    plan = Plan(load(ROOT / "config.yaml"))
    assert WORK["train_moe"](plan, {"moe": "digits-moe", "training": "seed-0"}) == Work(
        6.0 * 3 * 32 * 32 * 64 * 600 * 128, written=4.0 * 3 * 32 * 32 * 64
    )
    work = WORK["fit_bank"](plan, {"moe": "digits-moe", "bank": "svd"})
    products = sum(4 * 32 * r * 64 * (32 + r + m) for r, m in ((8, 8), (16, 8), (16, 16)))
    assert work.flops == 3 * 2 * products * (100 + 10 * 6)
    assert work.written == 4 * 6 * sum(32 * 32 * r + m * (r * 64 + 32) for r, m in ((8, 8), (16, 8), (16, 16)))


def test_a_table_has_a_line_per_rule_and_their_sum():
    lines = markdown({"fit": Cost(2, 3.0, 0.5, 1.0, 4e9, 2.0), "probe": Cost(1, 100.0, 0.5, 0, 0, 50.0)}).splitlines()
    assert lines[2] == "| fit | 2 | 3 | 1 | 0.5 | 2 | 4 |"
    assert lines[-1] == "| **all** | **3** | **103** | **1** | **1** | **50** | **4** |"


def test_the_script_takes_other_rates():
    command = [sys.executable, "scripts/estimate.py", str(PAPER.relative_to(ROOT)), "--disk-gb", "3"]
    environment = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "3 GB/s of disk per job" in done.stdout
    assert "| **all** |" in done.stdout
