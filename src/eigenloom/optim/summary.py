"""The table that says what an optimizer does to each parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from eigenloom.optim.matrices import stack_geometry
from eigenloom.optim.stacks import Bucket

Step = list[tuple[Bucket, tuple[Tensor, Tensor]]]
"""The last step of a group: its batches, the root mean square of each layer's update ``[n K]`` and its factor."""
HEAD = ("name", "shape", "rule", "stack", "side", "k", "q", "why")


def summarize(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Tensor]], steps: Mapping[int, Step] | None
) -> str:
    """Return one row per parameter (per piece, where it is cut), and totals per rule.

    Args:
        groups: of the optimizer.
        state: of the optimizer.
        steps: last steps by group; None leaves the column out.
    """
    rows = [[*HEAD, *(["rms"] if steps is not None else [])]]
    totals: dict[str, tuple[int, int, int]] = {}
    for number, group in enumerate(groups):
        sizes = _sizes(steps.get(number, [])) if steps is not None else None
        for i, p in enumerate(group["params"]):
            rows += _rows(group, i, p, sizes)
            count, elements, size = totals.get(group["algorithm"], (0, 0, 0))
            held = sum(tensor.numel() * tensor.element_size() for tensor in state[p].values())
            totals[group["algorithm"]] = (count + 1, elements + p.numel(), size + held)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for rule, (count, elements, size) in totals.items():
        lines.append(f"{rule}: {count} tensors, {elements} parameters, {size} bytes of state")
    return "\n".join(lines)


def _rows(group: Mapping[str, Any], i: int, p: Tensor, sizes: Mapping[Any, float] | None) -> list[list[str]]:
    """Return the rows of one parameter."""
    names, reasons = group.get("param_names"), group.get("reasons")
    name, why = (listed[i] if listed else fallback for listed, fallback in ((names, str(i)), (reasons, "")))
    shape = "x".join(map(str, p.shape)) or "scalar"
    if group["algorithm"] == "adamw":
        return [[name, shape, "adamw", "", "", "", "", why, *([""] if sizes is not None else [])]]
    rows = []
    for number, stack in enumerate(group["stacks"]):
        laid = stack_geometry(group, number)
        for piece in (piece for piece in stack if piece[0] == i):
            whole = piece[2] == p.shape[i in group["transposed"]]
            label = name if whole else f"{name}[{piece[1]}:{piece[1] + piece[2]}]"
            members = f"{number} (K={len(stack)})"
            row = [label, shape, group["algorithm"], members, laid.side, str(laid.rank), str(laid.tracked), why]
            rows.append([*row, *([f"{sizes[piece]:.3g}" if piece in sizes else "none"] if sizes is not None else [])])
    return rows


def _sizes(step: Step) -> dict[Any, float]:
    """Return the root mean square of the last update by piece."""
    return {
        tuple(piece): size
        for bucket, (sizes, factors) in step
        for piece, size in zip(bucket.pieces, (sizes * factors).tolist(), strict=True)
    }
