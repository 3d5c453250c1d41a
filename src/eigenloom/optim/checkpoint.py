"""Optimizer checkpoints: what must agree before one is loaded, and state in the dtypes it was saved in."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from eigenloom.errors import MismatchError

FIXED = ("algorithm", "stacks", "transposed", "stack_dim", "ritz")
"""Keys of a group that decide what its state means."""


def check_checkpoint(groups: list[dict[str, Any]], state: Mapping[Tensor, Any], saved: Mapping[str, Any]) -> None:
    """Compare a ``state_dict`` with a live optimizer.

    Raises:
        MismatchError: names the first difference.
    """
    if difference := next(_differences(groups, state, saved), None):
        raise MismatchError(
            f"SpectraTEON: the checkpoint does not fit this optimizer: {difference}; rebuild the optimizer as it was"
            " saved (same model, stack, rank_ratio, oversample), or start fresh"
        )


def _differences(groups: list[dict[str, Any]], state: Mapping[Tensor, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs, in the order of groups."""
    found = saved["param_groups"]
    if len(found) != len(groups):
        yield f"it has {len(found)} parameter groups, here are {len(groups)}"
        return
    for number, (ours, theirs) in enumerate(zip(groups, found, strict=True)):
        at = f"group {number} ({ours['algorithm']})"
        if len(theirs["params"]) != len(ours["params"]):
            yield f"{at} has {len(theirs['params'])} parameters there, {len(ours['params'])} here"
            return
        for key in FIXED:
            if key == "stacks" and _plain(ours.get(key)) != _plain(theirs.get(key)):
                yield f"stacks of {at} differ, {_first(ours.get(key) or [], theirs.get(key) or [])}"
            elif _plain(ours.get(key)) != _plain(theirs.get(key)):
                yield f"{key} of {at} is {theirs.get(key)!r} there, {ours.get(key)!r} here"
        for p, saved_number in zip(ours["params"], theirs["params"], strict=True):
            here = {name: tuple(tensor.shape) for name, tensor in state[p].items()}
            there = {name: tuple(tensor.shape) for name, tensor in saved["state"].get(saved_number, {}).items()}
            for name in sorted(here.keys() | there.keys()):
                if here.get(name) != there.get(name):
                    shapes = f"{there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
                    yield f"{name} of parameter {saved_number} in {at} is {shapes}"


def _plain(value: Any) -> Any:
    """Make lists and tuples equal, however a file format returned them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _first(ours: list[Any], theirs: list[Any]) -> str:
    """Describe the first stack that differs."""
    for number in range(max(len(ours), len(theirs))):
        here, there = (_plain(side[number]) if number < len(side) else "absent" for side in (ours, theirs))
        if here != there:
            return f"stack {number} is {there} there, {here} here"
    raise AssertionError("equal stacks have no difference")


def exact_state(groups: list[dict[str, Any]], saved: Mapping[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
    """Return copies of all saved tensors in their own dtypes, on the parameters' devices; steps stay on the CPU."""
    params = chain.from_iterable(group["params"] for group in groups)
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    return {
        p: {
            name: tensor.detach().to(device="cpu" if name == "step" else p.device, copy=True)
            for name, tensor in saved["state"][number].items()
        }
        for p, number in zip(params, numbers, strict=True)
    }
