"""Open a recording of activations: ours with its sidecar ``store.json``, or any saev directory without one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.atomic import explained
from eigenloom.store.parsing import (
    MAX_LIST_BYTES,
    MAX_METADATA_BYTES,
    check_present,
    first_difference,
    parse_metadata,
    parse_shards,
    read_document,
    size_problems,
)
from eigenloom.store.protocol import Layout, Metadata, metadata_hash, shard_name
from eigenloom.store.sidecar import DIRECTORY, home_of, sidecar_problems

logger = logging.getLogger("eigenloom")


@dataclass(frozen=True)
class Shard:
    """One ``acts*.bin``: its name, how many examples it holds and the number of the first of them."""

    name: str
    n_examples: int
    first_example: int


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """A recording whose description has been checked against the files; nothing of it is in memory.

    Fields: ``directory`` of the shards; ``metadata`` as the protocol has it; ``shards`` in stored order;
    ``sidecar``, the parsed ``store.json``, None for a foreign recording.
    """

    directory: Path
    metadata: Metadata
    shards: tuple[Shard, ...]
    sidecar: dict[str, Any] | None

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.metadata.layout

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self.metadata.n_examples

    @property
    def tokens_per_example(self) -> int:
        """``P``: content tokens of an example, which are its rows; CLS does not count."""
        return self.metadata.content_tokens_per_example

    @property
    def d_model(self) -> int:
        """``D``: length of a row."""
        return self.metadata.d_model

    @property
    def layers(self) -> tuple[int, ...]:
        """The stored layers, 0-based."""
        return self.metadata.layers

    @property
    def n_rows(self) -> int:
        """Rows of content tokens of one layer."""
        return self.n_examples * self.tokens_per_example

    @property
    def examples_per_shard(self) -> int:
        """``S``: examples of every shard but the last."""
        return self.layout.examples_per_shard

    @property
    def signature(self) -> dict[str, Any]:
        """What must agree between recordings; a foreign one has only ``family`` and ``ckpt``."""
        if self.sidecar is None:
            return {"family": self.metadata.family, "ckpt": self.metadata.ckpt}
        return dict(self.sidecar["signature"])

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the content tokens; None where examples differ or nobody says."""
        grid = (self.sidecar or {}).get("grid")
        return None if grid is None else (grid[0], grid[1])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels, None without labels or where nobody says."""
        labels = (self.sidecar or {}).get("labels")
        return None if labels is None else tuple(labels["classes"])

    @property
    def void(self) -> int | None:
        """The label that is masked, None where there is none."""
        labels = (self.sidecar or {}).get("labels")
        return None if labels is None else labels["void"]

    def labels(self) -> Tensor | None:
        """Return the label of every row, uint8 ``[n_rows]``, or None when the recording has none.

        Raises:
            DataError: a label is not smaller than the number of classes.
            StoreError: the file cannot be read.
        """
        path = self.directory / "labels.bin"
        if (self.sidecar is not None and self.sidecar["labels"] is None) or not path.exists():
            return None
        with explained(path):
            labels = np.fromfile(path, np.uint8)
        if len(labels) != self.n_rows:
            raise StoreError(f"{path}: {len(labels)} bytes, expected {self.n_rows}; write the labels again")
        if self.classes is not None and labels.max() >= len(self.classes):
            row = int((labels >= len(self.classes)).argmax())
            raise DataError(
                f"{path}: label {labels[row]} at example {row // self.tokens_per_example},"
                f" token {row % self.tokens_per_example}, but there are {len(self.classes)} classes; label again"
            )
        return torch.from_numpy(labels)

    def layer_axis(self, layer: int) -> int:
        """Return the position of a layer on the layer axis of the shards.

        Raises:
            ConfigError: the layer was not recorded.
        """
        if layer not in self.layers:
            stored = ", ".join(map(str, self.layers))
            raise ConfigError(f"{self.directory}: layer {layer} is not stored; stored are {stored} (0-based)")
        return self.layers.index(layer)


def open_store(path: str | Path) -> ActivationStore:
    """Open a recording by its ``store.json`` or its directory and check it against its files.

    Counts and file sizes are compared before anything is allocated; the ``data`` of ``metadata.json`` is never
    decoded, nothing is unpickled, no name leads out of the directory.

    Raises:
        StoreError: files are absent, damaged, of another protocol, or do not fit each other; all problems are
            listed, one a line, with full paths.
    """
    path = Path(path)
    directory = path.parent if path.name == "store.json" else path
    edge = directory / "store.json"
    ours = path.name == "store.json" or edge.exists() or any(directory.glob("shard-*.json"))
    home = home_of(read_document(edge, MAX_LIST_BYTES)[0], edge) if edge.is_file() else directory
    check_present(home, ours and home == directory)
    problems: list[str] = []
    metadata = _attempt(problems, lambda: parse_metadata(*read_document(home / "metadata.json", MAX_METADATA_BYTES)))
    listed = _attempt(problems, lambda: read_document(home / "shards.json", MAX_LIST_BYTES))
    sidecar = _attempt(problems, lambda: read_document(edge, MAX_LIST_BYTES)[0]) if ours else None
    if metadata is None or listed is None:
        raise StoreError("\n".join(problems))
    layout = metadata.layout
    counts = _attempt(problems, lambda: parse_shards(listed[0], layout, listed[1]))
    for shard, count in enumerate(counts or []):
        problems += _file_problems(home / shard_name(shard), count, layout, last=shard == len(counts or []) - 1)
    if sidecar is not None:
        problems += sidecar_problems(sidecar, metadata, edge)
    problems += _label_problems(home, layout, sidecar)
    if problems or counts is None:
        raise StoreError("\n".join(problems))
    shards = (Shard(shard_name(s), count, s * layout.examples_per_shard) for s, count in enumerate(counts))
    return ActivationStore(home, metadata, tuple(shards), sidecar)


def verify_store(store: ActivationStore) -> list[str]:
    """Compare every shard and the labels with the recorded sha256; return what differs or was never recorded."""
    if store.sidecar is None:
        return [f"{store.directory}: sha256 not recorded (a foreign recording)"]
    expected = {entry["name"]: entry["sha256"] for entry in store.sidecar["shards"]}
    if store.sidecar["labels"] is not None:
        expected["labels.bin"] = store.sidecar["labels"]["sha256"]
    problems = []
    for name, digest in expected.items():
        path = store.directory / name
        if digest is None:
            problems.append(f"{path}: sha256 not recorded")
        elif (found := file_digest(path)) != digest:
            problems.append(
                f"{path}: its sha256 is {found[:8]}..., recorded is {digest[:8]}...; record this shard again"
            )
    return problems


def link_as_hash(store: ActivationStore) -> Path:
    """Make a sibling link by which saev's inference tools find the recording: its eight-digit hash.

    Raises:
        StoreError: something else has that name already, or the recording was adopted, and nothing is written there.
    """
    if DIRECTORY in (store.sidecar or {}):
        raise StoreError(f"{store.directory}: a recording of somebody else's; nothing is written beside it")
    directory = store.directory.resolve()
    link = directory.parent / metadata_hash(store.metadata)
    if not link.exists() and not link.is_symlink():
        with explained(link):
            link.symlink_to(directory.name, target_is_directory=True)
    if link.resolve() != directory:
        raise StoreError(f"{link}: exists and is not a link to {directory}; move it away")
    return link


def check_signature(signature: Mapping[str, Any], store: ActivationStore) -> None:
    """Compare the signature of the recording something was fitted on with that of a recording it is applied to.

    Raises:
        MismatchError: a field differs; it is named with both values.
    """
    if store.sidecar is None or signature.keys() == {"family", "ckpt"}:
        logger.warning("%s: a foreign recording; nothing but family and ckpt could be checked", store.directory)
    difference = first_difference(signature, store.signature)
    if difference is not None:
        field, ours, theirs = difference
        raise MismatchError(
            f"{store.directory}: recorded with {field} {_brief(theirs)}, but the recording that was fitted on has"
            f" {_brief(ours)}; fit on a recording of this kind, or record this split again with the same model"
        )


def _attempt(problems: list[str], work: Any) -> Any:
    """Return the result, or None after adding the problems."""
    try:
        return work()
    except StoreError as error:
        problems.append(str(error))
        return None


def _file_problems(path: Path, n_examples: int, layout: Layout, last: bool) -> list[str]:
    """List what is wrong with one shard file."""
    problems = size_problems(path, layout.shard_bytes, n_examples * layout.example_bytes if last else None)
    if not problems and path.stat().st_size < layout.shard_bytes:
        logger.warning("%s: shorter than a full shard; read here, but saev would refuse it", path)
    return problems


def _label_problems(directory: Path, layout: Layout, sidecar: Any) -> list[str]:
    """List what is wrong with the labels file: it must fit, and be there when the sidecar says so."""
    path = directory / "labels.bin"
    named = isinstance(sidecar, dict) and sidecar.get("labels") is not None
    if not named and (sidecar is not None or not (path.exists() or path.is_symlink())):
        return []
    return size_problems(path, layout.n_examples * layout.content_tokens_per_example)


def _brief(value: Any) -> str:
    """Return a value for a message; a digest by its first eight digits."""
    if value is None:
        return "nothing"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
