"""Queries and keys that are held: really frozen, really moving afterwards, and under two processes."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.errors import ConfigError
from eigenloom.nn.freezing import FreezeSchedule
from eigenloom.nn.warm_attention import KPCAWarmSelfAttention
from eigenloom.sources.arrays import ArrayRows

WIDTH = 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(learned=False):
    state = KernelPCA.fit(ArrayRows(draw(100, WIDTH)), seed=0, n_components=6, n_landmarks=40)
    torch.manual_seed(0)
    return nn.Sequential(KPCAWarmSelfAttention(WIDTH, 2, state, learn_temperature=learned), nn.Linear(WIDTH, 1))


def step(network, optimizer, seed):
    x = draw(6, 5, WIDTH, seed=seed)
    loss = (network(x).squeeze(-1) - x[..., 0]).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("learned", [False, True])
def test_frozen_is_bitwise_frozen_and_thawed_moves(learned):
    network = model(learned)
    attention = network[0]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.5)
    schedule = FreezeSchedule(2)
    step(network, optimizer, 99)  # leaves momentum behind, and a stale gradient
    switches, before = [], [parameter.detach().clone() for parameter in attention.qk_parameters()]
    others = attention.v.weight.detach().clone()
    assert len(before) == 2 + learned
    for epoch in range(3):
        switches.append(schedule.start_epoch(network, epoch))
        if epoch < 2:
            assert all(parameter.grad is None for parameter in attention.qk_parameters())
        step(network, optimizer, epoch)
        same = [torch.equal(a, b) for a, b in zip(before, attention.qk_parameters(), strict=True)]
        assert same == [epoch < 2] * len(same)
    assert switches == [True, False, True]
    assert not torch.equal(others, attention.v.weight)


def test_no_epochs_freeze_nothing():
    network = model()
    assert not FreezeSchedule(0).start_epoch(network, 0)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_cannot_be_frozen():
    with pytest.raises(ConfigError, match="below 0"):
        FreezeSchedule(-1)
    with pytest.raises(ConfigError, match="no WarmSelfAttention"):
        FreezeSchedule(1).start_epoch(nn.Linear(2, 2), 0)


PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.errors import ConfigError
from eigenloom.nn.freezing import FreezeSchedule
from eigenloom.nn.warm_attention import KPCAWarmSelfAttention
from eigenloom.sources.arrays import ArrayRows

rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
draw = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
state = KernelPCA.fit(ArrayRows(draw(100, 8)), seed=0, n_components=6, n_landmarks=40)
torch.manual_seed(rank)  # the wrapper makes the processes alike, not the seed
module = nn.Sequential(KPCAWarmSelfAttention(8, 2, state), nn.Linear(8, 1))
if world == 1:
    torch.manual_seed(0)
    module = nn.Sequential(KPCAWarmSelfAttention(8, 2, state), nn.Linear(8, 1))
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)
wrap = (lambda: nn.parallel.DistributedDataParallel(module)) if world > 1 else (lambda: module)
network = wrap()
optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
schedule, history = FreezeSchedule(1), []
if world > 1:
    try:
        schedule.start_epoch(network, 0)
        raise SystemExit("a wrapper was accepted")
    except ConfigError:
        pass
for epoch in range(3):
    if schedule.start_epoch(module, epoch):
        network = wrap()
    for number in range(3):
        x = draw(8, 5, 8, seed=10 * epoch + number)
        part = x[rank * 8 // world : (rank + 1) * 8 // world]
        loss = (network(part).squeeze(-1) - part[..., 0]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    history.append(module[0].q_adapter.weight.detach().clone())
torch.save({"weights": dict(module.state_dict()), "history": history}, f"{place}/{world}-{rank}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_train_as_one_does(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(rank), str(world), str(tmp_path)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for world, ranks in ((1, 1), (2, 2))
        for rank in range(ranks)
    ]  # fmt: skip
    for job in jobs:
        _, complaint = job.communicate(timeout=120)
        assert job.returncode == 0, complaint
    one, left, right = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name, tensor in left["weights"].items():
        assert torch.equal(tensor, right["weights"][name]), name
        torch.testing.assert_close(tensor, one["weights"][name], atol=1e-5, rtol=1e-4)
    frozen, moving, last = left["history"]
    assert torch.equal(frozen, one["history"][0])
    assert not torch.equal(frozen, moving)
    assert not torch.equal(moving, last)
