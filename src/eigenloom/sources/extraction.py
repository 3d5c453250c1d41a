"""Images in, block outputs out: forward hooks on any vision transformer.

The model is an argument. Its blocks are found by search, since their path differs between libraries and moves
between releases; hooks are the only thing asked of it besides taking ``[b, 3, h, w]``.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eigenloom.errors import ConfigError, DataError
from eigenloom.sources.images import ImageSet
from eigenloom.sources.preprocess import Preprocess

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLS_NAMES = ("cls_token", "class_embedding")
PREFIX_NAMES = (*CLS_NAMES, "register_tokens", "distillation_token")


@dataclass(frozen=True)
class VisionModel:
    """A network with what is needed to feed it and to tell it from others.

    Fields: ``module`` takes images ``[b, 3, h, w]``; ``preprocess`` makes them; ``architecture`` and
    ``weights_sha256`` go into the signature; ``blocks`` is the dotted path of the blocks where a search finds none or
    several; ``cls`` says whether token 0 is a CLS token where parameter names do not.
    """

    module: nn.Module
    preprocess: Preprocess
    architecture: str
    weights_sha256: str
    blocks: str | None = None
    cls: bool | None = None

    def signature(self, forward_dtype: str = "float32") -> dict[str, Any]:
        """Return what must agree between two recordings for a basis to move from one to the other."""
        return {
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "tokens": "patch",
            "forward_dtype": forward_dtype,
            "preprocess": self.preprocess.parameters(),
        }


def find_blocks(module: nn.Module, path: str | None = None) -> Sequence[nn.Module]:
    """Find the transformer's blocks: the one ``ModuleList`` of ``config.num_hidden_layers`` children of one class.

    Args:
        module: the network.
        path: dotted path of the container of the blocks, which then need not be a ``ModuleList``.

    Raises:
        ConfigError: no such path; without one, no or several candidates, which are named.
    """
    lists = {name: m for name, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    shown = ", ".join(f"{name} ({len(m)} x {type(m[0]).__name__})" for name, m in lists.items()) or "none"
    if path is not None:
        try:
            return list(module.get_submodule(path).children())
        except AttributeError:
            raise ConfigError(f"model.blocks: there is no {path!r}; lists of modules: {shown}") from None
    depth = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    found = [m for m in lists.values() if len(m) == depth and len({type(child) for child in m}) == 1]
    if len(found) != 1:
        raise ConfigError(
            f"model: {len(found) or 'no'} lists of {depth} equal blocks were found in {type(module).__name__}, where"
            f" one is needed; set model.blocks to the path of the right one; lists of modules: {shown}"
        )
    return list(found[0])


def count_prefix(module: nn.Module, cls: bool | None = None) -> tuple[int, bool]:
    """Return how many tokens stand before the patches, and whether the first of them is a CLS token.

    Both follow from the names and shapes of the parameters that hold such tokens; ``cls`` overrides the second.
    """
    tokens = {}
    for path, parameter in module.named_parameters():
        name = path.rpartition(".")[2]
        if name in PREFIX_NAMES:
            tokens[name] = parameter.shape[-2] if parameter.ndim > 1 else 1
    has_cls = any(name in tokens for name in CLS_NAMES) if cls is None else cls
    return max(sum(tokens.values()), int(has_cls)), has_cls


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuse layers the model does not have.

    Raises:
        ConfigError: says which, and how layers are counted.
    """
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(
            f"layers: {', '.join(map(str, wrong))} not in the model, which has {depth} blocks"
            f" (0-based: the last of {depth} is {depth - 1})"
        )


