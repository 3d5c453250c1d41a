"""The saev shard protocol 2.1: what ``metadata.json`` and ``shards.json`` say, and the sizes that follow from it.

The writer is strict, the reader tolerant as far as ``docs/format.md`` says. The protocol is that of the public
project OSU-NLP-Group/saev; where its page and its code differ, its code is meant.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from eigenloom.errors import ConfigError
from eigenloom.provenance import canonical_json

PROTOCOL = "2.1"
FAMILIES = ("bird-mae", "clip", "dinov2", "dinov3", "fake-clip", "pe-core", "pe-spatial", "siglip")
CHOICES = {
    "family": FAMILIES,
    "pixel_agg": ("majority", "prefer-fg"),
    "dtype": ("float32",),
    "protocol": (PROTOCOL,),
}
MAX_TOKENS_PER_SHARD = 2_400_000
MAX_COUNT = 1 << 53
MAX_SHARDS = 1_000_000
SHARD_NAME = re.compile(r"acts[0-9]{6}\.bin")


@dataclass(frozen=True)
class Layout:
    """Where everything lies: a recording of ``n_examples`` times ``L`` layers times ``T`` tokens times ``D`` floats.

    Fields: ``layers``, 0-based and strictly increasing; ``content_tokens_per_example`` (``P``), without CLS;
    ``cls_token``, whether token 0 is one; ``d_model`` (``D``); ``max_tokens_per_shard``, which counts
    (token, layer) vectors, CLS included.

    Raises:
        ConfigError: a field is of the wrong type or out of range, or not one example fits into a shard.
    """

    n_examples: int
    layers: tuple[int, ...]
    content_tokens_per_example: int
    cls_token: bool
    d_model: int
    max_tokens_per_shard: int = MAX_TOKENS_PER_SHARD

    def __post_init__(self) -> None:
        """Take any sequence of layers, then check everything at once."""
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        problems = layout_problems({field.name: getattr(self, field.name) for field in fields(Layout)})
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def n_layers(self) -> int:
        """``L``: how many layers are stored."""
        return len(self.layers)

    @property
    def tokens_per_example(self) -> int:
        """``T = P + cls_token``: stored tokens, CLS included."""
        return self.content_tokens_per_example + self.cls_token

    @property
    def examples_per_shard(self) -> int:
        """``S``: examples that every shard but the last holds."""
        return self.max_tokens_per_shard // (self.tokens_per_example * self.n_layers)

    @property
    def n_shards(self) -> int:
        """How many files the recording has."""
        return -(-self.n_examples // self.examples_per_shard)

    @property
    def example_bytes(self) -> int:
        """Bytes of one example, all its layers and tokens."""
        return self.n_layers * self.tokens_per_example * self.d_model * 4

    @property
    def shard_bytes(self) -> int:
        """Bytes of every shard file, the last included: its tail is zeros."""
        return self.examples_per_shard * self.example_bytes

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return ``(first, stop)``: the examples that a shard holds.

        Raises:
            ConfigError: there is no such shard.
        """
        if not 0 <= shard < self.n_shards:
            raise ConfigError(f"shard {shard} does not exist; the recording has {self.n_shards}, counted from 0")
        first = shard * self.examples_per_shard
        return first, min(first + self.examples_per_shard, self.n_examples)


@dataclass(frozen=True)
class Metadata:
    """What ``metadata.json`` holds, keys in the protocol's order.

    ``data`` is opaque text: saev puts a base64 pickle there, eigenloom base64 JSON; neither is ever decoded here.

    Raises:
        ConfigError: saev would refuse the values; all problems are listed.
    """

    family: str
    ckpt: str
    layers: tuple[int, ...]
    content_tokens_per_example: int
    cls_token: bool
    d_model: int
    n_examples: int
    max_tokens_per_shard: int
    data: str
    dataset: str
    pixel_agg: str = "majority"
    dtype: str = "float32"
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        """Take any sequence of layers; refuse what saev would refuse."""
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        problems = value_problems(vars(self))
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def layout(self) -> Layout:
        """The sizes that follow."""
        return Layout(**{field.name: getattr(self, field.name) for field in fields(Layout)})


KEYS = tuple(field.name for field in fields(Metadata))


def encode_data(parameters: Any) -> str:
    """Return a data set's parameters as ``metadata.json`` holds them: base64 of canonical JSON, ASCII."""
    return base64.b64encode(canonical_json(parameters).encode()).decode("ascii")


def metadata_bytes(metadata: Metadata) -> bytes:
    """Return ``metadata.json``: UTF-8, indented by two, no trailing newline."""
    return _indented(_document(metadata))


def metadata_hash(metadata: Metadata) -> str:
    """Return the eight hex digits saev calls such a recording by; they cover the description, not the contents."""
    text = json.dumps(_document(metadata), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"acts{shard:06d}.bin"


def shards_bytes(layout: Layout) -> bytes:
    """Return ``shards.json``, formatted like ``metadata.json``."""
    ranges = (layout.shard_range(shard) for shard in range(layout.n_shards))
    return _indented([{"name": shard_name(s), "n_examples": stop - first} for s, (first, stop) in enumerate(ranges)])


def layout_problems(values: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the counts of a layout or of a ``metadata.json``."""
    problems = []
    counts = ("content_tokens_per_example", "d_model", "n_examples", "max_tokens_per_shard")
    for key in counts:
        if not is_count(values[key]):
            problems.append(f"{key} must be an integer from 1 to 2^53, not {shown(values[key])}")
    layers = values["layers"]
    if not _are_layers(layers):
        problems.append(f"layers must be 0-based, strictly increasing and not empty, not {shown(layers)}")
    if not isinstance(values["cls_token"], bool):
        problems.append(f"cls_token must be true or false, not {shown(values['cls_token'])}")
    if problems:
        return problems
    vectors = (values["content_tokens_per_example"] + values["cls_token"]) * len(layers)
    if values["max_tokens_per_shard"] < vectors:
        return [
            f"max_tokens_per_shard: {values['max_tokens_per_shard']} is less than the {vectors} (token, layer) vectors"
            " of one example; raise it"
        ]
    if -(-values["n_examples"] // (values["max_tokens_per_shard"] // vectors)) > MAX_SHARDS:
        return [f"max_tokens_per_shard: more than {MAX_SHARDS:,} shards would be needed; raise it"]
    return []


def value_problems(values: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the values of a description that has all keys."""
    problems = layout_problems(values)
    for key in ("family", "ckpt", "data", "dataset"):
        if not isinstance(values[key], str):
            problems.append(f"{key} must be text, not {shown(values[key])}")
        elif any("\ud800" <= character <= "\udfff" for character in values[key]):
            problems.append(f"{key} is not valid Unicode: {shown(values[key])}")
    for key, known in CHOICES.items():
        if values[key] not in known:
            problems.append(f"{key} {shown(values[key])} is refused; known: {', '.join(known)}")
    return problems


def is_count(value: Any, least: int = 1) -> bool:
    """Say whether a parsed value is an integer from ``least`` to 2^53; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_COUNT


def shown(value: Any) -> str:
    """Return a foreign value for an error message: its repr, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _are_layers(value: Any) -> bool:
    """Say whether a value is a usable list of layers."""
    if not isinstance(value, list | tuple) or not value or not all(is_count(layer, 0) for layer in value):
        return False
    return all(a < b for a, b in itertools.pairwise(value))


def _document(metadata: Metadata) -> dict[str, Any]:
    """Return the JSON object, keys in order."""
    return {**asdict(metadata), "layers": list(metadata.layers)}


def _indented(document: Any) -> bytes:
    """Format as saev does."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode()
