"""The sketch: one map for every vector, in every process, that keeps norms and products on average."""

import subprocess
import sys

import pytest
import torch

from eigenloom.errors import ConfigError
from eigenloom.linalg.srht import SRHT


def vectors(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def dense(sketch):
    """R as a matrix ``[width, n_features]``, from its action on unit vectors."""
    return sketch(torch.eye(sketch.n_features)).T


@pytest.mark.parametrize(("d", "block_size"), [(64, 64), (100, 32), (130, 64), (5, 64)])
def test_is_the_matrix_its_definition_says(d, block_size):
    sketch = SRHT(seed=3, n_features=d, width=16, block_size=block_size)
    parts = []
    for block in range(sketch.n_blocks):
        signs, chosen = sketch.operator(block)
        used = min(block_size, d - block * block_size)
        number = torch.arange(len(signs))
        bits = chosen[:, None] & number
        parity = sum(bits >> i & 1 for i in range(12)) % 2
        parts.append(((1.0 - 2.0 * parity) * signs / 16**0.5)[:, :used])
        assert len(signs) == max(16, 1 << (used - 1).bit_length())
        assert set(signs.tolist()) <= {-1.0, 1.0}
        assert len(set(chosen.tolist())) == 16
    assert (dense(sketch) - torch.cat(parts, dim=1)).abs().max() < 1e-6


def test_is_the_same_map_for_every_vector_whatever_its_company():
    sketch = SRHT(seed=1, n_features=5000, width=64, block_size=1024)
    x = vectors(50, 5000)
    together = sketch(x)
    alone = torch.cat([sketch(row[None]) for row in x])
    assert (together - alone).abs().max() < 1e-5
    assert (sketch(x[3:4] - 2 * x[7:8]) - (together[3] - 2 * together[7])).abs().max() < 1e-4
    moved = sum(sketch.apply_block(b, part, part[0]).double() for b, part in enumerate(x.split(1024, dim=1)))
    assert (moved - (together - together[0])).abs().max() < 1e-4


def test_is_the_same_map_in_another_process():
    code = (
        "import torch; from eigenloom.linalg.srht import SRHT\n"
        "signs, chosen = SRHT(seed=5, n_features=3000, width=40, block_size=1024).operator(2)\n"
        "print(signs.sum().item(), chosen.tolist())"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    signs, chosen = SRHT(seed=5, n_features=3000, width=40, block_size=1024).operator(2)
    assert found.stdout.strip() == f"{signs.sum().item()} {chosen.tolist()}"
    others = [SRHT(seed=6, n_features=3000, width=40, block_size=1024).operator(2)[1],
              SRHT(seed=5, n_features=3000, width=40, block_size=1024).operator(1)[1]]  # fmt: skip
    assert not any(torch.equal(chosen, other) for other in others)


def test_norms_and_products_are_kept_on_average():
    x = vectors(12, 3000, seed=2)
    x[6:] += x[:6]
    true, width, seeds = x.double() @ x.double().T, 64, 60
    errors = []
    mean = torch.zeros_like(true)
    for seed in range(seeds):
        y = SRHT(seed=seed, n_features=3000, width=width, block_size=1024)(x)
        mean += y @ y.T / seeds
        scale = true.diagonal().sqrt()
        errors.append((((y @ y.T - true) / torch.outer(scale, scale)).diagonal()).square().mean())
    norms = true.diagonal().sqrt()
    # One estimate of a squared norm errs by sqrt(2 / width); the mean of `seeds` of them by sqrt(seeds) less.
    assert ((mean - true) / torch.outer(norms, norms)).abs().max() < 4 * (2 / width / seeds) ** 0.5
    distortion = torch.stack(errors).mean().sqrt().item()
    assert distortion == pytest.approx((2 / width) ** 0.5, rel=0.25)


def test_is_an_isometry_when_nothing_is_left_out():
    sketch = SRHT(seed=0, n_features=50, width=64, block_size=64)
    x = vectors(8, 50)
    y = sketch(x)
    assert (y @ y.T - x.double() @ x.double().T).abs().max() < 1e-4


def test_sizes_that_do_not_fit_are_refused():
    for block_size in (48, 32):
        with pytest.raises(
            ConfigError, match=f"block_size: {block_size} must be a power of two and hold the 40 numbers"
        ):
            SRHT(seed=0, n_features=100, width=40, block_size=block_size)
