"""Expert banks beside MoBE's training, SVDs and means on planted experts; seedings beside the SVD of every expert."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from harness import compare
from torch import Tensor

from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.baselines import baselines
from eigenloom.experts.mobe import MoBEArm, train_mobe
from eigenloom.experts.planted import PROBLEMS, planted_experts
from eigenloom.experts.settings import SeedingConfig
from eigenloom.experts.source import ArrayExperts, Tiles
from eigenloom.experts.trainer import AlternatingBankTrainer
from eigenloom.experts.warm_start import seed_bank

RANK, BASES = 32, 8
QUICK = {"n_starts": 1, "n_sweeps": 10, "polish_evals": 400}
"""A budget that costs some two fifths of the time of the rival."""
EVALUATIONS = (50, 100, 150, 200, 250, 300)
EPOCHS = (250, 500, 1000, 2000)


def run(full: bool) -> list[dict[str, Any]]:
    """Compare on three problems, three data seeds each in full; then the seedings at 64 experts."""
    records = []
    for problem in PROBLEMS:
        found = [compare_training(problem, seed) for seed in range(3 if full else 1)]
        records += found
        if full:
            records += [medians(problem, found), compare_budgets(problem)]
    return [*records, compare_seedings(full), *([compare_seedings_after_training()] if full else [])]


def ours(w: Tensor, **more: Any) -> ExpertBank:
    """Train one family."""
    return AlternatingBankTrainer(RANK, BASES, **more).train(w)[0]["experts"]


def compare_training(problem: str, seed: int) -> dict[str, Any]:
    """From weights to factors, on one data set; quality is the relative Frobenius error."""
    w = planted_experts(problem, seed)

    def quality(result: Any) -> dict[str, Any]:
        """Relative error, and how our own came about."""
        if isinstance(result, ExpertBank):
            return {"error": round(result.metrics["relative_error"], 4), "activation": result.activation}
        if isinstance(result, MoBEArm):
            return {"error": round(result.relative_error, 4)}
        return {row.name: round(row.relative_error, 4) for row in result}

    return compare(
        f"{problem}, data seed {seed}",
        {
            "eigenloom": lambda: ours(w, **QUICK),
            "eigenloom, default budget": lambda: ours(w),
            "MoBE, silu": lambda: train_mobe(w, RANK, BASES, activation="silu"),
            "MoBE, tanh": lambda: train_mobe(w, RANK, BASES, activation="tanh"),
            "MoBE, tanh, even codes": lambda: train_mobe(w, RANK, BASES, activation="tanh", even=True),
            "singular values": lambda: baselines(w, RANK, BASES),
        },
        rounds=1,
        settings={"E": 32, "p": 64, "d": 128, "r": RANK, "m": BASES, "share of parameters": 0.376, **QUICK},
        quality=quality,
        target="the better MoBE's error in a quarter of its time; 8 % below svd of each",
    )


def medians(problem: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Gather the data seeds of a problem into one record, times of all seeds and the median of the errors."""
    rows = []
    for same in zip(*(record["rows"] for record in records), strict=True):
        keys = [key for key, value in same[0]["quality"].items() if isinstance(value, float)]
        quality = {key: statistics.median(row["quality"][key] for row in same) for key in keys}
        times = {name: [t for row in same for t in row[name]] for name in ("cpu_s", "wall_s")}
        rows.append({**same[0], **times, "quality": quality})
    base = statistics.median(rows[0]["cpu_s"])
    rows = [{**row, "ratio": statistics.median(row["cpu_s"]) / base} for row in rows]
    goal = {"signed": 0.10, "simplex_silu": 0.03, "heavy": 0.59}[problem]
    return {**records[0], "job": f"{problem}, medians of three data seeds", "target": f"error {goal}", "rows": rows}


