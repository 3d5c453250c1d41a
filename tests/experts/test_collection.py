"""Banks in one artifact, what they are compared with, and what seedings cost."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenloom.errors import StoreError
from eigenloom.experts.baselines import bank_parameters, truncated
from eigenloom.experts.collection import load_banks, save_banks
from eigenloom.experts.costs import operations_of, seeding_operations
from eigenloom.experts.factorisations import equal_sizes, mean_and_delta, stacked, truncated_together
from eigenloom.experts.settings import SeedingConfig, SeedingMethod
from eigenloom.experts.trainer import AlternatingBankTrainer

W = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(2))


def fitted(method="ts_pca"):
    trainer = AlternatingBankTrainer(3, 2, seeding_config=SeedingConfig(method), n_sweeps=2, polish_evals=5, n_starts=1)
    return trainer.train({"gate": W, "up": -W[:, :, :8]})[0]


def tails(w, k):
    return float(torch.linalg.svdvals(w.double())[..., k:].square().sum())


def error(w, found):
    return float((w.double() - found.double()).square().sum())


def test_banks_survive_the_disk(tmp_path):
    banks = {f"r03-m02.seed-0.{family}": bank for family, bank in fitted().items()}
    one = save_banks(tmp_path / "a", banks, spec={"x": 1})
    assert one == save_banks(tmp_path / "b", {f"r03-m02.seed-0.{f}": b for f, b in fitted().items()}, spec={"x": 1})
    for name, again in load_banks(tmp_path / "a/meta.json").items():
        bank = banks[name]
        assert torch.equal(again.reconstruct(), bank.reconstruct())
        assert (again.family, again.expert_names, again.shape) == (bank.family, bank.expert_names, bank.shape)
        assert again.metrics["relative_error"] == bank.metrics["relative_error"]
        assert again.saving == pytest.approx(bank_parameters(6, bank.shape, 3, 2) / (6 * 5 * bank.shape[1]))
    arrays = tmp_path / "a/arrays.safetensors"
    save_file({name: t for name, t in load_file(arrays).items() if not name.endswith("gate.codes")}, arrays)
    with pytest.raises(StoreError):
        load_banks(tmp_path / "a")


def test_each_factorisation_is_the_best_of_its_kind():
    assert error(W, truncated(W, 2)) == pytest.approx(tails(W, 2), rel=1e-5)
    assert error(W, stacked(W, 4)) == pytest.approx(tails(W.flatten(0, 1), 4), rel=1e-5)
    groups = sum(tails(W[at].flatten(0, 1), 4) for at in (slice(0, 3), slice(3, 6)))
    assert error(W, stacked(W, 4, 2)) == pytest.approx(groups, rel=1e-5)
    values = torch.linalg.svdvals(W.double()).flatten().square().sort().values
    assert error(W, truncated_together(W, 13)) == pytest.approx(float(values[:-13].sum()), rel=1e-5)
    assert error(W, truncated_together(W, 12)) < error(W, truncated(W, 2))
    values = torch.linalg.svdvals((W - W.mean(0)).double()).flatten().square().sort().values
    assert error(W, mean_and_delta(W, 7)) == pytest.approx(float(values[:-7].sum()), rel=1e-5)
    assert torch.allclose(mean_and_delta(W, 0), W.mean(0).expand_as(W), atol=1e-6)
    assert torch.linalg.matrix_rank(stacked(W, 4).flatten(0, 1).double(), rtol=1e-5) == 4


@pytest.mark.parametrize("n", [40, 100, 200])
def test_equal_sizes_are_the_largest_that_fit(n):
    cost = {
        "truncated": lambda k: k * 14, "stacked": lambda r: r * (30 + 9), "grouped": lambda r: r * (30 + 18),
        "delta": lambda k: 45 + k * 14,
    }  # fmt: skip
    sizes = equal_sizes(n, (6, 5, 9), 2)
    assert sizes.keys() == cost.keys()
    for name, size in sizes.items():
        assert size == 0 or cost[name](size) <= n
        assert cost[name](size + 1) > n
    assert equal_sizes(10**6, (6, 5, 9), 2) == {"truncated": 30, "delta": 30, "stacked": 9, "grouped": 9}


def test_costs_follow_what_was_done():
    shape = (704, 1024)
    cost = {m.value: seeding_operations(m, 64, shape, 352, 16, 3) for m in SeedingMethod}
    assert cost["svd"] > 2 * cost["ts_pca"]
    assert cost["ts_pca"] < cost["left_gram_pca"] < cost["svd"]
    assert seeding_operations("svd", 8, shape, 352, 4, 0) == pytest.approx(
        8 * (2 * 704**2 * 1024 + 9 * 704**3 + 2 * 352 * 704 * 1024) + 2 * 64 * 352 * 1024 + 9 * 512
    )
    for method in ("ts_pca", "spherical_kmeans"):
        told = fitted(method)["gate"]
        rounds = len(told.metrics["seeding"]["procrustes_objective"])
        kmeans = told.metrics["seeding"].get("iterations", 0)
        assert rounds > 0
        assert (kmeans > 0) == (method == "spherical_kmeans")
        assert operations_of(told) == seeding_operations(method, 6, (5, 9), 3, 2, rounds, kmeans)
