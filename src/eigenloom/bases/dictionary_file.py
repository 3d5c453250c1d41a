"""Read encoder, decoder, biases and thresholds from a safetensors file of any common naming; nothing is unpickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.atomic import explained

NAMES = {
    "encoder": ("W_enc", "encoder.weight", "encoder"),
    "encoder_bias": ("b_enc", "encoder.bias", "latent_bias", "encoder_bias"),
    "decoder": ("W_dec", "decoder.weight", "decoder"),
    "decoder_bias": ("b_dec", "pre_bias", "decoder.bias", "decoder_bias", "bias"),
    "threshold": ("threshold",),
}
"""What is looked for under ``auto``, in this order: names of saev and SAELens, of OpenAI's autoencoders, plain ones."""
NEEDED = ("encoder", "decoder")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The arrays of a file in its own space: ``encoder``, ``decoder`` ``[k, d]``, biases ``[k]``, ``[d]`` float64.

    ``threshold`` is ``[k]`` or None; ``keys`` says which name each array had; ``sha256`` is that of the file.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None
    keys: dict[str, str]
    sha256: str

    def in_space_of(self, mean: Tensor, scale: Tensor, subtract_bias: bool) -> dict[str, Tensor]:
        """Express it for rows ``(x - mean) / scale``, in float64; codes stay the same numbers.

        Args:
            mean: ``[d]``; 0, with a scale of 1, where the file's space is the fitted one.
            scale: ``[d]``.
            subtract_bias: whether its encoder sees rows minus the decoder's bias.

        Returns:
            ``center``, ``encoder``, ``encoder_bias``, ``decoder``, ``decoder_bias``, float32.
        """
        origin = self.decoder_bias if subtract_bias else torch.zeros_like(self.decoder_bias)
        fitted = {
            "center": (origin - mean) / scale,
            "encoder": self.encoder.double() * scale,
            "encoder_bias": self.encoder_bias,
            "decoder": self.decoder.double() / scale,
            "decoder_bias": (self.decoder_bias - mean) / scale,
        }
        return {name: tensor.float().contiguous() for name, tensor in fitted.items()}


def read_dictionary(path: str | Path, n_features: int, keys: Mapping[str, str] | None = None) -> Dictionary:
    """Read a dictionary for rows of length ``n_features``.

    Matrices may lie either way; a square one is ``[in, out]`` as in ``x @ W``, unless its name ends in ``.weight``,
    which is how a linear layer is stored, ``[out, in]``.

    Args:
        path: safetensors file.
        n_features: length ``d`` of a row.
        keys: array (those of ``NAMES``) -> name in the file, ``none`` for one it does without, or ``auto``.

    Raises:
        ConfigError: a name in ``keys`` is not in the file, or nothing was found for encoder or decoder.
        MismatchError: the matrices are of another width; both numbers are named.
        StoreError: the file is missing or damaged, or arrays are no floats, not finite, or do not fit each other.
    """
    path = Path(path)
    with explained(path):
        path.stat()
    try:
        with safe_open(path, framework="pt") as file:
            found = _names(path, list(file.keys()), keys or {})
            arrays = {array: file.get_tensor(name) for array, name in found.items()}
    except ConfigError:
        raise
    except Exception as error:  # safetensors raises its own type
        raise StoreError(f"{path}: is damaged or not a safetensors file ({error}); pickles are not read") from None
    for array, tensor in arrays.items():
        if tensor.dtype not in FLOATS or not torch.isfinite(tensor).all():
            what = "NaN or Inf" if tensor.dtype in FLOATS else f"{tensor.dtype}, no floating-point numbers"
            raise StoreError(f"{path}: {found[array]} holds {what}")
    encoder = _oriented(path, found["encoder"], arrays["encoder"], n_features, reads=True)
    decoder = _oriented(path, found["decoder"], arrays["decoder"], n_features, reads=False)
    k = decoder.shape[0]
    if encoder.shape[0] != k:
        raise StoreError(
            f"{path}: {found['encoder']} has {encoder.shape[0]} elements, but {found['decoder']} {k}; they must agree"
        )
    sizes = {"encoder_bias": k, "decoder_bias": n_features, "threshold": k}
    vectors = {a: _vector(path, found[a], arrays[a], n) for a, n in sizes.items() if a in arrays}
    return Dictionary(
        encoder=encoder,
        encoder_bias=vectors.get("encoder_bias", torch.zeros(k, dtype=torch.float64)),
        decoder=decoder,
        decoder_bias=vectors.get("decoder_bias", torch.zeros(n_features, dtype=torch.float64)),
        threshold=vectors.get("threshold"),
        keys=found,
        sha256=file_digest(path),
    )


def _names(path: Path, present: list[str], keys: Mapping[str, str]) -> dict[str, str]:
    """Decide under which name each array lies."""
    listed = ", ".join(sorted(present)[:8]) + (", ..." if len(present) > 8 else "")
    if unknown := sorted(keys.keys() - NAMES.keys()):
        raise ConfigError(f"keys: {unknown[0]!r} is no part of a dictionary; known: {', '.join(NAMES)}")
    found = {}
    for array, known in NAMES.items():
        asked = keys.get(array) or "auto"
        if asked == "auto":
            name = next((name for name in known if name in present), None)
        else:
            name = None if asked == "none" else asked
        if name is not None and name not in present:
            raise ConfigError(f"{path}: has no array {name!r} (keys.{array}); it holds {listed}")
        if name is None and array in NEEDED:
            looked = f"; looked for {', '.join(known)}" if asked == "auto" else ""
            raise ConfigError(f"{path}: no {array} was found{looked}; it holds {listed}: name it in `keys`")
        if name is not None:
            found[array] = name
    return found


def _oriented(path: Path, name: str, matrix: Tensor, n_features: int, reads: bool) -> Tensor:
    """Return a matrix as ``[k, d]``; ``reads`` says that it is the encoder's."""
    shape = tuple(matrix.shape)
    if matrix.ndim != 2 or n_features not in shape or 0 in shape:
        raise MismatchError(f"{path}: {name} has the shape {shape}, but rows have {n_features} features")
    linear = name.endswith(".weight")
    if shape[0] == shape[1]:
        return matrix if linear == reads else matrix.T
    return matrix if shape[1] == n_features else matrix.T


def _vector(path: Path, name: str, vector: Tensor, length: int) -> Tensor:
    """Return a vector, or one number for all, as float64 ``[length]``."""
    if vector.numel() == 1:
        return vector.double().reshape(1).expand(length).clone()
    if vector.numel() != length or max(vector.shape) != length:
        raise StoreError(f"{path}: {name} has the shape {tuple(vector.shape)}, but {length} numbers are due")
    return vector.double().reshape(length)
