"""Generators, devices, and the in-memory rows that every other source is compared with."""

import numpy as np
import pytest
import torch

from eigenloom.batches import Batches, first_nonfinite, generator, resolve_device
from eigenloom.errors import ConfigError, DataError
from eigenloom.sources.arrays import ArrayRows


def test_generator_is_a_function_of_seed_purpose_and_index():
    def draw(*key):
        return torch.rand(4, generator=generator(*key))

    assert torch.equal(draw(0, "seeding"), draw(0, "seeding"))
    others = [draw(1, "seeding"), draw(0, "shuffle"), draw(0, "seeding", 1)]
    assert not any(torch.equal(draw(0, "seeding"), other) for other in others)


def test_device_names():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="'gpu' is not a device; use auto"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="not available on this machine"):
        resolve_device("cuda:99")


@pytest.fixture
def rows():
    return torch.arange(70, dtype=torch.float64).reshape(35, 2)


def test_array_rows_are_batches_in_stored_order(rows):
    batches = ArrayRows(rows, batch_size=8)
    assert isinstance(batches, Batches)
    assert (batches.n_rows, batches.n_features) == (35, 2)
    for _ in range(2):
        walked = torch.cat(list(batches))
        assert walked.dtype == torch.float32
        assert torch.equal(walked, rows.float())


def test_shuffle_is_a_permutation_that_ignores_the_batch_size_and_can_skip(rows):
    orders = [
        torch.cat(list(ArrayRows(rows, batch_size=size).shuffled(generator(3, "shuffle"), skip)))
        for size, skip in [(8, 0), (5, 0), (8, 11)]
    ]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0][11:], orders[2])
    assert torch.equal(orders[0].sort(0).values, rows.float())
    assert not torch.equal(orders[0], rows.float())


def test_sample_is_distinct_and_its_prefixes_are_samples(rows):
    few, many = (ArrayRows(rows).sample(n, generator(0, "reservoir")) for n in (5, 20))
    assert torch.equal(few, many[:5])
    assert len({tuple(row) for row in many.tolist()}) == 20


def test_array_rows_refuse_what_is_not_a_matrix(rows):
    with pytest.raises(DataError, match=r"a matrix with at least one row and one column, not \(0, 3\)"):
        ArrayRows(np.zeros((0, 3)))
    with pytest.raises(DataError, match="36 distinct rows were asked for, but there are only 35"):
        ArrayRows(rows).sample(36, generator(0, "reservoir"))


def test_first_nonfinite():
    batch = torch.ones(4, 3)
    assert first_nonfinite(batch) is None
    batch[2, 1] = torch.inf
    batch[3, 0] = torch.nan
    assert first_nonfinite(batch) == (2, 1, 2)
