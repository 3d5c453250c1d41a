"""Robust PCA: spikes leave its directions alone, and what it keeps of the pursuit is true."""

import os
import signal

import pytest
import torch
from problems import low_rank_plus_sparse

from eigenloom import pcp
from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.pca import PCA
from eigenloom.bases.robust_pca import RobustPCA
from eigenloom.errors import ConfigError, DataError, Interrupted
from eigenloom.progress import Progress
from eigenloom.sources.arrays import ArrayRows

N, D, RANK = 500, 60, 5


def fit(rows, **parameters):
    return RobustPCA.fit(ArrayRows(rows), seed=0, **{"n_components": RANK, **parameters})


def planted(noise=0.05, share=0.02, seed=0, n=N, size=30.0):
    """Rows with a mean and spikes, the same without spikes, both float32."""
    X, _low_rank, sparse = low_rank_plus_sparse(n, D, RANK, share, seed, noise=noise, size=size)
    mean = torch.linspace(-3, 3, D)
    return (X + mean).float(), (X - sparse + mean).float()


def nmse(basis, rows):
    error = (basis.decode(basis.encode(rows)) - rows).double().square().sum()
    return (error / (rows - rows.mean(0)).double().square().sum()).item()


def principal_angle(basis, directions):
    """The largest angle between the spans of two bases with orthonormal rows, as a sine."""
    one, two = basis.components.double(), directions.double()
    return torch.linalg.matrix_norm(one - one @ two.T @ two, 2).item()


def test_spikes_leave_the_directions_alone():
    rows, without = planted(n=2 * N)
    spiked, clean, unseen = rows[:N], without[:N], without[N:]
    robust, plain = fit(spiked), PCA.fit(ArrayRows(spiked), seed=0, n_components=RANK)
    truth = PCA.fit(ArrayRows(clean), seed=0, n_components=RANK)
    assert robust.status == "converged"
    assert principal_angle(robust, truth.components) < 0.02
    assert principal_angle(plain, truth.components) > 0.1
    lost, least, worst = (nmse(basis, unseen) for basis in (robust, truth, plain))
    assert lost - least < 0.05 * (worst - least)


