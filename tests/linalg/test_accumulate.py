"""Shifted sums: independent of batches, as exact as float32 products allow, and plain about what is not finite."""

import numpy as np
import pytest
import torch
from problems import decaying_rows

from eigenloom.errors import DataError
from eigenloom.linalg.accumulate import BLOCK_ROWS, ShiftedGram, refuse_nonfinite, row_blocks, shifted_gram_reference
from eigenloom.sources.arrays import ArrayRows


def accumulate(rows, batch_size=8192, block_rows=1000, device="cpu"):
    gram = ShiftedGram(rows.shape[1], device)
    for block in row_blocks(rows.split(batch_size), block_rows=block_rows, device=device):
        gram.add(block)
    return gram


@pytest.mark.parametrize("batch_size", [1, 7, 100, 250, 10_000])
@pytest.mark.parametrize("skip", [0, 100, 300])
def test_blocks_begin_at_multiples_whatever_the_batches(batch_size, skip):
    rows = torch.arange(730.0)[:, None].expand(730, 3)
    blocks = [block.clone() for block in row_blocks(rows.split(batch_size), skip_rows=skip, block_rows=100)]
    assert [len(block) for block in blocks] == [100] * (7 - skip // 100) + [30]
    assert torch.equal(torch.cat(blocks), rows[skip:])


def test_half_precision_rows_are_upcast():
    (block,) = row_blocks([torch.ones(3, 2, dtype=torch.float16)], block_rows=4)
    assert block.dtype == torch.float32


def test_equal_to_float64_and_to_itself_under_any_batch_size():
    rows = decaying_rows(5300, 20, mean=3.0)
    grams = [accumulate(rows, size) for size in (1, 333, 5300)]
    for gram in grams[1:]:
        assert all(torch.equal(gram.state()[name], tensor) for name, tensor in grams[0].state().items())
    mean, scatter = grams[0].mean_and_scatter()
    mean64, scatter64 = shifted_gram_reference(rows)
    assert (mean - mean64).abs().max() < 1e-8
    assert (scatter - scatter64).norm() < 2e-7 * scatter64.norm()
    assert torch.equal(scatter, scatter.T)
    assert torch.equal(grams[0].minimum, rows.amin(0))
    assert torch.equal(grams[0].maximum, rows.amax(0))


def test_means_of_ten_sigma_and_of_ten_thousand_cost_nothing():
    rows = decaying_rows(20_000, 16)
    # At 1e4 float32 leaves the rows ten bits, and sums of such squares round with a bias.
    for mean, tolerance in ((0.0, 1e-7), (10.0, 1e-7), (1e4, 2e-6)):
        shifted = (rows.double() + mean).float()
        scatter = accumulate(shifted, block_rows=BLOCK_ROWS).mean_and_scatter()[1]
        truth = shifted_gram_reference(shifted)[1]
        assert (scatter - truth).norm() < tolerance * truth.norm()
    # What the shift is for: without it, the same sums lose five digits.
    unshifted = shifted.T @ shifted - len(rows) * torch.outer(shifted.mean(0), shifted.mean(0))
    assert (unshifted - truth).norm() > 1e-2 * truth.norm()


def test_a_constant_feature_has_exactly_its_value_and_no_scatter():
    rows = decaying_rows(2500, 4)
    rows[:, 2] = 0.1
    mean, scatter = accumulate(rows).mean_and_scatter()
    assert mean[2] == rows[0, 2].double()
    assert not scatter[2].any()


def test_a_restored_state_goes_on_to_the_same_bytes():
    rows = decaying_rows(3500, 6)
    whole, half = accumulate(rows), accumulate(rows[:2000])
    state = {name: tensor.clone() for name, tensor in half.state().items()}
    resumed = ShiftedGram(6)
    resumed.restore(state, 2000)
    for block in row_blocks(rows.split(99), skip_rows=2000, block_rows=1000):
        resumed.add(block)
    assert resumed.n_rows == 3500
    assert all(torch.equal(resumed.state()[name], tensor) for name, tensor in whole.state().items())


def test_squares_that_overflow_are_named():
    rows = torch.randn(50, 3) * 1e20
    with pytest.raises(DataError, match=r"values up to \d\.\d+e\+20 overflow float32 sums of squares"):
        accumulate(rows).mean_and_scatter()


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "Inf")])
def test_what_is_not_finite_is_located_and_counted(value, word):
    rows = torch.zeros(50, 4)
    rows[[33, 40], [2, 1]] = value
    assert not accumulate(rows).finite()
    batches = ArrayRows(rows, batch_size=10)
    with pytest.raises(DataError, match=rf"batch 3, row 33, feature 2 is {word}; 2 entries of 50 rows are not finite"):
        refuse_nonfinite(batches)
    batches.locate = lambda row, feature: f"shard 1, row {row}, column {feature}"
    with pytest.raises(DataError, match=f"shard 1, row 33, column 2 is {word}"):
        refuse_nonfinite(batches)
    refuse_nonfinite(ArrayRows(torch.zeros(5, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_agrees():
    rows = decaying_rows(3000, 32, mean=10.0)
    on_card = accumulate(rows, device="cuda").mean_and_scatter()
    truth = shifted_gram_reference(rows)
    assert (on_card[1] - truth[1]).norm() < 1e-9 * truth[1].norm()
    assert (on_card[0] - truth[0]).abs().max() < 1e-7
