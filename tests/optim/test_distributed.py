"""Two processes under ``DistributedDataParallel`` hold equal bytes."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import hashlib, os, sys
import torch
import torch.distributed as dist
from torch import nn
from eigenloom import SpectraTEON
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(rank)  # DDP broadcasts the weights of rank 0; nothing else may depend on the seed
net = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
parallel = nn.parallel.DistributedDataParallel(net)
optimizer = SpectraTEON.from_model(net, lr=0.01)
for step in range(20):
    draw = torch.Generator().manual_seed(2 * step + rank)
    x = torch.randn(8, 10, generator=draw)
    optimizer.zero_grad()
    parallel(x).square().mean().backward()
    optimizer.step()
hasher = hashlib.sha256()
for tensor in net.state_dict().values():
    hasher.update(tensor.numpy().tobytes())
for state in optimizer.state.values():
    for name in sorted(state):
        hasher.update(state[name].numpy().tobytes())
print(hasher.hexdigest())
dist.destroy_process_group()
"""


def test_two_gloo_processes_hold_equal_bytes(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "meeting")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (out.split()[-1] for out, _ in outputs)
    assert first == second
    assert len(first) == 64
