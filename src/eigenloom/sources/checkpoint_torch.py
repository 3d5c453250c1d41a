"""Checkpoints saved by torch: state dicts alone, memory-mapped, never more of the pickle than plain tensors."""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.sources.checkpoint_file import PIECE_BYTES, Checkpoint, Range, TensorFacts
from eigenloom.store.artifact import DTYPES
from eigenloom.store.atomic import explained
from eigenloom.store.plain_tensors import refused


@dataclass(frozen=True)
class TorchCheckpoint(Checkpoint):
    """A mapping from names to tensors whose storages are memory-mapped: pages count as resident, but can be dropped."""

    label: str
    n_bytes: int
    tensors: Mapping[str, TensorFacts]
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]
    state: Mapping[str, Tensor]

    def fill(self, ranges: Sequence[Range], out: Tensor) -> None:
        """Copy from the mapping."""
        done = 0
        for name, start, stop in ranges:
            out[done : done + stop - start].copy_(self.state[name].reshape(-1)[start:stop])
            done += stop - start

    def raw(self, name: str) -> Iterable[bytes | memoryview]:
        """Yield pieces of about one MiB."""
        flat = self.state[name].detach().reshape(-1)
        for piece in flat.split(PIECE_BYTES // max(1, flat.element_size())):
            yield piece.contiguous().view(torch.uint8).numpy().tobytes()


def open_torch(path: Path) -> TorchCheckpoint:
    """Describe a state dict saved by ``torch.save``.

    Tensors with the same storage, offset, shape and strides are tied; the first name in byte order keeps it.

    Raises:
        StoreError: anything but a mapping from names to dense tensors, in torch's zip format.
    """
    with explained(path):
        n_bytes = path.stat().st_size
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path}: is refused, for it pickles more than plain tensors ({refused(error)}); save its state_dict()"
            " alone, or convert it to safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise StoreError(
            f"{path}: is not a file of torch.save's zip format, or is truncated ({_first_line(error)}); load it where"
            " it came from and save it again"
        ) from None
    if not isinstance(state, Mapping) or not state:
        raise StoreError(
            f"{path}: holds a {type(state).__name__}, where a state dict is needed; save state_dict() alone"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            kind = type(value).__name__ if not isinstance(value, Tensor) else f"{value.layout} tensor"
            raise StoreError(
                f"{path}: entry {name!r} is a {kind}, where a state dict has dense tensors; save state_dict() alone"
            )
    tensors = {name: TensorFacts(tuple(t.shape), _kind(t)) for name, t in state.items()}
    return TorchCheckpoint(str(path), n_bytes, tensors, _tied(state), {}, state)


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Find names that share all of a storage's view with an earlier name."""
    kept: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name in sorted(state, key=str.encode):
        tensor = state[name]
        view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and kept.setdefault((*view, tensor.dtype), name) != name:
            aliases[name] = kept[*view, tensor.dtype]
    return aliases


def _kind(tensor: Tensor) -> str:
    """Name a tensor's number format."""
    return "quantised" if tensor.is_quantized else DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _first_line(error: BaseException) -> str:
    """Cut a long message to what fits a sentence."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
