"""Optimizer steps beside torch's: two stacked 768 x 768 matrices, the shaping alone, a model of 0.2 M parameters."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import compare, machine_facts
from torch import Tensor, nn

from eigenloom.linalg.orthogonalize import orthogonalize
from eigenloom.nn.char_gpt import CharGPT
from eigenloom.optim.router import param_groups
from eigenloom.optim.shape import spectra_shape, spectra_shape_reference
from eigenloom.optim.spectra_teon import SpectraTEON

RANK, OVERSAMPLE = 12, 8


def run(full: bool) -> list[dict[str, Any]]:
    """Compare a step on one stack, its shaping alone, and a step on a small model."""
    width, repeats = (768, 4) if full else (256, 20)
    shapes = ((768, 1536), (768, 3072)) if full else ((width, 2 * width),)
    records = [compare_stack_steps(width, repeats), *(compare_shaping(*shape) for shape in shapes)]
    return [*records, compare_model_steps(20), compare_in_training(width, 9 if full else 3)]


def matrices(width: int, count: int) -> list[nn.Parameter]:
    """Return parameters ``[width, width]`` with momentum-like gradients: a decaying spectrum plus noise."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.arange(1, width + 1) ** -0.5
    params = []
    for _ in range(count):
        parameter = nn.Parameter(torch.randn(width, width, generator=draw) / width**0.5)
        parameter.grad = 1e-4 * torch.randn(width, width, generator=draw) * scales
        params.append(parameter)
    return params


def state_bytes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the size of an optimizer's state."""
    return {"state_bytes": sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())}


def steps(optimizer: torch.optim.Optimizer, repeats: int) -> Callable[[], torch.optim.Optimizer]:
    """Return work: some steps with the gradients as they are, after some to warm up."""
    for _ in range(3):
        optimizer.step()

    def work() -> torch.optim.Optimizer:
        for _ in range(repeats):
            optimizer.step()
        return optimizer

    return work


def compare_stack_steps(width: int, repeats: int) -> dict[str, Any]:
    """Whole steps on two matrices that form one stack."""
    stack = [[(0, 0, width), (1, 0, width)]]

    def stacked(algorithm: str, **keys: Any) -> torch.optim.Optimizer:
        return SpectraTEON([{"params": matrices(width, 2), "algorithm": algorithm, "stacks": stack}], **keys)

    buffers, grads = ([p.detach() for p in matrices(width, 2)] for _ in range(2))
    peers = {
        "eigenloom": stacked("spectra_teon"),
        "torch AdamW": torch.optim.AdamW(matrices(width, 2)),
        "torch AdamW(fused=True)": torch.optim.AdamW(matrices(width, 2), fused=True),
        "torch Muon": torch.optim.Muon(matrices(width, 2), adjust_lr_fn="match_rms_adamw"),
        "eigenloom, algorithm=teon": stacked("teon", orthogonalization="newton_schulz"),
        "eigenloom, literal=True": stacked("spectra_teon", literal=True),
    }
    return compare(
        f"optimizer step, 2 x {width} x {width}, one stack",
        {name: steps(optimizer, repeats) for name, optimizer in peers.items()},
        settings={"width": width, "stack": 2, "rank": "defaults", "dtype": "float32", "steps": repeats},
        quality=state_bytes,
        limits={"momentum alone": lambda: [torch._foreach_lerp_(buffers, grads, 0.05) for _ in range(repeats)]},
        target="<= 1.0 AdamW, state <= 0.55 AdamW",
    )


