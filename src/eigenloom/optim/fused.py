"""Weights that hold query, key and value one after the other, and where to cut them."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from eigenloom.errors import ConfigError
from eigenloom.optim.names import FUSED, INTERLEAVED

Sizes = Sequence[int]


def fused_weight(name: str) -> bool:
    """Say whether a name is that of a fused projection, cut or not."""
    return name in FUSED or name in INTERLEAVED


def is_column_layout(module: nn.Module) -> bool:
    """Say whether a linear layer stores its weight as ``[in, out]``, as ``Conv1D`` of transformers does."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def fused_sizes(
    full: str, rows: int, parent: nn.Module, called: str, given: Sizes | None
) -> tuple[list[tuple[str, int]], str]:
    """Return role and number of rows of each part of a fused weight, and the reason; no part where it stays whole.

    Args:
        full: name of the parameter.
        rows: outputs of the projection.
        parent: the attention module, asked for its numbers of heads.
        called: last component of the name.
        given: sizes that the user gave.

    Raises:
        ConfigError: given sizes do not add up.
    """
    if given is not None:
        if len(given) != 3 or min(given) < 1 or sum(given) != rows:
            raise ConfigError(
                f"param_groups: fused sizes {tuple(given)} of {full} are not three that add up to {rows} rows"
            )
        return list(zip("qkv", given, strict=True)), "fused q, k, v of given sizes"
    if called in INTERLEAVED:
        return [], "fused, perhaps interleaved by head: kept whole; fused={...} gives sizes"
    heads, kv_heads, size = (_asked(parent, names) for names in (HEADS, KV_HEADS, HEAD_SIZE))
    width = _asked(parent, WIDTH)
    if heads and size is None and width and width % heads == 0:
        size = width // heads
    if heads and kv_heads and size and (heads + 2 * kv_heads) * size == rows:
        return [("q", heads * size), ("k", kv_heads * size), ("v", kv_heads * size)], "fused q, k, v"
    if heads and size and 2 * heads * size == rows:
        return [("k", rows // 2), ("v", rows // 2)], "fused k, v"
    if rows % 3 == 0 and not (heads and size and 3 * heads * size != rows):
        return [(role, rows // 3) for role in "qkv"], "fused q, k, v"
    return [], f"fused, {rows} rows of unknown sizes: kept whole; fused={{...}} gives sizes"


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_SIZE = ("head_dim", "attention_head_size", "head_size")
WIDTH = ("embed_dim", "hidden_size", "d_model", "n_embd")


def _asked(module: nn.Module, names: Sequence[str]) -> int | None:
    """Return the first of some attributes that a module, or its configuration, has as a positive number."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value: Any = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None
