"""Seedings: each method's own identity, one gauge for all, and six banks that differ."""

import itertools
from dataclasses import fields

import pytest
import torch
from planted_banks import generic_experts, rel

from eigenloom import SeedingConfig, SeedingMethod, create_warm_start
from eigenloom.batches import generator
from eigenloom.errors import ConfigError, DataError
from eigenloom.experts.alignment import REPRESENTATIVES, align, orthonormal_rows, spread
from eigenloom.experts.dictionary import (
    atoms_by_greed,
    atoms_by_mixture,
    atoms_by_pca,
    codes_of,
    residual_gram,
)
from eigenloom.experts.model import mix, squared_error
from eigenloom.experts.planted import planted_experts
from eigenloom.experts.proxies import leading_rows, proxies_of, select_rows
from eigenloom.experts.source import ArrayExperts, Tiles
from eigenloom.experts.spherical import spherical_kmeans

METHODS = list(SeedingMethod)
R, M = 6, 4


def seeded(w, r=R, m=M, **config):
    return create_warm_start(w, r, m, SeedingConfig(**config))


def products(n=20, d=30, seed=0):
    x = torch.randn(n, d, generator=generator(seed, "vectors"), dtype=torch.float64) + 0.4
    return x @ x.T, x


def rotations(n, r, seed=0):
    return torch.linalg.qr(torch.randn(n, r, r, generator=generator(seed, "rotations"))).Q


@pytest.mark.parametrize("method", METHODS)
def test_shapes_metrics_and_determinism(method):
    w = generic_experts()
    one, two = seeded(w, method=method, seed=3), seeded(list(w), method=method, seed=3)
    assert (one.bank.shape, one.codes.shape, one.adapters.shape) == ((M, R, 24), (12, M), (12, 16, R))
    for name in ("bank", "codes", "adapters"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == torch.float32
    left = squared_error(w, one.adapters, mix(one.codes, one.bank)).sum() / w.double().square().sum()
    assert one.metrics["weight_explained_variance"] == pytest.approx(1 - float(left), abs=1e-9)
    assert 0 < one.metrics["proxy_explained_variance"] < 1
    assert torch.allclose(one.bank.flatten(1).norm(dim=1), torch.ones(M), atol=1e-5)
    assert {"proxies", "alignment", "dictionary", "adapters", "total"} == one.metrics["seconds"].keys()


def test_the_six_banks_differ_pairwise():
    w = generic_experts()
    banks = {method: seeded(w, method=method) for method in METHODS}
    for a, b in itertools.combinations(METHODS, 2):
        one, two = (mix(banks[method].codes, banks[method].bank) for method in (a, b))
        assert rel(one, two) > 1e-2, (a, b)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"row_selection": "uniform"}, "ts_pca"), ({"row_selection": "random"}, "ts_pca"),
        ({"normalize_atoms": False}, "ts_pca"), ({"gauge": "weighted"}, "svd"), ({"gauge": "none"}, "svd"),
        ({"gauge_sweeps": 1}, "ts_pca"), ({"code_rule": "nnls"}, "spherical_kmeans"), ({"code_rule": "omp"}, "ts_pca"),
        ({"code_rule": "omp"}, "residual_greedy"), ({"kmeans_iters": 1}, "spherical_kmeans"),
        ({"kmeans_init": "random"}, "spherical_kmeans"), ({"hybrid_pca_ratio": 0.25}, "hybrid"),
        ({"seed": 1}, "spherical_kmeans"), ({"method": "hybrid"}, "ts_pca"),
    ],
)  # fmt: skip
def test_every_field_has_an_effect_on_the_method_it_belongs_to(change, method):
    w = generic_experts(n=60, seed=4)
    one, two = seeded(w, m=6, method=method), seeded(w, m=6, **{"method": method, **change})
    assert not torch.equal(one.bank, two.bank) or not torch.equal(one.codes, two.codes)


def test_the_table_of_effects_leaves_no_field_out():
    tested = {"row_selection", "normalize_atoms", "gauge", "gauge_sweeps", "code_rule", "kmeans_iters", "kmeans_init"}
    assert {field.name for field in fields(SeedingConfig)} == tested | {"hybrid_pca_ratio", "seed", "method"}


