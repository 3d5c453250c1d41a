"""Entries of the race: every rule takes the same tasks, and torch's Muon gets the same division of parameters."""

import pytest
import torch

from eigenloom import orthogonalize
from eigenloom.nn.char_gpt import CharGPT
from eigenloom.optim.contestants import contestant
from eigenloom.optim.router import param_groups


def model():
    return CharGPT(9, 16, 2, 2, 8)


def gradients(net, step):
    draw = torch.Generator().manual_seed(step)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


@pytest.mark.parametrize("algorithm", ["spectra_teon", "spectra", "teon", "muon", "adamw", "torch-muon"])
def test_every_entry_moves_every_parameter_at_its_rate(algorithm):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = contestant({"algorithm": algorithm}, 0.5, 0.25, 0.0)(net)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == ({0.25} if algorithm == "adamw" else {0.25, 0.5})
    gradients(net, 0)
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_keys_of_the_entry_reach_the_optimizer():
    optimizer = contestant(
        {"algorithm": "spectra_teon", "literal": True, "rank_ratio": 0.2, "stack": 1}, 0.1, 0.1, 0.3
    )(model())
    group = optimizer.param_groups[0]
    assert (group["joint_rms"], group["rank_ratio"], group["weight_decay"]) == (True, 0.2, 0.3)
    assert {len(stack) for stack in group["stacks"]} == {1}


def test_torchs_muon_divides_parameters_like_ours_and_schedules_move_both_parts():
    net = model()
    optimizer = contestant({"algorithm": "torch-muon"}, 0.5, 0.25, 0.1)(net)
    ours = {id(p) for group in param_groups(net) if group["algorithm"] != "adamw" for _, p in group["params"]}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == ours
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    still = [p.detach().clone() for p in net.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients(net, 0)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), still, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_torchs_muon_and_ours_agree_but_for_the_rounding_of_its_newton_schulz():
    """Fused projections are left out: torch's Muon takes one whole, ours its three parts."""
    nets = [model(), model()]
    optimizers = [
        contestant({"algorithm": name}, 0.01, 0.01, 0.1)(net)
        for name, net in zip(("muon", "torch-muon"), nets, strict=True)
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        gradients(net, 1)
        optimizer.step()
    compared = 0
    for (name, p), (_, q) in zip(nets[0].named_parameters(), nets[1].named_parameters(), strict=True):
        if "blocks" not in name or p.ndim < 2:
            assert torch.allclose(p, q, rtol=0, atol=1e-7)
        elif "qkv" not in name:
            ahead = p.grad * (0.95 * 0.05 + 0.05)  # the first step of Nesterov's momentum
            rounding = (orthogonalize(ahead.bfloat16()).float() - orthogonalize(ahead)).norm()
            assert 0 < (p - q).norm() < 2 * 0.01 * 0.2 * max(p.shape) ** 0.5 * rounding
            compared += 1
    assert compared == 6
