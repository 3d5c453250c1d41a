"""Moments: exact, mergeable, indifferent to batches; standardization, its digest, and what it protects from."""

import dataclasses
import hashlib
import logging
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import decaying_rows

from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.linalg.accumulate import BLOCK_ROWS, shifted_gram_reference
from eigenloom.moments import (
    Moments,
    Standardization,
    StandardizedRows,
    agreement,
    denominator,
    merge,
    moments_of,
    moments_of_rows,
    standardization_of,
)
from eigenloom.sources.arrays import ArrayRows


def measure(rows, batch_size=8192, **options):
    return moments_of_rows(ArrayRows(rows, batch_size), **options)


def standard(rows, kind="standard", layer="layer-03"):
    return Standardization.from_moments(measure(rows), kind, layer)


def test_moments_are_those_of_float64_and_ignore_the_batch_size():
    rows = decaying_rows(2 * BLOCK_ROWS + 500, 12, mean=10.0)
    ours = measure(rows)
    mean, scatter = shifted_gram_reference(rows)
    assert (ours.mean - mean).abs().max() < 1e-8
    assert (ours.scatter - scatter).norm() < 1e-7 * scatter.norm()
    assert (ours.variance - rows.double().var(0, correction=0)).abs().max() < 1e-6
    assert torch.equal(ours.minimum, rows.amin(0))
    assert torch.equal(ours.maximum, rows.amax(0))
    assert (ours.n_rows, ours.n_features, ours.n_nonfinite) == (len(rows), 12, 0)
    for size in (97, 3000, 100_000):
        assert all(torch.equal(t, ours.arrays()[name]) for name, t in measure(rows, size).arrays().items())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.sampled_from([0.0, 10.0]))
def test_any_sharding_merges_to_the_whole(sizes, mean):
    rows = decaying_rows(sum(sizes), 5, seed=len(sizes), mean=mean)
    parts = [measure(part) for part in rows.split(sizes)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    mean64, scatter64 = shifted_gram_reference(rows)
    scale = scatter64.norm() + 1e-6 * rows.double().square().sum()
    assert merged.n_rows == len(rows)
    assert (merged.mean - mean64).abs().max() < 1e-6
    assert (merged.scatter - scatter64).norm() < 1e-6 * scale
    assert torch.equal(merged.minimum, rows.amin(0))
    assert torch.equal(merged.maximum, rows.amax(0))


def test_merging_is_exact_in_float64():
    rows = decaying_rows(900, 6, mean=10.0).double()

    def exact(part):
        mean, scatter = shifted_gram_reference(part)
        return Moments(len(part), mean, scatter, part.amin(0).float(), part.amax(0).float())

    merged = merge(merge(exact(rows[:100]), exact(rows[100:101])), exact(rows[101:]))
    whole = exact(rows)
    assert (merged.mean - whole.mean).abs().max() < 1e-13
    assert (merged.scatter - whole.scatter).norm() < 1e-12 * whole.scatter.norm()


def test_one_row_and_a_constant_feature():
    rows = decaying_rows(300, 3)
    rows[:, 1] = 0.1
    one, two = measure(rows[:1]), measure(rows[1:])
    assert not one.scatter.any()
    merged = merge(one, two)
    assert merged.mean[1] == rows[0, 1].double()
    assert not merged.scatter[1].any()
    assert Standardization.from_moments(merged).scale[1] == 1
    fitted = merged.standardized(Standardization.from_moments(merged))
    assert fitted.mean[1] == fitted.minimum[1] == fitted.maximum[1] == 0


@pytest.mark.parametrize("kind", ["standard", "center", "none"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments_of_standardized_rows_need_no_second_pass(kind, mean):
    rows = decaying_rows(5000, 7, mean=mean)
    rows[:, 3] *= 50
    standardization = standard(rows, kind)
    derived = measure(rows).standardized(standardization)
    walked = moments_of_rows(StandardizedRows(ArrayRows(rows), standardization))
    assert ((derived.mean - walked.mean) / walked.variance.sqrt()).abs().max() < 1e-6
    assert (derived.scatter - walked.scatter).norm() < 5e-6 * walked.scatter.norm()
    assert torch.equal(derived.minimum, walked.minimum)
    assert torch.equal(derived.maximum, walked.maximum)


def test_standardized_rows_are_rows():
    rows = decaying_rows(400, 4, mean=3.0)
    moments, standardization = measure(rows), standard(rows)
    batches = StandardizedRows(ArrayRows(rows, 64), standardization, moments)
    walked = torch.cat(list(batches))
    assert walked.mean(0).abs().max() < 1e-5
    assert (walked.std(0, correction=0) - 1).abs().max() < 1e-5
    assert (standardization.invert(walked) - rows).abs().max() < 1e-5
    source = torch.Generator().manual_seed(1)
    shuffled = torch.cat(list(batches.shuffled(source, skip_rows=10)))
    assert shuffled.shape == (390, 4)
    assert batches.sample(9, source).shape == (9, 4)
    assert (batches.n_rows, batches.n_features) == (400, 4)
    assert standardization_of(batches) is standardization
    assert moments_of(batches) is moments
    plain = ArrayRows(rows)
    assert moments_of(plain) is None
    assert torch.equal(standardization_of(plain).apply(rows), rows)


def test_the_digest_sees_one_bit_of_anything():
    standardization = standard(decaying_rows(100, 3))
    changed = [
        dataclasses.replace(standardization, kind="center"),
        dataclasses.replace(standardization, layer="layer-04"),
        dataclasses.replace(
            standardization, mean=torch.nextafter(standardization.mean, torch.tensor(torch.inf).double())
        ),
        dataclasses.replace(standardization, scale=torch.nextafter(standardization.scale, torch.tensor(0.0).double())),
    ]
    assert len({one.digest for one in [standardization, *changed]}) == 5
    assert dataclasses.replace(standardization, mean=standardization.mean.clone()).digest == standardization.digest


def test_the_digest_is_of_these_bytes():
    standardization = Standardization("center", "layer-00", torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0]))
    data = b"eigenloom.standardization/1\0center\0layer-00\x002\0" + struct.pack("<4d", 0.5, 1.0, 1.0, 2.0)
    assert standardization.digest == hashlib.sha256(data).hexdigest()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="standardize: 'zscore' is unknown; use one of standard, center, none"):
        standard(decaying_rows(10, 2), "zscore")