class HookedBlocks:
    """A network on a device, some of whose blocks' outputs are kept while it runs."""

    def __init__(
        self, module: nn.Module, blocks: str | None, layers: Sequence[int], device: torch.device, forward_dtype: str
    ):
        """Move the network to the device and the dtype, and find its blocks.

        Raises:
            ConfigError: a layer or dtype that does not exist, or blocks that cannot be found.
        """
        if forward_dtype not in DTYPES:
            raise ConfigError(f"record.forward_dtype: {forward_dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        self._blocks = find_blocks(module, blocks)
        check_layers(layers, len(self._blocks))
        self._module = module.eval().to(device, DTYPES[forward_dtype])
        self._layers = list(layers)
        self._device, self._dtype = device, DTYPES[forward_dtype]

    def run(self, inputs: Tensor, n_prefix: int, n_content: int, has_cls: bool, advice: str) -> Tensor:
        """Return the block outputs ``[b, L, T, D]``, float32, on the device, of inputs that are on it.

        Args:
            inputs: the network's only argument.
            n_prefix: tokens before the content.
            n_content: tokens of content.
            has_cls: whether the first of the tokens before is kept; the others are not.
            advice: what to check where a block has another number of tokens.

        Raises:
            ConfigError: it has.
        """
        outputs: list[Tensor] = []

        def keeper(position: int) -> Callable[[nn.Module, Any, Any], None]:
            def keep(module: nn.Module, arguments: Any, output: Any) -> None:
                hidden = _first_tensor(output)
                if hidden.ndim != 3 or hidden.shape[1] != n_prefix + n_content:
                    raise ConfigError(
                        f"block {self._layers[position]} puts out {list(hidden.shape)}, where {n_prefix} prefix tokens"
                        f" and {advice}"
                    )
                if not outputs:
                    shape = (hidden.shape[0], len(self._layers), n_content + has_cls, hidden.shape[2])
                    outputs.append(torch.empty(shape, dtype=torch.float32, device=hidden.device))
                kept = outputs[0][:, position]  # copied now: a network may go on to change it in place
                kept[:, has_cls:] = hidden[:, n_prefix:]
                kept[:, :has_cls] = hidden[:, :has_cls]

            return keep

        with ExitStack() as stack:
            stack.enter_context(full_precision())
            for position, layer in enumerate(self._layers):
                stack.callback(self._blocks[layer].register_forward_hook(keeper(position)).remove)
            self._module(inputs)
        return outputs[0]


class BlockRecorder(HookedBlocks):
    """Runs a network and keeps the outputs of some of its blocks, patch tokens and CLS only.

    ``has_cls`` says whether token 0 is a CLS token; ``grids`` collects the (rows, columns) of the images seen.
    """

    def __init__(self, model: VisionModel, layers: Sequence[int], device: torch.device, forward_dtype: str = "float32"):
        """Move the network to the device and the dtype, and find its blocks.

        Raises:
            ConfigError: a layer or dtype that does not exist, or blocks that cannot be found.
        """
        super().__init__(model.module, model.blocks, layers, device, forward_dtype)
        self.preprocess = model.preprocess
        self.grids: set[tuple[int, int]] = set()
        self._n_prefix, self.has_cls = count_prefix(self._module, model.cls)

    @torch.inference_mode()
    def record(self, images: Tensor) -> Tensor:
        """Return the block outputs ``[b, L, T, D]`` for images ``[b, 3, h, w]``, float32, on the device.

        Layers are in the order asked for; of each, CLS first if there is one, then the patches, row-major.

        Raises:
            ConfigError: the network's tokens are not a prefix and one per patch.
        """
        grid = grid_of(images, self.preprocess.patch)
        n_patches = grid[0] * grid[1]
        self.grids.add(grid)
        advice = f"{n_patches} patches are due; check preprocess.patch and the model's patch size"
        return self.run(images.to(self._device, self._dtype), self._n_prefix, n_patches, self.has_cls, advice)


def extract(
    recorder: BlockRecorder, images: ImageSet, examples: range, batch_size: int, n_workers: int = 1
) -> Iterator[np.ndarray]:
    """Yield the block outputs of a slice of examples, float32 ``[b, L, T, D]``, ``batch_size`` examples at a time.

    While one batch is in the network, ``n_workers`` threads decode and resize the next. Examples of a batch whose
    grids differ are run apart and put together again in order.

    Raises:
        DataError: an image cannot be read, or examples differ in their number of patches.
    """

    def load(index: int) -> Tensor:
        return recorder.preprocess.image(images.image(index))

    chunks = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    with ThreadPoolExecutor(n_workers) as pool:
        ahead = [pool.submit(load, index) for index in chunks[0]] if chunks else []
        for number in range(len(chunks)):
            loaded = [future.result() for future in ahead]
            ahead = [pool.submit(load, index) for chunk in chunks[number + 1 : number + 2] for index in chunk]
            yield _record_mixed(recorder, loaded)


def _record_mixed(recorder: BlockRecorder, loaded: Sequence[Tensor]) -> np.ndarray:
    """Record images that may differ in shape, as one array in their order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(loaded):
        groups.setdefault(grid_of(image, recorder.preprocess.patch), []).append(position)
    if len(counts := {rows * columns for rows, columns in groups}) > 1:
        raise DataError(
            f"images differ in their number of patches ({', '.join(map(str, sorted(counts)))}), but a recording holds"
            " equally many per example; set preprocess.resize to square or grid"
        )
    parts = [recorder.record(torch.stack([loaded[p] for p in group])).cpu().numpy() for group in groups.values()]
    order = np.argsort([position for group in groups.values() for position in group])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)[order]


def grid_of(images: Tensor, patch: int) -> tuple[int, int]:
    """Return rows and columns of patches of images ``[..., h, w]``."""
    return images.shape[-2] // patch, images.shape[-1] // patch


def _first_tensor(output: Any) -> Tensor:
    """Return a block's output, which libraries wrap in a tuple with attention weights or caches."""
    return output if isinstance(output, Tensor) else next(item for item in output if isinstance(item, Tensor))


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 and varying algorithms out of matrix products and convolutions; settings are put back."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
