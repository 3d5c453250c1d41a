"""Record what blocks of a transformer put into the residual stream, through forward hooks.

The model is an argument: the small vision transformer and a Hugging Face one go the same way. Blocks are searched
for, since their path moves between releases.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eigenloom.errors import ConfigError, DataError

CLS_NAMES = ("cls_token", "class_embedding")


def find_blocks(model: nn.Module, path: str = "") -> nn.ModuleList:
    """Return the list of a model's transformer blocks.

    It is the ``ModuleList`` with ``config.num_hidden_layers`` children, all of one class.

    Args:
        model: with a ``config`` that states its depth.
        path: dotted path to the list, where the search finds none or several.

    Raises:
        ConfigError: no list or several lists fit, or the path leads elsewhere; candidates are named.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if path:
        if path not in lists:
            raise ConfigError(f"blocks: {path!r} is not a ModuleList of this model; there are {sorted(lists)}")
        return lists[path]
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    fits = [name for name, blocks in lists.items() if len(blocks) == depth and len({type(b) for b in blocks}) == 1]
    if len(fits) != 1:
        raise ConfigError(
            f"{type(model).__name__}: {len(fits)} lists of modules could be its {depth} blocks"
            f" ({', '.join(fits or sorted(lists)) or 'there is no ModuleList'}); name one with the key blocks"
        )
    return lists[fits[0]]


def has_cls(model: nn.Module) -> bool:
    """Say whether token 0 is a CLS token: a parameter is named after one."""
    return any(name.rpartition(".")[2] in CLS_NAMES for name, _ in model.named_parameters())


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        ConfigError: a number is outside 0..depth-1.
    """
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"layers: {wrong[0]} does not exist; numbers are 0-based, the last of {depth} is {depth - 1}")


def extract(
    model: nn.Module,
    inputs: Iterable[Tensor],
    layers: Sequence[int],
    *,
    n_patches: int,
    blocks: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[np.ndarray]:
    """Yield activations float32 ``[b, L, T, D]`` for each batch of model inputs ``[b, 3, h, w]``.

    ``T`` is ``n_patches``, plus one in front where the model has a CLS token; other prefix tokens (registers,
    distillation) are dropped. ``L`` follows ``layers``. The output is that of the block, before any final norm.
    Hooks are gone when the iteration ends, however it ends.

    Raises:
        ConfigError: a layer does not exist, or the blocks cannot be found.
        DataError: the number of tokens does not fit the patches.
    """
    modules = find_blocks(model, blocks)
    check_layers(layers, len(modules))
    cls = has_cls(model)
    caught: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def catch(module: nn.Module, arguments: Any, output: Any) -> None:
            caught[layer] = output[0] if isinstance(output, tuple) else output

        return catch

    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in layers]
    model = model.eval().to(device, dtype)
    # TF32 would change the digits that are stored.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for batch in inputs:
            with torch.inference_mode():
                model(batch.to(device, dtype))
                stacked = torch.stack([_content(caught[layer], n_patches, cls) for layer in layers], dim=1)
                array = stacked.to("cpu", torch.float32).numpy()
            caught.clear()
            yield array
    finally:
        torch.set_float32_matmul_precision(precision)
        for handle in handles:
            handle.remove()


def _content(tokens: Tensor, n_patches: int, cls: bool) -> Tensor:
    """Keep the CLS token, if there is one, and the patches ``[b, T, D]`` of a block's output."""
    n_prefix = tokens.shape[1] - n_patches
    if n_prefix < int(cls):
        raise DataError(
            f"the model gives {tokens.shape[1]} tokens for {n_patches} patches{' and a CLS token' if cls else ''};"
            " the patch size or the resize of preprocess is not the model's"
        )
    return torch.cat([tokens[:, : int(cls)], tokens[:, n_prefix:]], dim=1)
