"""Soft control of the support: both controllers converge from above and below, and with the sign reversed do not."""

import pytest
import torch
from planted_banks import generic_experts, random_model

from eigenloom import AlternatingBankTrainer
from eigenloom.errors import ConfigError
from eigenloom.experts.blocks import code_systems
from eigenloom.experts.coders import nonnegative, soft_threshold_codes, softmax_codes
from eigenloom.experts.support import PenaltyControl, TemperatureControl, support_of


def penalised(knob):
    w, a, codes, bank = random_model(n=20, m=12, r=6)
    H, h = code_systems(a.mT @ a, a.mT @ w, bank)
    return float(support_of(soft_threshold_codes(H, h, knob, codes)).double().mean())


def softened(knob):
    logits = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(support_of(softmax_codes(torch.softmax(2 * logits, 1), knob)).double().mean())


PLANTS = {PenaltyControl: penalised, TemperatureControl: softened}


def closed_loop(control, plant, n_steps=40):
    for step in range(n_steps):
        control.update(plant(control.knob), step, n_steps)
    return plant(control.knob)


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("end", [0, 1])
def test_converges_from_above_and_from_below(kind, end):
    control = kind(5, 12)
    control.knob = (0.05, 0.8)[end] if kind is PenaltyControl else (0.05, 8.0)[end]
    before = PLANTS[kind](control.knob)
    assert before > 6 or before < 4
    assert abs(closed_loop(control, PLANTS[kind]) - 5) < 0.5


@pytest.mark.parametrize("kind", PLANTS)
def test_the_reversed_sign_does_not(kind):
    control = kind(5, 12)
    control.sense = -control.sense
    control.knob *= 0.9
    assert abs(closed_loop(control, PLANTS[kind]) - 5) > 2


def test_the_senses():
    penalty, temperature = PenaltyControl(3, 8), TemperatureControl(3, 8)
    before = penalty.knob, temperature.knob
    for control in (penalty, temperature):
        control.update(6.0, 0, 8)
    assert penalty.knob > before[0]
    assert temperature.knob < before[1]


def test_the_last_quarter_stands_still():
    control = PenaltyControl(3, 8)
    control.update(8.0, 5, 8)
    before = control.knob
    for step in (6, 7):
        control.update(8.0, step, 8)
    assert control.knob == before


def test_a_target_that_cannot_be():
    with pytest.raises(ConfigError, match="support: 9 atoms per expert out of 8; use 1 to that many"):
        PenaltyControl(9, 8)


def test_the_count_is_relative_and_knows_no_entropy():
    assert support_of(torch.tensor([[1.0, 1e-4, 0.5, 0], [1e-9, 1e-9, 0, 0]])).tolist() == [2, 2]


@pytest.mark.parametrize("codes", ["signed", "simplex"])
def test_a_soft_target_is_met_by_training_and_zeros_stay_zeros(codes):
    w = generic_experts(n=16)
    settings = {"n_starts": 1, "n_sweeps": 40, "polish_evals": 60, "activation": "identity", "codes": codes}
    free, held = (
        AlternatingBankTrainer(5, 6, **settings, support=support).train(w)[0]["experts"] for support in (None, 2)
    )
    assert free.metrics["mean_support"] > 3
    assert abs(held.metrics["mean_support"] - 2) < 0.75
    assert (held.codes == 0).double().mean() > 0.4
    assert codes == "signed" or (held.codes.sum(1) - 1).abs().max() < 1e-5


def test_a_temperature_of_one_changes_nothing():
    H, h = code_systems(*[torch.eye(3).expand(2, 3, 3)] * 1, torch.ones(2, 3, 4), torch.randn(5, 3, 4))
    a = nonnegative(H, h, simplex=True)
    assert torch.allclose(softmax_codes(a, 1.0), a, atol=1e-9)
