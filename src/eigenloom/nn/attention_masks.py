"""Masks of attention brought into one, and the queries that may look nowhere."""

import torch
from torch import Tensor

from eigenloom.errors import DataError


def merged_mask(
    x: Tensor, num_heads: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Merge both kinds of masks for tokens ``x [B, L, d]``.

    Returns:
        The mask, broadcastable to ``[B, H, L, L]``: boolean (true: may look) or added to the logits; None without
        any. And ``alive [.., L, 1]``, 0 for a query that may look nowhere, whose row of the mask is opened so that its
        softmax is finite; None without a mask.

    Raises:
        DataError: a shape or type that means nothing.
    """
    b, length, _ = x.shape
    if attn_mask is None and key_padding_mask is None:
        return None, None
    mask: Tensor | None = None
    if attn_mask is not None:
        shapes = ((length, length), (b, length, length), (b, num_heads, length, length))
        if tuple(attn_mask.shape) not in shapes:
            raise DataError(f"attn_mask has the shape {tuple(attn_mask.shape)}; one of {shapes} is needed")
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise DataError(f"attn_mask holds {attn_mask.dtype}; bool or floating-point numbers are needed")
        mask = attn_mask if attn_mask.ndim != 3 else attn_mask[:, None]
        mask = mask if mask.ndim == 4 else mask[None, None]
    if key_padding_mask is not None:
        if tuple(key_padding_mask.shape) != (b, length) or key_padding_mask.dtype != torch.bool:
            found = f"{tuple(key_padding_mask.shape)} {key_padding_mask.dtype}"
            raise DataError(f"key_padding_mask is {found}; bool of the shape {(b, length)} is needed")
        seen = ~key_padding_mask[:, None, None, :].expand(b, 1, length, length)
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    assert mask is not None
    looks = mask if mask.dtype == torch.bool else mask > -torch.inf
    alive = looks.any(-1, keepdim=True)
    opened = mask | ~alive if mask.dtype == torch.bool else torch.where(alive, mask, 0.0)
    return opened, alive.to(x.dtype)