def test_row_selections():
    energies = torch.tensor([5.0, 1, 7, 3, 9, 2], dtype=torch.float64)
    assert select_rows(energies, 3, SeedingConfig()).tolist() == [0, 2, 4]
    uniform = SeedingConfig(row_selection="uniform")
    assert select_rows(energies, 3, uniform).tolist() == [1, 3, 5]
    assert select_rows(torch.zeros(10), 4, uniform).tolist() == [1, 3, 6, 8]
    random = [select_rows(energies, 4, SeedingConfig(row_selection="random", seed=s)).tolist() for s in range(6)]
    assert all(len(set(rows)) == 4 for rows in random)
    assert len({tuple(rows) for rows in random}) > 1
    for choice in ("energy", "uniform", "random"):
        assert select_rows(energies, 6, SeedingConfig(row_selection=choice)).tolist() == list(range(6))
    w = generic_experts()
    w[:, 3] *= 10
    facts = proxies_of(Tiles(ArrayExperts(w)), 2, SeedingConfig())[1]
    assert 3 in facts["rows"]
    assert facts["row_energy_share"] == pytest.approx(float(w[:, facts["rows"]].square().sum() / w.square().sum()))


# Proxies


def test_svd_proxies_leave_the_tail_of_each_expert():
    w = generic_experts(dtype=torch.float64)
    proxies = leading_rows(w, R)
    rows = orthonormal_rows(proxies)
    left = (w - w @ rows.mT @ rows).square().sum((1, 2))
    assert torch.allclose(left, torch.linalg.svdvals(w)[:, R:].square().sum(1), rtol=1e-9)
    assert torch.allclose(proxies.norm(dim=2), torch.linalg.svdvals(w)[:, :R], rtol=1e-9)


def test_left_gram_proxies_leave_the_tail_of_the_gram_matrix():
    w = generic_experts()
    proxies, facts = proxies_of(Tiles(ArrayExperts(w), tile_bytes=1), R, SeedingConfig(method="left_gram_pca"))
    values = torch.linalg.eigvalsh((w.double() @ w.double().mT).sum(0)).flip(0)
    assert torch.allclose(torch.tensor(facts["gram_eigenvalues"], dtype=torch.float64), values[:R], rtol=1e-5)
    left = float(w.double().square().sum() - proxies.double().square().sum())
    assert left == pytest.approx(float(values[R:].sum()), rel=1e-5)
    assert facts["gram_energy_share"] == pytest.approx(1 - left / float(values.sum()), rel=1e-6)


# One gauge


@pytest.mark.parametrize("gauge", ["procrustes", "weighted"])
def test_the_procrustes_objective_never_rises(gauge):
    aligned, facts = align(generic_experts(n=40)[:, :R], gauge, 30)
    rounds = facts["procrustes_objective"]
    assert len(rounds) > 2
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(rounds))
    assert facts["procrustes_spread"] == pytest.approx(spread(aligned), rel=1e-9)
    assert facts["procrustes_spread"] < 0.9 * spread(orthonormal_rows(generic_experts(n=40)[:, :R]))


def test_alignment_undoes_rotations():
    """Proxies of one space in many gauges become one proxy; also of experts that are only rotated at the end."""
    base = orthonormal_rows(generic_experts(n=1)[:, :R])
    aligned, _ = align(rotations(REPRESENTATIVES + 5, R) @ base, "procrustes", 20)
    assert spread(aligned) < 1e-6 * len(aligned)


@pytest.mark.parametrize("gauge", ["procrustes", "weighted"])
def test_quality_does_not_depend_on_the_gauge_of_any_proxy(gauge):
    x = generic_experts(n=10)[:, :R]
    x[0] *= 2  # one proxy of largest energy, whose gauge all take
    turned = x.clone()
    turned[1:] = rotations(9, R) @ x[1:]
    values = []
    for proxies in (x, turned):
        flat = align(proxies, gauge, 200)[0].double().flatten(1)
        values.append(torch.linalg.svdvals(flat)[:M].square().sum() / flat.square().sum())
    assert float(values[0]) == pytest.approx(float(values[1]), rel=5e-3)