def compare_shaping(a: int, b: int) -> dict[str, Any]:
    """Shaping of a drifting matrix from the last step's basis, beside orthogonalization."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.arange(1, b + 1) ** -0.5
    momentum, basis = torch.zeros(a, b), None
    for _ in range(40):
        before, momentum = momentum, momentum.lerp(torch.randn(a, b, generator=draw) * scales, 0.05)
        basis = spectra_shape(before, rank=RANK, basis=basis, oversample=OVERSAMPLE).basis
    exact = spectra_shape_reference(momentum, RANK).matrix
    quick = {}
    if any(flag.startswith(("amx", "avx512_bf16")) for flag in machine_facts()["instruction_sets"]):
        half = momentum.bfloat16()  # emulated elsewhere: a minute each
        quick = {"Newton-Schulz x5 bfloat16": lambda: orthogonalize(half)}

    def quality(found: Tensor) -> dict[str, Any]:
        """Relative Frobenius error against exact shaping; that of orthogonal factors is no error."""
        return {"error": float(f"{(found.double() - exact).norm() / exact.norm():.2g}")}

    return compare(
        f"shaping, {a} x {b}",
        {
            "eigenloom": lambda: spectra_shape(momentum, rank=RANK, basis=basis).matrix,
            "Newton-Schulz x5 float32": lambda: orthogonalize(momentum),
            **quick,
        },
        settings={"a": a, "b": b, "rank": RANK, "oversample": OVERSAMPLE},
        quality=quality,
        limits={
            "two products": lambda: momentum @ (momentum.T @ basis),
            "one copy": momentum.clone,
        },
        target=">= 9x bfloat16, >= 36x float32, never below 8x",
    )


def compare_model_steps(repeats: int) -> dict[str, Any]:
    """Whole steps on a character model of about 0.2 M parameters, where calls cost more than numbers."""

    def model() -> CharGPT:
        net = CharGPT(96, seed=0)
        draw = torch.Generator().manual_seed(0)
        for p in net.parameters():
            p.grad = 1e-3 * torch.randn(p.shape, generator=draw)
        return net

    def muon_pair() -> Callable[[], torch.optim.Optimizer]:
        groups = {
            group["algorithm"]: [p for _, p in group["params"]] for group in param_groups(model(), algorithm="muon")
        }
        muon, adamw = torch.optim.Muon(groups["muon"]), torch.optim.AdamW(groups["adamw"])
        first, second = steps(muon, repeats), steps(adamw, repeats)
        return lambda: (first(), second())[0]

    peers = {
        "eigenloom": steps(SpectraTEON.from_model(model()), repeats),
        "torch AdamW": steps(torch.optim.AdamW(model().parameters()), repeats),
        "torch Muon + AdamW": muon_pair(),
        "eigenloom, algorithm=teon": steps(SpectraTEON.from_model(model(), algorithm="teon"), repeats),
        "eigenloom, algorithm=adamw": steps(SpectraTEON.from_model(model(), algorithm="adamw"), repeats),
    }
    return compare(
        "optimizer step, character model",
        peers,
        settings={
            "parameters": sum(p.numel() for p in model().parameters()),
            "blocks": 4,
            "width": 64,
            "steps": repeats,
        },
        target="<= 1.5 AdamW",
    )


def compare_in_training(width: int, rounds: int) -> dict[str, Any]:
    """Steps on two transformer blocks between forward and backward passes, whose memory the allocator then juggles."""

    def blocks() -> nn.Sequential:
        torch.manual_seed(0)
        keys = {"nhead": width // 64, "dim_feedforward": 4 * width, "dropout": 0.0, "batch_first": True}
        return nn.Sequential(*(nn.TransformerEncoderLayer(width, **keys) for _ in range(2)))

    makers = {
        "eigenloom": SpectraTEON.from_model,
        "torch AdamW": lambda net: torch.optim.AdamW(net.parameters()),
        "torch AdamW(fused=True)": lambda net: torch.optim.AdamW(net.parameters(), fused=True),
    }
    nets = {name: blocks() for name in makers}
    optimizers = {name: make(nets[name]) for name, make in makers.items()}
    draw = torch.Generator().manual_seed(0)
    cpu: dict[str, list[float]] = {name: [] for name in makers}
    wall: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds + 2):
        x, y = torch.randn(2, 8, 64, width, generator=draw)
        for name, net in nets.items():
            (net(x) * y).mean().backward()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            optimizers[name].step()
            if turn > 1:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - wall_start)
            optimizers[name].zero_grad()
    base = statistics.median(cpu["eigenloom"])
    rows = [
        {
            "name": name,
            "role": "ours" if name == "eigenloom" else "peer",
            "cpu_s": cpu[name],
            "wall_s": wall[name],
            "ratio": statistics.median(cpu[name]) / base,
            "quality": state_bytes(optimizer),
        }
        for name, optimizer in optimizers.items()
    ]
    return {
        "job": f"optimizer step in training, two transformer blocks of width {width}",
        "target": "<= 1.0 AdamW",
        "settings": {"parameters": sum(p.numel() for p in nets["eigenloom"].parameters()), "batch": [8, 64, width]},
        "rows": rows,
        "facts": machine_facts() | {"load_after": os.getloadavg()},
    }
