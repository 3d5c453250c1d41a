"""What an experiment would cost: jobs, core hours, GPU hours, gigabytes, by arithmetic from its configuration.

For every job it counts floating-point operations of the matrix products, elementary steps of everything else, and
bytes read and written; a ``Machine`` turns them into time. Nothing is measured and no data need exist.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

from image_source import ImageSource
from plan import FAMILIES, Plan
from source import Source, Wildcards
from text_source import TextSource

FLOAT = 4


@dataclass(frozen=True)
class Machine:
    """Assumed rates; change them to those of your own machine.

    Fields: float32 product rates of a core and of a GPU in operations per second; elementary steps (histogram counts,
    decoded pixels) per second of each; bytes per second of the disk, per job; seconds to start a job.
    """

    core_flops: float = 1e11
    gpu_flops: float = 4e13
    core_steps: float = 2.5e7
    gpu_steps: float = 2.5e9
    disk: float = 1e9
    start: float = 5.0


@dataclass(frozen=True)
class Work:
    """What one job does: operations of products, elementary steps, steps only a core can do, bytes."""

    flops: float = 0.0
    steps: float = 0.0
    core_steps: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def seconds(self, machine: Machine, gpu: bool) -> float:
        """Return the time of the job: start, then the slower of computing and moving bytes."""
        flops, steps = (machine.gpu_flops, machine.gpu_steps) if gpu else (machine.core_flops, machine.core_steps)
        computing = self.flops / flops + self.steps / steps + self.core_steps / machine.core_steps
        return machine.start + max(computing, (self.read + self.written) / machine.disk)


@dataclass
class Cost:
    """What all jobs of a rule cost, without and with GPUs where rules ask for one."""

    jobs: int = 0
    core_hours: float = 0.0
    rest_core_hours: float = 0.0
    gpu_hours: float = 0.0
    written: float = 0.0
    longest: float = field(default=0.0)


def costs(plan: Plan, machine: Machine | None = None) -> dict[str, Cost]:
    """Return rule -> cost of its jobs. ``rest_core_hours`` is what cores still do where GPUs do what profits."""
    machine = machine or Machine()
    found: dict[str, Cost] = {}
    for rule in (rule for rules in FAMILIES.values() for rule in rules):
        for job in plan.jobs(rule):
            cost = found.setdefault(rule, Cost())
            work = WORK.get(rule, _nothing)(plan, job)
            asks = rule in ON_DEVICE and plan.gpus(rule, "cuda", job) > 0
            on_core, on_best = work.seconds(machine, gpu=False), work.seconds(machine, gpu=asks)
            cost.jobs += 1
            cost.core_hours += on_core / 3600
            cost.gpu_hours += on_best / 3600 if asks else 0.0
            cost.rest_core_hours += 0.0 if asks else on_best / 3600
            cost.longest = max(cost.longest, on_best / 3600)
            cost.written += work.written
    return found


def _nothing(_plan: Plan, _job: Wildcards) -> Work:
    return Work()


def _source(plan: Plan, job: Wildcards) -> Source:
    return plan.sources[job["source"]]


def _images(plan: Plan, job: Wildcards) -> ImageSource:
    source = plan.sources[job["source"]]
    assert isinstance(source, ImageSource)
    return source


def _forward(source: ImageSource, n_images: float) -> float:
    """Operations of a vision transformer of MLP ratio 4: ``depth (24 T D^2 + 4 T^2 D)`` per image."""
    tokens, width = (source.n_tokens or 0) + 1, source.width
    return n_images * source.network.depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def _rows(source: Source, split: str, share: float = 1.0) -> float:
    return source.n_rows(split) * share


def _row_bytes(source: Source) -> int:
    return source.width * FLOAT


def _draw(plan: Plan, job: Wildcards) -> Work:
    source = _images(plan, job)
    pixels = source.images(job["split"])["canvas"] ** 2 * source.n_examples(job["split"])
    return Work(core_steps=float(pixels), written=4.0 * pixels)


def _train(plan: Plan, job: Wildcards) -> Work:
    source = _images(plan, job)
    model = {**source.model, **plan.runs.get(job.get("run", ""), {})}
    weights = 12.0 * FLOAT * model["depth"] * source.width**2
    images = float(model["steps"] * model["batch_size"])
    return Work(3 * _forward(source, images), written=weights * (1 + len(plan.snapshots)))


def _pin_model(plan: Plan, job: Wildcards) -> Work:
    source = _images(plan, job)
    return Work(read=12.0 * FLOAT * source.network.depth * source.width**2)


def _shard_bytes(source: Source, split: str) -> float:
    return source.n_examples(split) / source.n_shards(split) * source.tokens_per_example * _row_bytes(source)


def _record(plan: Plan, job: Wildcards) -> Work:
    source, split = _images(plan, job), job["split"]
    images = source.n_examples(split) / source.n_shards(split)
    pixels = images * (source.n_tokens or 0) * source.network.patch**2
    decoded = 0.0 if "canvas" in source.images(split) else pixels
    return Work(_forward(source, images), core_steps=decoded, written=_shard_bytes(source, split))


def _record_texts(plan: Plan, job: Wildcards) -> Work:
    """Count twelve times the square of the width per block and token: attention is little beside it."""
    source, split = _source(plan, job), job["split"]
    assert isinstance(source, TextSource)
    tokens = source.n_examples(split) / source.n_shards(split) * (source.n_tokens + source.has_cls)
    return Work(24.0 * tokens * source.facts.depth * source.width**2, written=_shard_bytes(source, split))


def _record_spectra(plan: Plan, job: Wildcards) -> Work:
    size = _shard_bytes(_source(plan, job), job["split"])
    return Work(read=size, written=size)


def _label(plan: Plan, job: Wildcards) -> Work:
    source, split = _images(plan, job), job["split"]
    rows = _rows(source, split)
    return Work(core_steps=rows * source.network.patch**2, written=rows)


def _measure(plan: Plan, job: Wildcards) -> Work:
    source, split = _source(plan, job), job["split"]
    share = len(plan.parts(source.name, split, "measure")[int(job["part"])]) / source.n_shards(split)
    rows, layers, width = _rows(source, split, share), len(source.layers), source.width
    return Work(
        2.0 * rows * layers * width**2, read=rows * layers * _row_bytes(source), written=8.0 * layers * width**2
    )


def _join_moments(plan: Plan, job: Wildcards) -> Work:
    source = _source(plan, job)
    parts = len(plan.parts(source.name, job["split"], "measure"))
    return Work(read=8.0 * parts * source.width**2, written=8.0 * source.width**2)


def _fit(plan: Plan, job: Wildcards) -> Work:
    """Count a fit: k-means passes after seeding; ``K_nm`` and its square; else one pass and one ``eigh``."""
    source, entry = _source(plan, job), plan.bases[job["basis"]]
    rows, width, k = _rows(source, "fit_train"), source.width, plan.n_elements(job["basis"], job["source"])
    written, one_pass = float(FLOAT * k * width), rows * _row_bytes(source)
    if entry["kind"] == "kmeans":
        minibatch = entry.get("algorithm") == "minibatch"
        epochs = entry["minibatch_iter"] + entry["polish_iter"] if minibatch else entry["max_iter"]
        random = entry.get("init") == "random"
        seeding = 0.0 if random else 2.0 * entry["n_init"] * (2 + log(k)) * 10 * k * k * width
        return Work(seeding + epochs * 2.0 * rows * k * width, read=epochs * one_pass, written=written)
    if entry["kind"] == "kernel_pca":
        landmarks = entry["n_landmarks"]
        return Work(2.0 * rows * landmarks * (width + landmarks), read=one_pass, written=written)
    if entry["kind"] == "sae":  # five products per step, and four more where elements are dead
        n_rows = float(entry["steps"] * entry.get("batch_size", 0))
        return Work(10.0 * n_rows * k * width, read=n_rows * _row_bytes(source), written=2 * written)
    if entry["kind"] == "dictionary":
        return Work(read=2 * written, written=2 * written)
    if entry["kind"] in ("pca", "random_directions"):
        return Work(10.0 * width**3, written=written)
    return Work(2.0 * rows * k * width + 10.0 * width**3, read=one_pass, written=written)


def _evaluate(plan: Plan, job: Wildcards) -> Work:
    """Encode, and decode where that is a product; orthonormal directions need none, so this is an upper bound."""
    source, k = _source(plan, job), plan.n_elements(job["basis"], job["source"])
    rows = _rows(source, "fit_val")
    products = 1 if plan.geometry(job["basis"]) == "distance" else 2
    return Work(2.0 * products * rows * k * source.width, read=rows * _row_bytes(source))


def _encode(layout: str) -> Callable[[Plan, Wildcards], Work]:
    def work(plan: Plan, job: Wildcards) -> Work:
        source, basis, split = _source(plan, job), job["basis"], job["split"]
        share = len(plan.parts(source.name, split, "encode")[int(job["part"])]) / source.n_shards(split)
        rows, k = _rows(source, split, share), plan.n_elements(basis, source.name)
        topk = plan.topk(basis, source.name)
        size = {"float16": 2, "float32": 4}[plan.config["encode"]["dtype"]]
        row = {"label": 12, "topk": 8 * max(topk, default=0) + FLOAT * len(topk), "dense": size * k}[layout]
        return Work(2.0 * rows * k * source.width, read=rows * _row_bytes(source), written=rows * row)

    return work


def _probe(plan: Plan, job: Wildcards) -> Work:
    """Stream rows through the basis unless codes are on disk; then one elementary step per entry that is not zero."""
    source, basis = _source(plan, job), job["basis"]
    k = plan.n_elements(basis, source.name)
    coding = plan.sweep(basis, source.name)[job["coding"]]
    rows = sum(_rows(source, split) for split in ("probe_train", "probe_val"))
    entries: dict[str, Any] = {
        "onehot": 1,
        "inverse-distance-nearest": 1,
        "topk": coding.get("k"),
        "nearest": coding.get("k"),
    }
    n_entries = entries.get(coding["kind"], k)
    if plan.viewed(source.name, basis, job["coding"]):
        return Work(steps=rows * n_entries, read=rows * n_entries * 2.0 * FLOAT)
    return Work(2.0 * rows * k * source.width, steps=rows * n_entries, read=rows * _row_bytes(source))


def _train_moe(plan: Plan, job: Wildcards) -> Work:
    model = plan.moes[job["moe"]]["model"]
    n_experts = model["num_experts"] * model["num_hidden_layers"]
    weights = 3.0 * n_experts * model["moe_intermediate_size"] * model["hidden_size"]
    return Work(6.0 * weights * model["steps"] * model["batch_size"], written=FLOAT * weights)


def _fit_bank(plan: Plan, job: Wildcards) -> Work:
    """Count evaluations of the descent, ``4 E r d (p + r + m)`` each, and sweeps as ten of them."""
    moe = plan.moes[job["moe"]]
    model, bank = moe["model"], moe["banks"][job["bank"]]
    e, (p, d) = (
        model["num_experts"] * model["num_hidden_layers"],
        (model["moe_intermediate_size"], model["hidden_size"]),
    )
    n_fits = len(moe["seeds"]) * len(moe["families"])
    runs = bank["polish_evals"] + 10.0 * bank["n_sweeps"] * bank["n_starts"]
    flops = sum(4.0 * e * rank * d * (p + rank + num_bases) * runs for rank, num_bases in moe["sizes"])
    sizes = sum(e * p * rank + num_bases * (rank * d + e) for rank, num_bases in moe["sizes"])
    return Work(n_fits * flops, read=FLOAT * n_fits * 1.0 * e * p * d, written=FLOAT * n_fits * float(sizes))


WORK: dict[str, Callable[[Plan, Wildcards], Work]] = {
    "pin_model": _pin_model, "record_texts": _record_texts,
    "draw": _draw, "train": _train, "train_run": _train, "record": _record, "label": _label, "measure": _measure,
    "record_spectra": _record_spectra, "train_moe": _train_moe, "fit_bank": _fit_bank,
    "join_moments": _join_moments, "fit": _fit, "evaluate": _evaluate, "probe": _probe,
    **{f"encode_{layout}": _encode(layout) for layout in ("label", "topk", "dense")},
}  # fmt: skip
"""Rules that do more than start and copy a little JSON."""
ON_DEVICE = (
    "train", "train_run", "record", "record_texts", "measure", "fit", "evaluate", "illustrate", "probe",
    "encode_label", "encode_topk", "encode_dense",
)  # fmt: skip
"""Rules whose script runs on the configured device."""