def compare_budgets(problem: str) -> dict[str, Any]:
    """Error against time: our evaluations and the rival's epochs raised step by step, medians of three data seeds."""
    w = [planted_experts(problem, seed) for seed in range(3)]
    arms: dict[str, Any] = {
        "eigenloom": lambda x: ours(x, **QUICK).metrics["relative_error"],
        **{
            f"eigenloom, {n} evaluations": lambda x, n=n: ours(x, **{**QUICK, "polish_evals": n}).metrics[
                "relative_error"
            ]
            for n in EVALUATIONS
        },
        **{
            f"MoBE, {activation}, {n} epochs": lambda x, n=n, activation=activation: (
                train_mobe(x, RANK, BASES, activation=activation, epochs=n).relative_error
            )
            for activation in ("tanh", "silu")
            for n in EPOCHS
        },
    }
    return compare(
        f"{problem}, error against time",
        {name: lambda arm=arm: [arm(x) for x in w] for name, arm in arms.items()},
        rounds=1,
        settings={"E": 32, "p": 64, "d": 128, "r": RANK, "m": BASES, "times": "of three data seeds together", **QUICK},
        quality=lambda errors: {"error": round(statistics.median(errors), 4), "errors": [round(e, 4) for e in errors]},
        target="the error of MoBE at 2000 epochs in a quarter of its time",
    )


def seed_errors(w: Tensor, rank: int, m: int, config: SeedingConfig) -> dict[str, Any]:
    """Train from one seeding alone."""
    settings = {"n_starts": 1, "n_sweeps": 10, "polish_evals": 60, "activation": "identity"}
    bank = AlternatingBankTrainer(rank, m, seeding_config=config, **settings).train(w)[0]["experts"]
    return {"error_seed": round(bank.metrics["history"][0]["relative_error"], 4),
            "error_trained": round(bank.metrics["relative_error"], 4)}  # fmt: skip


def seedings(w: Tensor, rank: int, m: int) -> Mapping[str, Any]:
    """Return the seedings as work to time."""
    tiles = Tiles(ArrayExperts(w))
    list(tiles)
    named = {"eigenloom": "ts_pca", "left_gram_pca": "left_gram_pca", "svd (through W W^T)": "svd"}
    return {
        name: lambda method=method: seed_bank(tiles, rank, m, SeedingConfig(method=method))
        for name, method in named.items()
    }


def compare_seedings(full: bool) -> dict[str, Any]:
    """From 64 experts in memory to codes and bank; the peers' last two are the decomposition alone."""
    p, d, rank, m = (704, 1024, 352, 16) if full else (128, 256, 64, 16)
    w = planted_experts("heavy", 0, n_experts=64, shape=(p, d))
    return compare(
        "seeding 64 experts (ours: ts_pca)",
        {
            **seedings(w, rank, m),
            "torch.linalg.svd of every expert, alone": lambda: [torch.linalg.svd(x, full_matrices=False) for x in w],
            "eigh of W W^T of every expert, alone": lambda: [_by_gram(x, rank) for x in w],
        },
        rounds=1 if full else 3,
        settings={"E": 64, "p": p, "d": d, "r": rank, "m": m, "dtype": "float32"},
        target="ts_pca and left_gram_pca faster than the SVD of every expert",
    )


def compare_seedings_after_training() -> dict[str, Any]:
    """What ten sweeps and sixty evaluations make of each seeding, where the shape allows it."""
    records = []
    for problem in PROBLEMS:
        w = planted_experts(problem, 0, n_experts=64, shape=(128, 256), rank=64, num_bases=16)
        methods = ("ts_pca", "left_gram_pca", "svd")
        errors = {name: seed_errors(w, 64, 16, SeedingConfig(method=name)) for name in methods}
        records.append((problem, errors))
    w = planted_experts("signed", 0, n_experts=64, shape=(128, 256), rank=64, num_bases=16)
    record = compare(
        "seeding 64 smaller experts, errors after training",
        seedings(w, 64, 16),
        settings={"E": 64, "p": 128, "d": 256, "r": 64, "m": 16, "n_sweeps": 10, "polish_evals": 60},
        target="no worse error after training than svd",
    )
    for row, method in zip(record["rows"], ("ts_pca", "left_gram_pca", "svd"), strict=True):
        row["quality"] = {f"{problem}, {k}": v for problem, errors in records for k, v in errors[method].items()}
    return record


def _by_gram(w: Tensor, rank: int) -> Tensor:
    """Return the leading right singular vectors of one expert, by its smaller product in float32."""
    values, vectors = torch.linalg.eigh(w @ w.mT)
    return vectors[:, -rank:].mT @ w / values[-rank:, None].clamp_min(1e-30).sqrt()
