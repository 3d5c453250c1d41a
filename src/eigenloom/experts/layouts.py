"""Where the experts of a checkpoint lie: roles from names of tensors and from ``config.json``, shapes from headers.

Families are ``gate``, ``up`` and ``down``; gate and up are ``[p, d]``, down is ``[d, p]``, as linear layers keep them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenloom.errors import DataError
from eigenloom.sources.checkpoint_file import FLOATS, TensorFacts

FAMILIES = ("gate", "up", "down")
FP8 = "F8_E4M3"
SCALE_SUFFIX = "_scale_inv"
"""Of the name of a tensor with the scales of blocks, beside that of an FP8 tensor."""
ROLES = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
    "gate_up_proj": "gate_up", "input_linear": "gate_up", "output_linear": "down",
}  # fmt: skip
HEAD = r"^(?P<head>(?:.*\.)?layers\.(?P<layer>\d+)\.)(?:.*\.)?"
SINGLE = re.compile(HEAD + r"experts\.(?P<expert>\d+)\.(?P<role>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
FUSED = re.compile(HEAD + r"experts\.(?P<role>gate_up_proj|down_proj)$")
STACKED = re.compile(HEAD + r"block_sparse_moe\.(?P<role>input_linear|output_linear)\.weight$")
QUANTISED = re.compile(HEAD + r"experts\..*(_blocks|_scales|\.qweight|\.qzeros|\.weight_packed|\.weight_scale)$")
SHARED = re.compile(r"\.shared_(experts?|mlp)\.")
DENSE = re.compile(r"layers\.\d+\.mlp\.(gate|up|down)_proj\.weight$")
COLUMNS_FIRST = ("qwen3_vl_moe", "qwen3_vl_moe_text", "gpt_oss", "llama4", "llama4_text")
"""Values of ``model_type`` whose fused tensors are transposed, ``[E, d, 2p]`` and ``[E, p, d]``."""
INTERLEAVED = ("gpt_oss",)
"""Those in which gate and up alternate instead of following each other."""
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
SHOWN = 3


@dataclass(frozen=True)
class Stored:
    """One expert's matrix ``[p, d]`` of one family, and where its numbers are.

    Fields: ``name``, alike in every layout of a model; ``layer``; ``expert``, its number in it; ``key``, the tensor;
    ``index``, the expert's place in a fused tensor, None where the tensor is the matrix; ``rows``, the slice of the
    matrix's rows; ``transposed``, whether these are the tensor's last axis; ``shape`` of the matrix.
    """

    name: str
    layer: int
    expert: int
    key: str
    index: int | None
    rows: slice
    transposed: bool
    shape: tuple[int, int]

    @property
    def place(self) -> tuple[int | slice, ...]:
        """Index of the matrix, or of its transpose, in the tensor."""
        axes = (slice(None), self.rows) if self.transposed else (self.rows, slice(None))
        return axes if self.index is None else (self.index, *axes)


@dataclass(frozen=True)
class ExpertLayout:
    """All experts of a checkpoint by family, in the order of layers and numbers; ``skipped``: name -> reason."""

    families: Mapping[str, tuple[Stored, ...]]
    skipped: Mapping[str, str]


def find_experts(label: str, tensors: Mapping[str, TensorFacts], config: Mapping[str, Any]) -> ExpertLayout:
    """Find every expert of a checkpoint.

    Args:
        label: what messages call the checkpoint.
        tensors: name -> shape and number format.
        config: its ``config.json``.

    Raises:
        DataError: no experts, quantised ones, unequal shapes, or a missing expert.
    """
    _refuse_quantised(label, tensors, config)
    found: dict[str, list[Stored]] = {}
    skipped: dict[str, str] = {}
    for key, facts in tensors.items():
        match = SINGLE.match(key) or FUSED.match(key) or STACKED.match(key)
        if SHARED.search(key):
            skipped[key] = "shared expert"
        elif DENSE.search(key):
            skipped[key] = "dense layer"
        elif match:
            if facts.dtype not in FLOATS and not (facts.dtype == FP8 and key + SCALE_SUFFIX in tensors):
                raise DataError(
                    f"{label}: tensor {key!r} is {facts.dtype}; of quantised experts only FP8 with scales of blocks"
                    f" ({key + SCALE_SUFFIX}) is read: dequantise the checkpoint"
                )
            for family, stored in _described(label, key, match, facts, config):
                found.setdefault(family, []).append(stored)
    if not found:
        raise DataError(
            f"{label}: holds no experts; tensors of mixture-of-experts layers are called like"
            " model.layers.0.mlp.experts.0.gate_proj.weight or model.layers.0.mlp.experts.gate_up_proj"
        )
    families = {f: tuple(sorted(found[f], key=lambda s: (s.layer, s.expert, s.name))) for f in FAMILIES if f in found}
    _refuse_gaps(label, families, config)
    return ExpertLayout(families, skipped)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a ``config.json`` that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _described(
    label: str, key: str, match: re.Match[str], facts: TensorFacts, config: Mapping[str, Any]
) -> Iterator[tuple[str, Stored]]:
    """Yield family and place of every expert matrix in a tensor."""
    fused = "expert" not in match.re.groupindex
    if len(facts.shape) != 2 + fused:
        wanted = "one matrix per expert is" if fused else "a matrix is"
        raise DataError(f"{label}: tensor {key!r} has shape {facts.shape}, where {wanted} expected")
    head, layer = match["head"], int(match["layer"])
    if not fused:
        family, expert, (p, d) = ROLES[match["role"]], int(match["expert"]), facts.shape
        name = f"{head}experts.{expert}.{family}"
        yield family, Stored(name, layer, expert, key, None, slice(0, p), False, (p, d))
        return
    role, (n_experts, first, last) = ROLES[match["role"]], facts.shape
    inner = text_config(config)
    model_type = str(inner.get("model_type", config.get("model_type", "")))
    transposed = _is_transposed(role, (first, last), inner.get("hidden_size"), model_type)
    n_rows, d = (last, first) if transposed else (first, last)
    cuts: dict[str, slice]
    if role == "down":
        cuts = {"down": slice(0, n_rows)}
    elif n_rows % 2:
        raise DataError(f"{label}: tensor {key!r} holds gate and up in {n_rows} rows, which two do not share equally")
    elif model_type in INTERLEAVED:
        cuts = {"gate": slice(0, n_rows, 2), "up": slice(1, n_rows, 2)}
    else:
        cuts = {"gate": slice(0, n_rows // 2), "up": slice(n_rows // 2, n_rows)}
    for expert in range(n_experts):
        for family, rows in cuts.items():
            shape = (len(range(n_rows)[rows]), d)
            name = f"{head}experts.{expert}.{family}"
            yield family, Stored(name, layer, expert, key, expert, rows, transposed, shape)


def _is_transposed(role: str, sides: tuple[int, int], hidden: Any, model_type: str) -> bool:
    """Say whether the rows of a fused tensor's matrices are its last axis: by the hidden size, else the model type."""
    columns_first = model_type in COLUMNS_FIRST
    if not isinstance(hidden, int) or sides[0] == sides[1] or hidden not in sides:
        return columns_first
    at_end = sides[1] == hidden
    return at_end if role == "down" else not at_end