@pytest.mark.parametrize("mu", ["own", "other"])
def test_denominators_are_the_direct_sum(mu):
    rows, others = decaying_rows(700, 5, mean=2.0), decaying_rows(500, 5, seed=1, mean=2.5)
    moments = measure(rows)
    standardization = standard(others)
    centre = moments.mean if mu == "own" else standardization.mean
    raw = ((rows.double() - centre) ** 2).sum(1).mean().item()
    scaled = (((rows.double() - centre) / standardization.scale) ** 2).sum(1).mean().item()
    assert denominator(moments, centre) == pytest.approx(raw, rel=1e-6)
    assert denominator(moments, centre, standardization.scale) == pytest.approx(scaled, rel=1e-6)


def test_agreement_is_silent_warns_or_refuses(caplog):
    rows = decaying_rows(2000, 8, mean=5.0)
    standardization = standard(rows)
    caplog.set_level(logging.INFO)

    def warned(new, **options):
        caplog.clear()
        found = agreement(new, standardization, **options)
        return found, [record.levelname for record in caplog.records]

    (shift, spread), levels = warned(decaying_rows(500, 8, mean=5.0))
    assert levels == ["INFO"]
    assert shift < 0.2
    assert spread == pytest.approx(1, abs=0.2)
    (shift, _), levels = warned(rows + standardization.scale.float())
    assert levels == ["INFO", "WARNING"]
    assert shift == pytest.approx(1, abs=1e-3)
    for wrong in (
        standardization.apply(rows),
        rows + 3 * standardization.scale.float(),
        standardization.mean + (rows - 5) / 9,
    ):
        with pytest.raises(MismatchError, match="these rows are not of the recording .* or set allow_shift: true"):
            agreement(wrong, standardization)
        warned(wrong, allow_shift=True)
    agreement(1000 * rows, standard(rows, "none"))


def test_not_finite_is_refused_with_its_place():
    rows = decaying_rows(3 * BLOCK_ROWS, 3)
    rows[BLOCK_ROWS + 7, 1] = torch.nan
    batches = StandardizedRows(ArrayRows(rows, 1000), Standardization.identity(3))
    row = BLOCK_ROWS + 7
    with pytest.raises(DataError, match=rf"batch {row // 1000}, row {row}, feature 1 is NaN; 1 entries of {len(rows)}"):
        moments_of_rows(batches)
    batches.rows.locate = lambda row, feature: f"layer-03, example {row // 4}, feature {feature}"
    with pytest.raises(DataError, match=rf"layer-03, example {row // 4}, feature 1 is NaN"):
        moments_of_rows(batches)


def test_an_example_that_was_never_written_is_found_across_blocks():
    rows = decaying_rows(BLOCK_ROWS + 400, 3)
    rows[:, 0] = 0
    rows[100] = 0
    per_example = BLOCK_ROWS // 2 + 100
    measure(rows, rows_per_example=per_example)
    rows[per_example : 2 * per_example] = 0
    with pytest.raises(DataError, match=rf"example 1: all {per_example} rows of this example are exactly zero"):
        measure(rows, rows_per_example=per_example)


@pytest.mark.parametrize("kind", ["standard", "none"])
def test_arrays_and_counts_make_the_moments_again(kind):
    moments = measure(decaying_rows(50, 3))
    again = Moments.from_arrays(moments.arrays(), {"n_rows": 50, "n_nonfinite": 0, "layer": "layer-03"})
    assert torch.equal(again.scatter, moments.scatter)
    assert Standardization.from_moments(again, kind).digest == Standardization.from_moments(moments, kind).digest
