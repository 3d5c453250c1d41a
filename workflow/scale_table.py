"""What an experiment would cost, as a table in Markdown."""

from pathlib import Path
from typing import Any

from plan import Plan
from scale import Cost, Machine, costs


def markdown(found: dict[str, Cost]) -> str:
    """Render costs as a table with a line of totals."""
    lines = ["| rule | jobs | cores only: h | with GPUs: GPU h | core h | longest, h | GB written |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for rule, cost in found.items():
        hours = (cost.core_hours, cost.gpu_hours, cost.rest_core_hours, cost.longest)
        lines.append(f"| {rule} | {cost.jobs} | {' | '.join(map(_short, hours))} | {_short(cost.written / 1e9)} |")
    sums = [sum(getattr(c, name) for c in found.values()) for name in ("core_hours", "gpu_hours", "rest_core_hours")]
    longest, written = max(c.longest for c in found.values()), sum(c.written for c in found.values())
    jobs = sum(c.jobs for c in found.values())
    cells = " | ".join(f"**{_short(x)}**" for x in (*sums, longest, written / 1e9))
    return "\n".join([*lines, f"| **all** | **{jobs}** | {cells} |"])


def _short(value: float) -> str:
    """Write a figure with two digits that matter."""
    return "0" if value == 0 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def described(path: Path, config: dict[str, Any], machine: Machine | None = None) -> str:
    """Render the cost of a valid configuration, headed by what it is of."""
    machine = machine or Machine()
    assumed = (
        f"{machine.core_flops / 1e9:.0f} GFLOP/s and {machine.core_steps / 1e6:.0f} M steps/s per core, "
        f"{machine.gpu_flops / 1e12:.0f} TFLOP/s and {machine.gpu_steps / 1e9:.1f} G steps/s per GPU, "
        f"{machine.disk / 1e9:.0f} GB/s of disk per job, {machine.start:.0f} s to start a job"
    )
    return f"`{path}`, assuming {assumed}:\n\n{markdown(costs(Plan(config), machine))}"
