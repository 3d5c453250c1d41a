"""A recording that exists already, in the layout of the saev project: read where it lies, never written to."""

import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from eigenloom.errors import EigenloomError
from eigenloom.store.parsing import MAX_METADATA_BYTES, parse_metadata, read_document
from eigenloom.store.protocol import Metadata, shard_name
from source import Source, Wildcards

SAME = ("family", "ckpt", "layers", "content_tokens_per_example", "cls_token", "d_model")
"""What the splits must agree on."""


@dataclass(frozen=True)
class RecordedSource(Source):
    """One directory of shards per split; sizes are those of its ``metadata.json``, which planning looks at."""

    examples: ClassVar[str] = ""
    recorder: ClassVar[str] = ""
    labeller: ClassVar[str] = ""
    has_cls: ClassVar[bool] = False

    def directory(self, split: str) -> str:
        """Return the directory of a split's shards, as configured."""
        return self.config["splits"][split]["path"]

    def files(self, split: str) -> list[str]:
        """Return every file of a split's directory that is read."""
        directory, metadata = Path(self.directory(split)), self.metadata(split)
        names = ["metadata.json", "shards.json", *map(shard_name, range(metadata.layout.n_shards))]
        names += ["labels.bin"] if (directory / "labels.bin").is_file() else []
        return [str(directory / name) for name in names]

    @cached_property
    def _read(self) -> dict[str, Metadata | str]:
        """Split -> what its ``metadata.json`` says, or what is wrong with it."""
        found: dict[str, Metadata | str] = {}
        for split in self.splits:
            try:
                path = Path(self.directory(split), "metadata.json")
                found[split] = parse_metadata(*read_document(path, MAX_METADATA_BYTES))
            except (EigenloomError, OSError) as error:
                found[split] = str(error)
        return found

    def metadata(self, split: str) -> Metadata:
        """Return what the ``metadata.json`` of a split says, which ``contradictions`` has found to be readable."""
        found = self._read[split]
        assert isinstance(found, Metadata), found
        return found

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.metadata("fit_train").d_model

    @property
    def n_tokens(self) -> int:
        """Rows per example at one layer."""
        return self.metadata("fit_train").content_tokens_per_example

    @property
    def layer_numbers(self) -> list[int]:
        """The layers that are looked at, all stored ones unless the configuration chooses."""
        return self.config["layers"] or list(self.metadata("fit_train").layers)

    @property
    def origin(self) -> str:
        """The checkpoint that the recording names."""
        return self.metadata("fit_train").ckpt

    @property
    def tokens_per_example(self) -> int:
        """(token, layer) vectors of one example, all stored layers and CLS included."""
        layout = self.metadata("fit_train").layout
        return layout.tokens_per_example * layout.n_layers

    def n_examples(self, split: str) -> int:
        """Return the number of examples of a split."""
        return self.metadata(split).n_examples

    def max_tokens_per_shard(self, split: str) -> int:
        """Return the budget of a shard that the recording was made with."""
        return self.metadata(split).max_tokens_per_shard

    def n_shards(self, split: str) -> int:
        """Return the number of shards."""
        return self.metadata(split).layout.n_shards

    @cached_property
    def jobs(self) -> Mapping[str, list[Wildcards]]:
        """Every split is adopted; nothing is recorded."""
        return self._jobs()

    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        return {"adopt": [self.of(split) for split in self.splits]}

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each recording that cannot be read, does not go with the others, or lacks what is asked."""
        at, readable = f"sources.{self.name}", {}
        for split, found in self._read.items():
            if isinstance(found, str):
                yield from (f"{at}.splits.{split}.path: {line}" for line in found.splitlines())
            else:
                readable[split] = found
        first = next(iter(readable), None)
        for split, found in readable.items():
            for key in SAME:
                ours, theirs = getattr(readable[str(first)], key), getattr(found, key)
                if ours != theirs:
                    yield f"{at}.splits.{split}.path: its {key} is {theirs!r}, but that of {first} is {ours!r}"
        if first is not None:
            stored = readable[first].layers
            for layer in set(self.config["layers"] or ()) - set(stored):
                known = ", ".join(map(str, stored))
                yield f"{at}.layers: no layer {layer} in {self.directory(first)}; stored are {known} (0-based)"
        places: dict[str, str] = {}
        for split in self.splits:
            other = places.setdefault(os.path.realpath(self.directory(split)), split)
            if other != split:
                yield f"{at}.splits.{split}.path: is the recording that {other} is"
        yield from self._classes(at)

    def _classes(self, at: str) -> Iterator[str]:
        """Names of labels that probes need, and the one that is masked."""
        classes: Any = self.config["classes"]
        n_classes = len(classes) if isinstance(classes, list) else classes
        if self.is_probed and classes is None:
            yield f"{at}.classes: probes need the names of the labels, or their number"
        if self.config["void"] is not None and (n_classes is None or self.config["void"] >= n_classes):
            yield f"{at}.void: {self.config['void']}, but there are {n_classes or 'no'} classes, counted from 0"
        for split in self.splits:
            if split in ("probe_train", "probe_val") and not Path(self.directory(split), "labels.bin").is_file():
                yield f"{at}.splits.{split}.path: {self.directory(split)} has no labels.bin, which probes need"