def _refuse_quantised(label: str, tensors: Mapping[str, TensorFacts], config: Mapping[str, Any]) -> None:
    """Refuse what cannot be dequantised here."""
    quantisation = config.get("quantization_config") or text_config(config).get("quantization_config") or {}
    method = quantisation.get("quant_method", "fp8") if isinstance(quantisation, Mapping) else quantisation
    key = next((key for key in tensors if QUANTISED.match(key)), None)
    if method != "fp8" or key is not None:
        what = f"quantised by {method}" if method != "fp8" else f"quantised ({key})"
        raise DataError(
            f"{label}: is {what}; of quantised experts only FP8 with scales of blocks is read: dequantise them"
        )


def _refuse_gaps(label: str, families: Mapping[str, tuple[Stored, ...]], config: Mapping[str, Any]) -> None:
    """Refuse layers in which an expert is missing, by the numbers of all families and the configured count."""
    counts = (text_config(config).get(name) for name in COUNTS)
    configured = next((n for n in counts if isinstance(n, int)), 0)
    blocks: dict[str, dict[str, set[int]]] = {}
    for family, experts in families.items():
        for stored in experts:
            block = stored.name.rpartition("experts.")[0]  # the layer, with what its name begins with
            blocks.setdefault(block, {}).setdefault(family, set()).add(stored.expert)
    for block, numbers in blocks.items():
        there = set().union(*numbers.values())
        wanted = set(range(max(max(there) + 1, configured)))
        for family in families:
            if lost := sorted(wanted - numbers.get(family, set())):
                more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
                raise DataError(
                    f"{label}: {block}experts lacks the {family} of expert {', '.join(map(str, lost[:SHOWN]))}{more} of"
                    f" {len(wanted)}; copy all shards again"
                )


def refuse_unequal(label: str, family: str, experts: Sequence[Stored]) -> None:
    """Refuse a family whose experts differ in shape.

    Raises:
        DataError: with the first that differs.
    """
    first = experts[0]
    for other in experts:
        if other.shape != first.shape:
            raise DataError(
                f"{label}: {other.name} is {other.shape[0]} x {other.shape[1]}, but {first.name} is {first.shape[0]} x"
                f" {first.shape[1]}; the experts of a family need one shape: choose layers that agree"
            )
