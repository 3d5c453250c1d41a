"""Sums by label are the same bits in any order, and the segment form is the same sum."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eigenloom.linalg.order_free import add_by_label, add_by_label_reference, add_segments, quantize, quantum


def problem(n=500, d=7, k=13, scale=1.0):
    random = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=random) * torch.logspace(-6, 0, d) * scale
    return x, torch.randint(k, (n,), generator=random), torch.zeros(k, d, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_sums_do_not_depend_on_cut_or_order(scale):
    x, labels, zero = problem(scale=scale)
    q = quantum(x.abs().amax(0), len(x))
    totals = []
    for cut, order in ((500, None), (1, None), (37, torch.randperm(500)), (499, torch.arange(499, -1, -1))):
        sums = zero.clone()
        rows, names = (x, labels) if order is None else (x[order], labels[order])
        for part, name in zip(rows.split(cut), names.split(cut), strict=True):
            add_by_label(sums, part, name, q)
        totals.append(sums)
    assert all(torch.equal(totals[0], other) for other in totals[1:])
    assert ((totals[0] - zero.index_add(0, labels, x.double())).abs() <= len(x) * q).all()


def test_plain_float64_sums_do_depend_on_order():
    x, labels, zero = problem(n=2000, k=1)
    x = x * (20 * x[:, -1:]).exp()
    backwards = zero.index_add(0, labels.flip(0), x.double().flip(0))
    assert not torch.equal(zero.index_add(0, labels, x.double()), backwards)


def test_all_forms_agree_bit_by_bit():
    x, labels, zero = problem()
    q = quantum(x.abs().amax(0), len(x))
    fast, slow, segments = zero.clone(), zero.clone(), zero.clone()
    add_by_label(fast, x, labels, q)
    add_by_label_reference(slow, x, labels, q)
    add_segments(segments, quantize(x, q), labels)
    assert torch.equal(fast, slow)
    assert torch.equal(segments, slow)
    q, weights, totals = q[0], x[:, 0], [torch.zeros(13, dtype=torch.float64) for _ in range(2)]
    add_by_label(totals[0], weights, labels, q)
    add_segments(totals[1], quantize(weights, q), labels)
    assert torch.equal(*totals)


@given(st.floats(1e-30, 1e30), st.integers(1, 10**7))
def test_the_quantum_leaves_room_for_every_partial_sum(bound, n_terms):
    q = float(quantum(torch.tensor(bound, dtype=torch.float64), n_terms))
    assert math.frexp(q)[0] == 0.5
    assert bound * n_terms / q <= 2.0**53
    assert bound / q >= 2.0**26
    one = quantize(torch.tensor([bound], dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    assert float(one) == round(bound / q) * q


def test_a_repeated_number_keeps_every_bit_whatever_stands_beside_it():
    x = torch.stack([torch.full((1000,), 0.1), torch.full((1000,), 1e9)], 1)
    sums = torch.zeros(1, 2, dtype=torch.float64)
    add_by_label(sums, x, torch.zeros(1000, dtype=torch.int64), quantum(x.abs().amax(0), 1000))
    assert torch.equal((sums / 1000).float()[0], x[0])