def test_rows_become_orthonormal_even_when_dependent():
    x = generic_experts(n=3)[:, :R]
    x[1, 2] = x[1, 1] * (1 + 1e-6)
    rows = orthonormal_rows(x)
    assert (rows @ rows.mT - torch.eye(R)).abs().max() < 1e-5
    assert rel(x[0] @ rows[0].T @ rows[0], x[0]) < 1e-6


def test_without_a_gauge_the_proxies_stay():
    x = generic_experts(n=3)[:, :R]
    assert align(x, "none", 10) == (x, {})


def test_an_aligned_seed_is_much_better_than_the_published_form():
    w = planted_experts("signed", 0, n_experts=16, shape=(24, 40), rank=10, num_bases=4)
    errors = {g: 1 - seeded(w, 10, 4, gauge=g).metrics["weight_explained_variance"] for g in ("procrustes", "none")}
    assert errors["procrustes"] < 0.7 * errors["none"]


def test_permuted_neurons_change_nothing_for_svd_and_something_for_rows():
    w = generic_experts(n=10)
    rng = generator(0, "permutations")
    permuted = torch.stack([x[torch.randperm(16, generator=rng)] for x in w])
    found = {}
    for method in ("svd", "ts_pca", "left_gram_pca"):
        one, two = (seeded(x, method=method, gauge_sweeps=100).metrics for x in (w, permuted))
        found[method] = abs(one["weight_explained_variance"] - two["weight_explained_variance"])
    assert found["svd"] < 2e-3
    assert found["ts_pca"] > 5e-3
    assert found["left_gram_pca"] > 5e-3


# Dictionaries


def test_pca_leaves_the_tail_of_the_eigenvalues_on_orthonormal_atoms():
    C, x = products()
    T, facts = atoms_by_pca(C, 5)
    assert torch.allclose(T @ C @ T.T, torch.eye(5, dtype=torch.float64), atol=1e-10)
    codes, left = codes_of(C, T, "ls")
    assert float(left.sum()) == pytest.approx(sum(facts["eigenvalues"][5:]), rel=1e-9)
    assert torch.allclose(left, (x - codes @ T @ x).square().sum(1), atol=1e-9)
    assert float(residual_gram(C, T, codes).trace()) == pytest.approx(float(left.sum()), rel=1e-9)


def test_explained_variance_is_what_it_says_at_exactly_m_atoms():
    w = generic_experts()
    found = seeded(w)
    values = torch.tensor(found.metrics["eigenvalues"])
    assert found.metrics["proxy_explained_variance"] == pytest.approx(float(values[:M].sum() / values.sum()), rel=1e-6)
    assert seeded(w, m=12).metrics["proxy_explained_variance"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("start", ["kmeans++", "random"])
def test_spherical_kmeans_meets_its_identities(start):
    C, x = products(n=40, d=5)
    T, facts = spherical_kmeans(C, 6, 50, start, 0)
    unit = x / x.norm(dim=1, keepdim=True)
    centers = T @ x
    assert torch.allclose(centers.norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(facts["inertia"]))
    cosines = unit @ centers.T
    labels = cosines.argmax(1)
    assert torch.bincount(labels, minlength=6).tolist() == facts["sizes"]
    assert facts["inertia"][-1] == pytest.approx(float((1 - cosines.amax(1)).sum()), rel=1e-9)
    sums = torch.stack([unit[labels == j].sum(0).norm() for j in range(6)]).sum()
    assert float(cosines.amax(1).sum()) == pytest.approx(float(sums), rel=1e-9)
    assert facts["iterations"] < 50


def test_an_empty_cluster_takes_the_worst_served():
    x = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64)
    T, facts = spherical_kmeans(x @ x.T, 3, 20, "random", 0)
    assert facts["repaired_clusters"] > 0
    assert min(facts["sizes"]) > 0
    assert facts["inertia"][-1] < 1e-9
    assert torch.isfinite(T).all()


