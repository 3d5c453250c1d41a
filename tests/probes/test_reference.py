import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eigenloom.probes.reference import fit_reference


@pytest.mark.parametrize("l2", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scikit_learn(l2: float, weighted: bool) -> None:
    rng = np.random.default_rng(3)
    n = 500
    z = rng.standard_normal(n) * 3 + 7
    y = (rng.random(n) < 1 / (1 + np.exp(2 - 0.5 * (z - 7)))).astype(float)
    omega = np.where(y == 1, n / 2 / y.sum(), n / 2 / (n - y.sum())) if weighted else None
    b, w, loss = fit_reference(z, y, l2=l2, weights=omega)
    peer = LogisticRegression(C=1 / (l2 * n), solver="newton-cholesky", tol=1e-12, max_iter=500)
    peer.fit(z[:, None] / z.std(), y, sample_weight=omega)
    peer_w = peer.coef_[0, 0] / z.std()
    assert b == pytest.approx(peer.intercept_[0], abs=1e-6)
    assert w == pytest.approx(peer_w, abs=1e-6)
    eta = peer.intercept_[0] + peer_w * z
    peer_loss = np.average(np.logaddexp(0, eta) - y * eta, weights=omega)
    assert loss == pytest.approx(peer_loss, abs=1e-6)


def test_saev_objective_is_stationary() -> None:
    rng = np.random.default_rng(4)
    z, l2 = rng.standard_normal(300) + 2, 1e-2
    y = (rng.random(300) < 0.2 + 0.5 * (z > 2)).astype(float)
    b, w, _ = fit_reference(z, y, l2=l2, objective="saev")
    residual = 1 / (1 + np.exp(-(b + w * z))) - y
    origin = np.log(y.mean() / (1 - y.mean()))
    assert residual.mean() + l2 * (b - origin) == pytest.approx(0, abs=1e-12)
    assert (residual * z).mean() + l2 * w == pytest.approx(0, abs=1e-12)
