"""Kernel PCA against scikit-learn's exact one, against PCA, and against what its definition promises."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from problems import decaying_rows
from sklearn import decomposition

from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.kernel_pca_settings import Settings
from eigenloom.bases.kernel_pca_solve import Whitener
from eigenloom.bases.pca import PCA
from eigenloom.errors import ConfigError, DataError, Interrupted, StoreError
from eigenloom.evaluation.reconstruction import reconstruct
from eigenloom.linalg.accumulate import BLOCK_ROWS
from eigenloom.linalg.kernels import kernel_of, kernel_reference
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.sources.arrays import ArrayRows


def fit(rows, seed=0, **parameters):
    size = {} if isinstance(parameters.get("landmark_choice"), torch.Tensor) else {"n_landmarks": 100}
    return KernelPCA.fit(ArrayRows(rows, 1000), seed=seed, **{"n_components": 8, **size, **parameters})


def nmse(basis, rows):
    error = (basis.decode(basis.encode(rows)) - rows.float()).double().square().sum()
    return (error / (rows.double() - rows.double().mean(0)).square().sum()).item()


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [("rbf", {"gamma": 0.3}), ("poly", {"gamma": 0.2, "degree": 2, "coef0": 1.0}), ("linear", {})],
)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_with_all_rows_as_landmarks_it_is_exact_kernel_pca(kernel, parameters, mean):
    rows = decaying_rows(220, 9, mean=mean)
    held_out = decaying_rows(50, 9, seed=1, mean=mean)
    ours = fit(rows, kernel=kernel, n_components=6, n_landmarks=220, kernel_dtype="float64", **parameters)
    theirs = decomposition.KernelPCA(6, kernel=kernel, eigen_solver="dense", **parameters).fit(rows.double().numpy())
    expected = torch.from_numpy(theirs.eigenvalues_) / 219
    assert ((ours.explained_variance - expected).abs() / expected).max() < 1e-6
    for x in (rows, held_out):
        found, wanted = ours.encode(x).double(), torch.from_numpy(theirs.transform(x.double().numpy()))
        signs = torch.sign((found * wanted).sum(0))
        assert (found - signs * wanted).abs().max() < 2e-6 * wanted.abs().max()
    assert ours.landmark_residual < 1e-9


def test_with_a_linear_kernel_it_is_pca():
    rows = decaying_rows(3000, 10, mean=0.5)
    ours = fit(rows, kernel="linear", kernel_dtype="float64", ridge=0.0)
    pca = PCA.fit(ArrayRows(rows), seed=0, n_components=8)
    assert ((ours.explained_variance - pca.explained_variance) / pca.explained_variance).abs().max() < 1e-6
    assert nmse(ours, rows) == pytest.approx(nmse(pca, rows), rel=1e-5)
    z, expected = ours.encode(rows), pca.encode(rows)
    assert (z.abs() - expected.abs()).abs().max() < 1e-4
    assert (ours.total_variance, ours.gamma) == (pytest.approx(pca.total_variance, rel=1e-6), 1.0)


def test_the_rank_of_the_data_bounds_the_components(caplog):
    rows = decaying_rows(900, 5, mean=0.3)
    basis = fit(rows, kernel="linear", kernel_dtype="float64")
    assert (basis.rank, basis.n_elements, basis.parameters["n_components"]) == (5, 5, 8)
    assert "n_components: 8 were asked for, the data have rank 5" in caplog.text
    assert nmse(basis, rows) < 1e-9


@pytest.mark.parametrize("kernel", ["rbf", "poly"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_codes_are_centred_uncorrelated_and_of_the_variance_told(kernel, dtype):
    rows = decaying_rows(2 * BLOCK_ROWS + 33, 8, mean=0.4)
    basis = fit(rows, kernel=kernel, kernel_dtype=dtype, degree=2)
    z = basis.encode(rows).double()
    tolerance = 2e-5 if dtype == "float32" else 1e-6  # codes are float32 in either case
    assert z.mean(0).abs().max() < tolerance * z.abs().max()
    covariance = torch.cov(z.T)
    assert (covariance - torch.diag(basis.explained_variance)).abs().max() < tolerance * covariance.max()
    assert (basis.explained_variance.diff() <= 0).all()
    white = fit(rows, kernel=kernel, kernel_dtype=dtype, degree=2, whiten=True)
    assert (white.encode(rows).double().var(0) - 1).abs().max() < 1e-3
    assert (white.decode(white.encode(rows)) - basis.decode(basis.encode(rows))).abs().max() < 1e-3


def exact_spectrum(rows, gamma):
    kernel = kernel_of("rbf", gamma)
    matrix = kernel_reference(kernel, rows, rows)
    centred = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
    return torch.linalg.eigvalsh(centred).flip(0) / (len(rows) - 1)


def test_captured_variance_rises_with_landmarks_and_components_and_never_passes_the_exact():
    rows = decaying_rows(600, 8)
    exact = exact_spectrum(rows, 0.3)
    shared = {"gamma": 0.3, "kernel_dtype": "float64"}
    nested = [fit(rows, landmark_choice=rows[:m], **shared) for m in (20, 60, 180, 600)]
    captured = [basis.explained_variance.sum().item() for basis in nested]
    assert captured == sorted(captured)
    for basis in nested:
        assert (basis.explained_variance <= exact[:8] * (1 + 1e-9)).all()
    assert captured[-1] == pytest.approx(exact[:8].sum().item(), rel=1e-9)
    more = [fit(rows, n_components=r, **shared).explained_variance for r in (2, 5, 8)]
    assert all((one - more[-1][: len(one)]).abs().max() < 1e-12 for one in more)
    left = [basis.landmark_residual for basis in nested]
    assert left == sorted(left, reverse=True)


def test_float32_captures_what_float64_does():
    rows = decaying_rows(6000, 20, power=0.3)
    one, two = (fit(rows, n_components=32, n_landmarks=400, kernel_dtype=dtype) for dtype in ("float32", "float64"))
    assert one.explained_variance.sum() == pytest.approx(two.explained_variance.sum().item(), rel=1e-4)
    z = two.encode(rows).double()
    for basis in (one, two):  # of codes as they come out, not as the fit tells them
        assert torch.cov(basis.encode(rows).double().T).trace() == pytest.approx(
            torch.cov(z.T).trace().item(), rel=1e-4
        )


def test_captures_no_less_than_nystroem_and_pca_of_scikit_learn():
    from sklearn.kernel_approximation import Nystroem

    rows = decaying_rows(5000, 16, power=0.4)
    ours = fit(rows, n_components=16, gamma=0.1, landmark_choice=rows[:200])
    peer = Nystroem(gamma=0.1, n_components=200, random_state=0)
    features = peer.fit_transform(rows.numpy())
    same = fit(rows, n_components=16, gamma=0.1, landmark_choice=torch.from_numpy(peer.components_))
    captured = decomposition.PCA(16, svd_solver="covariance_eigh").fit(features).explained_variance_.sum()
    assert same.explained_variance.sum() > captured - 1e-4
    assert ours.explained_variance.sum() > 0.9 * captured


@pytest.mark.parametrize("kernel", ["rbf", "poly"])
def test_one_row_alone_is_that_row_in_a_batch(kernel):
    rows = decaying_rows(4096, 12, mean=0.5)
    basis = fit(rows, kernel=kernel, degree=2)
    together = basis.encode(rows)
    alone = torch.cat([basis.encode(row[None]) for row in rows[:100]])
    assert (alone - together[:100]).abs().max() < 1e-6 * together.abs().max()
    assert (basis.encode(rows[:100].flip(0)).flip(0) - together[:100]).abs().max() < 1e-6 * together.abs().max()


def test_an_offset_of_a_thousand_changes_nothing():
    rows = decaying_rows(3000, 8).mul(2.0**10).round().mul(2.0**-10)  # exact even at the offset
    near, far = fit(rows), fit(rows + 1000)
    assert far.gamma == pytest.approx(near.gamma, rel=1e-9)
    assert (far.explained_variance - near.explained_variance).abs().max() < 1e-6 * near.explained_variance[0]
    assert (far.encode(rows + 1000) - near.encode(rows)).abs().max() < 1e-4
    assert nmse(far, rows + 1000) == pytest.approx(nmse(near, rows), rel=1e-4)


def test_duplicated_landmarks_lower_the_rank_and_nothing_else():
    rows = decaying_rows(1000, 6)
    shared = {"gamma": 0.2, "kernel_dtype": "float64"}
    plain = fit(rows, landmark_choice=rows[:50], **shared)
    doubled = fit(rows, landmark_choice=torch.cat([rows[:50], rows[:50]]), **shared)
    assert (plain.explained_variance - doubled.explained_variance).abs().max() < 1e-9
    assert (plain.encode(rows) - doubled.encode(rows)).abs().max() < 1e-5
    repeated = rows[:3].repeat(100, 1)
    few = fit(repeated, n_landmarks=100)
    assert few.rank == 2
    assert nmse(few, repeated) < 1e-8


def test_components_do_not_depend_on_how_the_landmarks_are_whitened():
    rows = decaying_rows(2000, 40, power=0.1)
    matrix = kernel_reference(kernel_of("rbf", 0.05), rows[:80], rows[:80])
    spectrum = torch.linalg.eigvalsh(matrix)
    quick, whole = Whitener(matrix, 1e-6), Whitener(matrix, float(spectrum[5] / spectrum[-1]) * 1.001)
    assert (quick.is_triangular, whole.is_triangular) == (True, False)
    for whitener in (quick, whole):
        root = whitener.back(torch.eye(len(whitener.whiten(matrix)), dtype=torch.float64))
        assert (root.T @ matrix @ root - torch.eye(root.shape[1])).abs().max() < 1e-9
    assert root.shape[1] == 74
    shared = {"gamma": 0.05, "landmark_choice": rows[:80], "kernel_dtype": "float64"}
    one = fit(rows, rank_tol=1e-6, **shared)
    two = fit(
        rows, rank_tol=float(spectrum[0] / spectrum[-1]) * 0.999, **shared
    )  # nothing is cut, which no bound can prove
    assert (one.explained_variance / two.explained_variance - 1).abs().max() < 1e-9
    assert (one.encode(rows) - two.encode(rows)).abs().max() < 1e-6


def test_the_decoder_is_the_ridge_regression_of_rows_on_codes():
    rows = decaying_rows(BLOCK_ROWS + 2000, 7, mean=3.0)
    rows[:BLOCK_ROWS] += 0.7  # the sums are shifted by the means of a first block that are not those of all rows
    basis = fit(rows, n_components=5, ridge=1e-3, kernel_dtype="float64")
    z = basis.encode(rows).double()
    z = z - z.mean(0)
    x = rows.double() - rows.double().mean(0)
    penalty = 1e-3 * basis.explained_variance[0] * (len(rows) - 1)
    expected = torch.linalg.solve(z.T @ z + penalty * torch.eye(5, dtype=torch.float64), z.T @ x)
    assert (basis.preimage - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (basis.mean - rows.double().mean(0)).abs().max() < 1e-6


def test_error_never_rises_with_components():
    rows = decaying_rows(1500, 10, power=0.2)
    errors = [nmse(fit(rows, n_components=r), rows) for r in (1, 2, 4, 8, 16, 32, 64)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.5 * errors[0]


def test_a_decoder_from_landmarks_is_nearly_as_good():
    rows = decaying_rows(5000, 10)
    best, cheap = (fit(rows, n_landmarks=300, preimage=source) for source in ("all", "landmarks"))
    assert torch.equal(best.encode(rows), cheap.encode(rows))
    assert nmse(best, rows) <= nmse(cheap, rows) < 1.3 * nmse(best, rows)


def test_random_directions_are_orthonormal_in_the_feature_space_and_capture_less():
    rows = decaying_rows(3000, 10, power=1.0)
    shared = {"kernel_dtype": "float64", "landmark_choice": rows[:120]}
    basis, floor = fit(rows, **shared), fit(rows, directions="random", **shared)
    landmarks = floor.landmarks.double()
    matrix = kernel_reference(kernel_of("rbf", floor.gamma), landmarks, landmarks)
    for one in (basis, floor):
        gram = one.projection.T @ matrix @ one.projection
        assert (gram - torch.eye(8)).abs().max() < 1e-8
    assert floor.explained_variance.sum() < 0.5 * basis.explained_variance.sum()
    assert nmse(basis, rows) < nmse(floor, rows) < 1
    z = floor.encode(rows).double()
    assert (z.var(0) / floor.explained_variance - 1).abs().max() < 1e-4
    smaller = fit(rows, directions="random", n_components=3, **shared)
    assert (smaller.projection - floor.projection[:, :3]).abs().max() < 1e-9


def test_signs_follow_the_mean_feature():
    rows = decaying_rows(2000, 6, mean=0.5)
    basis = fit(rows, kernel_dtype="float64")
    assert (basis.offset >= -1e-5).all()
    shuffled = rows[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    shared = {"gamma": 0.2, "landmark_choice": rows[:100]}
    one, two = fit(rows, **shared), fit(shuffled, **shared)
    assert (one.encode(rows) - two.encode(rows)).abs().max() < 1e-3


def test_gamma_is_resolved_once_and_stored():
    rows = decaying_rows(3000, 8)
    basis = fit(rows)
    median = torch.pdist(rows[:1500].double()).square().median().item()
    assert basis.gamma == pytest.approx(1 / median, rel=0.1)
    assert fit(rows, kernel="poly").gamma == 1 / 8
    assert basis.parameters["gamma"] == "auto"


class Counting(ArrayRows):
    """Rows that count how often each is read in order, and how many are sampled."""

    def __init__(self, rows):
        super().__init__(rows, 1000)
        self.read = self.sampled = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.read += len(batch)
            yield batch

    def sample(self, n, generator):
        self.sampled += n
        return super().sample(n, generator)


@pytest.mark.parametrize(("choice", "sampled"), [("uniform", 2048), ("rpcholesky", 3000), ("k-means++", 3000)])
def test_a_fit_is_one_pass_after_one_sample(choice, sampled):
    rows = Counting(decaying_rows(9000, 5))
    KernelPCA.fit(rows, seed=0, n_components=4, n_landmarks=300, landmark_choice=choice)
    assert (rows.read, rows.sampled) == (9000, sampled)


def test_an_interrupted_fit_resumes_from_the_landmarks_it_has(tmp_path):
    rows = decaying_rows(3 * BLOCK_ROWS, 5)

    class Interrupting(ArrayRows):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    parameters = {"n_components": 4, "n_landmarks": 50}
    with pytest.raises(Interrupted):
        KernelPCA.fit(Interrupting(rows, 1000), seed=0, resume=tmp_path / "state", **parameters)
    counting = Counting(rows)
    resumed = KernelPCA.fit(counting, seed=0, resume=tmp_path / "state", **parameters)
    assert counting.sampled == 0
    save_basis(resumed, tmp_path / "resumed.safetensors")
    save_basis(KernelPCA.fit(ArrayRows(rows), seed=0, **parameters), tmp_path / "whole.safetensors")
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_one_file_holds_it_all(tmp_path):
    rows = decaying_rows(500, 6)
    moments = moments_of_rows(ArrayRows(rows))
    standardization = Standardization.from_moments(moments, layer="layer-03")
    basis = KernelPCA.fit(
        StandardizedRows(ArrayRows(rows), standardization, moments), seed=0, n_components=5, n_landmarks=64
    )
    path = tmp_path / "kpca.safetensors"
    basis.save(path)
    again = KernelPCA.load(path)
    assert torch.equal(again.encode(rows), basis.encode(rows))
    assert torch.equal(again.decode(again.encode(rows)), basis.decode(basis.encode(rows)))
    assert again.standardization.digest == standardization.digest
    assert (again.gamma, again.parameters, again.total_variance) == (
        basis.gamma,
        basis.parameters,
        basis.total_variance,
    )
    basis.save(tmp_path / "artifact")
    assert torch.equal(KernelPCA.load(tmp_path / "artifact").projection, basis.projection)
    assert isinstance(load_basis(path), KernelPCA)
    save_basis(PCA.fit(ArrayRows(rows), seed=0), tmp_path / "pca.safetensors")
    with pytest.raises(StoreError, match=r"pca\.safetensors: is a 'pca', where a 'kernel_pca' is needed"):
        KernelPCA.load(tmp_path / "pca.safetensors")


def test_top_k_of_codes_without_energies_goes_through_the_decoder():
    rows, held_out = decaying_rows(2000, 6, mean=1.0), decaying_rows(300, 6, seed=2, mean=1.0)
    basis = fit(rows, n_components=10)  # more elements than features
    z = basis.encode(held_out)
    assert basis.code_energies(z) is None
    fitted, measured = moments_of_rows(ArrayRows(rows)), moments_of_rows(ArrayRows(held_out))
    result = reconstruct(basis, [ArrayRows(held_out)], moments=measured, fit_mean=fitted.mean, topk=(1, 4, 64))
    assert list(result.codings) == ["topk-00001", "topk-00004", "dense"]
    total = (held_out.double() - fitted.mean).square().sum()
    for k, name in ((1, "topk-00001"), (4, "topk-00004"), (10, "dense")):
        kept = torch.zeros_like(z)
        order = z.abs().argsort(dim=1, descending=True)[:, :k]
        kept.scatter_(1, order, z.gather(1, order))
        error = (basis.decode(kept) - held_out).double().square().sum() / total
        assert result.codings[name].nmse == pytest.approx(error.item(), rel=1e-6)
        assert result.codings[name].l0 == k
    assert len(result.curve) == 3


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_landmarks": 51}, "51 landmarks cannot be drawn from 50 rows; lower n_landmarks"),
        ({"n_components": 21}, r"n_components \(--r\): 21 is more than the 20 landmarks"),
        ({"kernel": "cosine"}, "kernel: 'cosine' is unknown; use rbf or poly or linear"),
        ({"gamma": 0.0}, "gamma: 0.0 is not a number above 0, or auto"),
        ({"gamma": "scale"}, "gamma: 'scale' is not a number above 0, or auto"),
        ({"ridge": -1.0}, "ridge: -1.0 is not a number of at least 0"),
        ({"rank_tol": float("nan")}, "rank_tol: nan is not a number of at least 0"),
        ({"degree": 1.5}, "degree: 1.5 is not a whole number of at least 1"),
        ({"n_components": True}, "n_components: True is not a whole number"),
        ({"whiten": 1}, "whiten: 1 is not true or false"),
        ({"kernel": "poly", "coef0": -1.0}, "coef0: -1.0 makes poly no positive kernel"),
        ({"landmark_choice": "first"}, "landmark_choice: 'first' is unknown"),
        ({"landmark_choice": torch.zeros(3, 9)}, r"landmarks of shape \[3, 9\] do not fit rows of length 4"),
        ({"landmark_choice": torch.full((3, 4), torch.nan)}, "landmarks must be a finite matrix"),
        ({"n_landmark": 3}, "kernel_pca has no parameter 'n_landmark'; it takes n_components, n_landmarks"),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence(parameters, words):
    with pytest.raises((ConfigError, DataError), match=words):
        fit(decaying_rows(50, 4), **{"n_landmarks": 20, **parameters})


def test_landmarks_default_to_2048_or_all_rows():
    assert Settings().landmark_count(ArrayRows(torch.zeros(3000, 2))) == 2048
    assert Settings(n_components=4).landmark_count(ArrayRows(torch.zeros(70, 2))) == 70


def test_a_kernel_that_overflows_is_an_error():
    rows = decaying_rows(200, 4) * 1e15
    with pytest.raises(DataError, match=r"rows with values up to .*e\+15 overflow the poly kernel; standardize them"):
        fit(rows, kernel="poly", degree=3, landmark_choice="uniform")


@pytest.mark.parametrize("parameters", [{"kernel": "linear"}, {"gamma": 1.0}, {}])
def test_constant_rows_are_refused_whatever_the_kernel(parameters):
    with pytest.raises(DataError, match="constant"):
        fit(torch.full((300, 3), 2.5), **parameters)


def test_memory_stays_bounded_as_rows_grow():
    """The peak of a real process, rows made as they are asked for: ten times the rows, no more memory."""
    code = """
        import resource, sys, torch
        from eigenloom.bases.kernel_pca import KernelPCA

        class Made:
            n_rows, n_features = int(sys.argv[1]), 512
            def __iter__(self):
                for start in range(0, self.n_rows, 4000):
                    yield torch.randn(4000, 512, generator=torch.Generator().manual_seed(start))
            def sample(self, n, generator):
                return torch.randn(n, 512, generator=generator)

        torch.set_num_threads(1)
        KernelPCA.fit(Made(), seed=0, n_components=8, n_landmarks=128)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for n_rows in (8000, 80_000):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", textwrap.dedent(code), str(n_rows)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 30_000  # KiB; the rows themselves would be 144,000 more


def test_values_are_repeatable_bit_by_bit():
    rows = decaying_rows(2000, 6)
    one, two = fit(rows, seed=3), fit(rows, seed=3)
    for name in ("landmarks", "projection", "offset", "preimage", "explained_variance"):
        assert np.array_equal(getattr(one, name).numpy(), getattr(two, name).numpy())
    assert not torch.equal(fit(rows, seed=4).landmarks, one.landmarks)