@pytest.mark.parametrize("rule", ["nnls", "omp"])
def test_greed_never_raises_the_residual(rule):
    C, _ = products(n=25, d=12)
    T, facts = atoms_by_greed(C, 6, rule)
    left = facts["residual_per_atom"]
    assert len(left) == 6
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise([float(C.trace()), *left]))
    assert torch.allclose((T @ C * T).sum(1), torch.ones(6, dtype=torch.float64))
    codes, again = codes_of(C, T, rule)
    assert rule == "omp" or float(again.sum()) == pytest.approx(left[-1], rel=1e-6)
    assert rule == "omp" or codes.min() >= 0


def test_greed_with_free_codes_spans_what_pca_spans():
    C, x = products()
    one, two = (torch.linalg.qr((T @ x).T).Q for T in (atoms_by_greed(C, 4, "ls")[0], atoms_by_pca(C, 4)[0]))
    assert (one - two @ (two.T @ one)).norm() < 1e-8


def test_the_mixture_lies_between_its_parts():
    C, _ = products()
    kmeans = (25, "kmeans++", 0)
    assert torch.equal(atoms_by_mixture(C, 4, 1.0, *kmeans)[0], atoms_by_pca(C, 4)[0])
    assert torch.equal(atoms_by_mixture(C, 4, 0.0, *kmeans)[0], spherical_kmeans(C, 4, *kmeans)[0])
    T, _ = atoms_by_mixture(C, 5, 0.5, *kmeans)
    assert torch.equal(T[:3], atoms_by_pca(C, 3)[0])
    assert codes_of(C, T, "ls")[1].sum() < codes_of(C, T[:3], "ls")[1].sum()
    w = generic_experts()
    assert torch.equal(seeded(w, method="hybrid", hybrid_pca_ratio=1.0).bank, seeded(w).bank)
    both = seeded(w, method="hybrid", hybrid_pca_ratio=0.0), seeded(w, method="spherical_kmeans")
    assert torch.equal(*(found.bank for found in both))


# What is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "pca"}, "seeding method: 'pca' is unknown; use svd, ts_pca"),
        ({"row_selection": "first"}, "row_selection: 'first' is unknown; use energy, uniform, random"),
        ({"gauge": "free"}, "gauge: 'free' is unknown; use procrustes, weighted, none"),
        ({"code_rule": "l1"}, "code_rule: 'l1' is unknown; use ls, nnls, omp"),
        ({"kmeans_init": "first"}, "kmeans_init: 'first' is unknown"),
        ({"gauge_sweeps": -1}, "gauge_sweeps: -1 is not a whole number of at least 0"),
        ({"kmeans_iters": 0}, "kmeans_iters: 0 is not a whole number of at least 1"),
        ({"hybrid_pca_ratio": 1.5}, "hybrid_pca_ratio: 1.5 is not a number from 0 to 1"),
        ({"normalize_atoms": 1}, "normalize_atoms: 1 is neither true nor false"),
        ({"seed": -1}, "seed: -1 is not a whole number of at least 0"),
    ],
)
def test_unknown_settings_are_one_sentence(config, message):
    with pytest.raises(ConfigError, match=message):
        SeedingConfig(**config)


def test_sizes_that_cannot_be_are_one_sentence():
    w = generic_experts()
    with pytest.raises(ConfigError, match=r"rank: 17 is above min\(p, d\) = 16 of family 'experts' \(16 x 24\)"):
        create_warm_start(w, 17, 4)
    with pytest.raises(ConfigError, match="num_bases: 13 bases for the 12 experts of family 'experts'"):
        create_warm_start(w, 4, 13)
    w[5, 2, 3] = torch.nan
    with pytest.raises(DataError, match=r"expert 5 \(5\): 1 of 384 weights are NaN or Inf"):
        create_warm_start(w, 4, 4)
    with pytest.raises(DataError, match="expert 1 is 16 x 20 and expert 0 is 16 x 24; experts of one family"):
        create_warm_start([w[0], w[1][:, :20]], 4, 2)


def test_identical_experts_need_one_atom():
    w = generic_experts(n=1).expand(5, -1, -1).clone()
    for method in METHODS:
        found = seeded(w, 16, 2, method=method)
        assert torch.isfinite(found.bank).all()
        assert found.metrics["weight_explained_variance"] == pytest.approx(1.0, abs=1e-5)