def test_reweighting_keeps_a_spike_out_of_the_code():
    spiked, clean = planted()
    projecting, reweighting = fit(spiked), fit(spiked, robust_iter=5)
    assert torch.equal(projecting.components, reweighting.components)
    wanted = projecting.encode(clean)
    hit = (spiked != clean).any(1)
    errors = [(basis.encode(spiked) - wanted)[hit].norm().item() for basis in (projecting, reweighting)]
    assert errors[1] < 0.2 * errors[0]
    assert (reweighting.encode(clean) - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert projecting.code_energies(wanted) is not None
    assert reweighting.code_energies(wanted) is None
    alone = torch.cat([reweighting.encode(row[None]) for row in spiked[:50]])
    assert (alone - reweighting.encode(spiked)[:50]).abs().max() < 1e-5 * wanted.abs().max()


def test_reweighting_of_exact_rows_changes_nothing():
    basis = fit(planted(noise=0.0)[0], noise_std=0.0, robust_iter=3)
    exact = basis.decode(torch.randn(20, RANK, generator=torch.Generator().manual_seed(0)))
    z = basis.encode(exact)
    assert torch.isfinite(z).all()
    assert (basis.decode(z) - exact).abs().max() < 1e-5


def test_directions_are_right_singular_vectors_of_the_low_rank_part():
    spiked, _ = planted()
    basis = fit(spiked, sample_rows=N, noise_std=0.05)
    L, _, hist = pcp(spiked - spiked.median(0).values, noise_std=0.05, rank_guess=RANK, max_iter=500, verbose=False)
    _, values, right = torch.linalg.svd(L.double(), full_matrices=False)
    assert basis.rank == hist["rank"][-1]
    assert (basis.singular_values - values[:RANK]).abs().max() < 1e-4 * values[0]
    assert principal_angle(basis, right[:RANK]) < 1e-4
    assert (basis.components @ basis.components.T - torch.eye(RANK)).abs().max() < 1e-5


def test_wide_samples_have_the_same_directions():
    spiked, _ = planted(n=40)
    basis = fit(spiked, noise_std=0.05)
    assert basis.components.shape == (RANK, D)
    assert (basis.components @ basis.components.T - torch.eye(RANK)).abs().max() < 1e-5
    L, _, _ = pcp(spiked - spiked.median(0).values, noise_std=0.05, rank_guess=RANK, verbose=False)
    assert principal_angle(basis, torch.linalg.svd(L.double(), full_matrices=False)[2][:RANK]) < 1e-3


def test_no_more_directions_than_the_low_rank_part_has(caplog):
    caplog.set_level("INFO")
    basis = fit(planted()[0], n_components=20, rank_guess=RANK)
    assert basis.n_elements == basis.rank < 20
    assert f"the low-rank part has rank {basis.rank}, so {basis.rank} of 20 directions" in caplog.text


def test_a_solver_that_stopped_early_says_so(caplog):
    basis = fit(planted()[0], max_iter=3)
    assert (basis.status, len(basis.rank_history)) == ("max_iter", 3)
    assert basis.gap > 1e-3
    assert "robust_pca: max_iter after 3 iterations" in caplog.text


def test_rows_are_sampled_by_the_seed():
    spiked, _ = planted(n=2000)
    one, two = (RobustPCA.fit(ArrayRows(spiked), seed=s, n_components=RANK, sample_rows=300) for s in (0, 1))
    assert one.rows_used == 300
    assert not torch.equal(one.mean, two.mean)
    assert principal_angle(one, two.components) < 0.05


class Killing(Progress):
    """Sends SIGTERM when the solver logs that iteration."""

    def __init__(self, at):
        self.at, self.seen = at, []

    def log(self, phase, step, **values):
        self.seen.append((phase, step, sorted(values)))
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [1, 6, 15])
def test_a_fit_stopped_inside_the_solver_resumes_to_the_same_bytes(at, tmp_path):
    spiked, _ = planted()
    progress = Killing(at)
    with pytest.raises(Interrupted, match="run the same command to resume"):
        RobustPCA.fit(ArrayRows(spiked), seed=0, n_components=RANK, resume=tmp_path / "state", progress=progress)
    assert progress.seen[-1] == ("robust_pca", at, ["dual_resid", "mu", "nnz", "primal_resid", "rank"])
    again = Killing(-1)
    resumed = RobustPCA.fit(ArrayRows(spiked), seed=0, n_components=RANK, resume=tmp_path / "state", progress=again)
    assert again.seen[0][1] == at + 1
    assert not (tmp_path / "state").exists()
    for name, basis in (("resumed", resumed), ("whole", fit(spiked))):
        save_basis(basis, tmp_path / name)
    assert (tmp_path / "resumed/meta.json").read_bytes() == (tmp_path / "whole/meta.json").read_bytes()


def test_parameters_survive_the_artifact(tmp_path):
    basis = fit(planted()[0], robust_iter=2)
    save_basis(basis, tmp_path)
    again = load_basis(tmp_path)
    names = ("rank", "status", "gap", "noise_std", "lambda_", "rows_used", "robust_iter", "seed")
    assert [getattr(again, name) for name in names] == [getattr(basis, name) for name in names]
    assert torch.equal(again.residual_history, basis.residual_history)
    assert again.residual_history.shape == (len(basis.rank_history), 2)
    assert basis.gap_history[-1].tolist() == [len(basis.rank_history), basis.gap]


def test_noise_that_hides_everything_is_said():
    with pytest.raises(DataError, match="nothing of low rank stands out of 500 rows with noise_std 1e.03; set noise"):
        fit(planted()[0], noise_std=1e3)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_components": 61}, "n_components: 61, but rows have 60 features; use 1..60"),
        ({"sample_rows": 1}, "sample_rows: 1 is not a whole number of at least 2"),
        ({"sample_rows": 3}, "sample_rows: 3 rows cannot carry n_components: 5"),
        ({"robust_iter": -1}, "robust_iter: -1 is not a whole number of at least 0"),
        ({"noise_std": "automatic"}, "noise_std: 'automatic' is neither a number nor auto"),
        ({"noise_std": -0.5}, "noise_std: -0.5 is not a number of at least 0"),
        ({"lambda_": -1.0}, "lambda_: -1.0 is not a positive number"),
        ({"max_iter": 0}, "max_iter: 0 is not a whole number of at least 1"),
    ],
)
def test_out_of_range_parameters_are_refused(parameters, words):
    with pytest.raises(ConfigError, match=words):
        fit(planted()[0], **parameters)
