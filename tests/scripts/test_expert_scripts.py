"""The rules about experts, one after the other on a small network: their numbers follow from the files before them."""

import json
from argparse import Namespace

import pytest
import torch

import fit_bank
import judge_bank
import judge_baselines
import tabulate_experts
import train_moe
from eigenloom.errors import DataError
from eigenloom.experts.checkpoint import ExpertCheckpoint
from eigenloom.experts.collection import load_banks
from eigenloom.nn.digits import Digits
from eigenloom.nn.moe_checkpoint import open_moe
from eigenloom.nn.moe_judging import MoEJudge
from job import Job

SHAPE = {"hidden_size": 12, "moe_intermediate_size": 6, "num_experts": 4, "num_experts_per_tok": 2,
         "num_hidden_layers": 2}  # fmt: skip
TRAINING = {"steps": 80, "batch_size": 64, "lr": 0.005, "warmup": 5, "weight_decay": 0.1, "noise": 0.1,
            "label_smoothing": 0.05, "balance": 0.01}  # fmt: skip
SIZES = [[3, 2], [3, 3]]


def run(script, out, spec, **edges):
    """Call a script's ``main`` as its command line would."""
    words = Namespace(spec=json.dumps(spec), out=str(out), device="cpu", threads=1, **edges)
    script.main(Job(words, tuple(edges)))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything the rules make of two trainings."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("experts")
        patch.chdir(root)
        trainings = []
        for seed in (0, 1):
            spec = {"data": {"n_test": 500, "seed": 3}, "model": SHAPE, "training": TRAINING, "seed": seed}
            trainings.append(run(train_moe, root / f"artifacts/m/trainings/seed-{seed}/meta.json", spec))
        what = {"seed": 0, "families": ["gate", "up"], "sizes": SIZES}
        spec = {**what, "seeding": {"method": "hybrid"}, "trainer": {"n_sweeps": 2, "polish_evals": 5, "n_starts": 1}}
        banks = run(fit_bank, root / "artifacts/m/b/meta.json", spec, trainings=trainings)
        judged = run(judge_bank, root / "results/m/b/metrics.json", {"moe": "m", "bank": "b"}, banks=[banks],
                     trainings=trainings)  # fmt: skip
        spec = {"moe": "m", "families": ["gate", "up"], "sizes": SIZES, "mobe_epochs": 3}
        baselines = run(judge_baselines, root / "results/m/baselines/metrics.json", spec, trainings=trainings)
        table = run(
            tabulate_experts, root / "results/tables/x/experts.json", {"name": "x"}, metrics=[judged, baselines]
        )
        yield root, trainings, banks, judged, baselines, table


def test_a_training_is_a_checkpoint_with_an_edge(made):
    _, (edge, _), *_ = made
    document = json.loads(edge.read_text())
    assert document["architecture"] == "eigenloom.moe"
    assert document["metrics"]["accuracy"] > 0.5
    assert {path.name for path in edge.parent.iterdir()} == {*document["files"], "meta.json", "run.json"}
    assert ExpertCheckpoint.open(edge.parent).sources()["gate"].n_experts == 8


def test_results_are_those_of_the_banks(made):
    _, trainings, banks, judged, *_ = made
    rows = json.loads(judged.read_text())["rows"]
    found = load_banks(banks)
    assert len(found) == 2 * 2 * 2
    assert [(row["training"], row["size"]) for row in rows] == [
        (seed, size) for seed in ("seed-0", "seed-1") for size in ("r03-m02", "r03-m03")
    ]
    judge = MoEJudge(trainings[1])
    row = rows[3]
    own = {family: found[f"r03-m03.seed-1.{family}"] for family in ("gate", "up")}
    assert row["parameters"] == pytest.approx(own["gate"].saving)
    squares = total = 0.0
    for family, bank in own.items():
        weights = judge.experts(family)
        squares += float((weights - bank.reconstruct()).square().sum())
        total += float(weights.square().sum())
        assert row["per_expert"][family] == pytest.approx(bank.metrics["relative_error_per_expert"], abs=1e-5)
    assert row["relative_error"] == pytest.approx((squares / total) ** 0.5, rel=1e-4)
    module, digits = open_moe(trainings[1].parent), Digits.split(500, 3)
    with torch.no_grad():
        for layer in (0, 1):
            for family, bank in own.items():
                getattr(module.blocks[layer].experts, family).copy_(bank.reconstruct()[4 * layer : 4 * layer + 4])
        assert row["accuracy"] == float((module(digits.test_x).argmax(1) == digits.test_y).double().mean())


def test_baselines_and_controls_have_their_floors(made):
    *_, baselines, _ = made
    rows = {(r["method"], r["size"], r["training"]): r for r in json.loads(baselines.read_text())["rows"]}
    for seed in ("seed-0", "seed-1"):
        dense, nothing = rows["dense", "", seed], rows["zeroed", "", seed]
        assert (dense["kl"], dense["relative_error"]) == (0, 0)
        assert nothing["relative_error"] == 1
        assert nothing["nll"] > dense["nll"]
        for size in ("r03-m02", "r03-m03"):
            bound = rows["SVD of the bank's rank (bound)", size, seed]
            others = [
                rows[name, size, seed] for name in ("truncated SVD", "stacked SVD", "grouped SVD", "mean and delta")
            ]
            assert all(row["relative_error"] > bound["relative_error"] for row in others)
            rival = rows["MoBE, tanh, 3 epochs", size, seed]
            assert bound["relative_error"] < rival["relative_error"] < 2
            share = 3 / 12 + int(size[-1]) / 8 * 3 / 6 + int(size[-1]) / 72
            assert all(0.6 * share < row["parameters"] <= share for row in others)


def test_the_table_holds_both(made):
    *_, table = made
    document = json.loads(table.read_text())
    assert len(document["rows"]) == 2 + 2 * 6 + 3
    assert document["seedings"]["m"]["b"]["method"] == "hybrid"
    assert document["seedings"]["m"]["b"]["operations"]["r03-m03"] > 0
    assert table.with_name("experts.csv").read_text().count("\n") == 1 + len(document["rows"])


def test_matrices_that_do_not_fit_are_refused(made):
    _, trainings, *_ = made
    judge = MoEJudge(trainings[0])
    for wrong in (torch.zeros(8, 6, 11), torch.full((8, 6, 12), torch.nan)):
        with pytest.raises(DataError, match=r"b r03-m02: gate of shape .* where finite \(8, 6, 12\) is needed"):
            judge.row("b", "r03-m02", 0.5, {"gate": wrong})
