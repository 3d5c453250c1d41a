"""States of another script: its own formula gives the codes; what is ambiguous or does not agree is refused."""

import pytest
import torch
from problems import decaying_rows

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.kernel_pca_import import import_kernel_pca
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.linalg.kernels import kernel_of, kernel_reference
from eigenloom.sources.arrays import ArrayRows

M, D, R = 60, 6, 5
KERNELS = {
    "rbf": {"kernel_name": "rbf", "gamma": 0.2, "degree": 3, "coef0": 1.0},
    "poly": {"kernel_name": "poly", "gamma": None, "degree": 2, "coef0": 0.5},
    "linear": {"kernel_name": "linear", "gamma": None, "degree": 3, "coef0": 1.0},
}


def kernel_in(state):
    return kernel_of(state["kernel_name"], state["gamma"] or 1 / D, state["degree"], state["coef0"])


def hand_made(kernel, offset=0.3):
    """Kernel PCA of landmarks, written down as that script does: eigenvalues ascending."""
    landmarks = decaying_rows(M, D, mean=offset)
    state = {"landmarks": landmarks, "r": R, **KERNELS[kernel]}
    matrix = kernel_reference(kernel_in(state), landmarks, landmarks)
    centred = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
    values, vectors = torch.linalg.eigh(centred)
    state["A"] = (vectors[:, -R:] / values[-R:].sqrt()).float()
    return state | {"row_means": matrix.mean(1).float(), "K_mean": matrix.mean().float()}


def saved(path, state):
    torch.save(state, path)
    return path


def theirs(state, x):
    """Its transform, by definition, with columns from the largest eigenvalue down."""
    values = kernel_reference(kernel_in(state), x, state["landmarks"])
    centred = values - values.mean(1, keepdim=True) - state["row_means"].double() + state["K_mean"].double()
    return (centred @ state["A"].double()).flip(1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_are_those_of_its_own_formula(kernel, tmp_path):
    state = hand_made(kernel)
    basis = KernelPCA.load(saved(tmp_path / "x.pt", state))
    x = decaying_rows(200, D, seed=3, mean=0.3)
    expected = theirs(state, x)
    assert (basis.encode(x).double() - expected).abs().max() < 2e-5 * expected.abs().max()
    codes = theirs(state, state["landmarks"])
    assert ((codes.var(0) - basis.explained_variance) / basis.explained_variance).abs().max() < 1e-4
    assert basis.explained_variance.sum() <= basis.total_variance
    assert (basis.explained_variance.diff() <= 0).all()
    assert (basis.centering, basis.rank, basis.kernel) == ("landmarks", R, kernel)
    basis.save(tmp_path / "native.safetensors")
    assert torch.equal(KernelPCA.load(tmp_path / "native.safetensors").encode(x), basis.encode(x))


def test_the_decoder_is_fitted_to_rows_or_else_to_landmarks(tmp_path):
    path = saved(tmp_path / "x.pt", hand_made("rbf"))
    rows = decaying_rows(3000, D, seed=4, mean=0.3)

    def error(basis):
        left = (basis.decode(basis.encode(rows)) - rows).square().sum() / (rows - rows.mean(0)).square().sum()
        return left.item()

    alone, helped = import_kernel_pca(path), import_kernel_pca(path, rows=ArrayRows(rows))
    assert error(helped) < error(alone) < 0.6
    z = helped.encode(rows).double()
    design = torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z], 1)
    solution = torch.linalg.lstsq(design, rows.double()).solution
    assert (helped.preimage - solution[1:]).abs().max() < 1e-3 * solution.abs().max()
    assert (helped.mean - solution[0]).abs().max() < 1e-3


def test_an_rbf_state_without_gamma_needs_the_flag(tmp_path):
    state = hand_made("rbf")
    path = saved(tmp_path / "x.pt", state | {"gamma": None})
    with pytest.raises(
        ConfigError, match=r"an rbf state with gamma None .* give the one of its landmarks with --gamma"
    ):
        KernelPCA.load(path)
    x = decaying_rows(20, D)
    assert (KernelPCA.load(path, gamma=0.2).encode(x) - KernelPCA.load(saved(path, state)).encode(x)).abs().max() < 1e-6


def test_another_gamma_than_its_own_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", hand_made("rbf") | {"gamma": None})
    with pytest.raises(
        MismatchError, match=r"its row_means, .* are not those of its landmarks under kernel rbf, gamma 0.4"
    ):
        KernelPCA.load(path, gamma=0.4)
    with pytest.raises(MismatchError, match="holds gamma 0.2, but 0.3 was given; leave it out"):
        KernelPCA.load(saved(path, hand_made("rbf")), gamma=0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": None}, "A is no finite tensor"),
        ({"A": torch.full((M, R), torch.nan)}, "A is no finite tensor"),
        ({"A": torch.zeros(M - 1, R)}, r"landmarks \[60, 6\], A \[59, 5\] and row_means \[60\] do not belong together"),
        ({"kernel_name": "cosine"}, "kernel 'cosine' is unknown; this eigenloom has rbf, poly, linear"),
    ],
)
def test_states_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises((ConfigError, MismatchError, StoreError), match=words):
        KernelPCA.load(saved(tmp_path / "x.pt", hand_made("rbf") | change))


def test_missing_keys_are_named(tmp_path):
    state = hand_made("rbf")
    del state["row_means"], state["K_mean"]
    with pytest.raises(StoreError, match=r"lacks row_means, K_mean; a kernel PCA state holds landmarks, A"):
        KernelPCA.load(saved(tmp_path / "x.pt", state))
    with pytest.raises(StoreError, match="lacks landmarks, A"):
        KernelPCA.load(saved(tmp_path / "x.pt", torch.zeros(2)))
