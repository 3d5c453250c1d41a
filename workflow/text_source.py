"""Texts through a pretrained transformer: rows are the outputs of its blocks for the tokens of packed sequences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from checkpoint import Checkpoint
from eigenloom.sources.model_files import TextFacts, read_text_facts
from network import numbered
from source import PROBE_SPLITS, Source, Wildcards, overlaps

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TextSource(Source):
    """Files of texts, a pretrained network and layers of it."""

    examples: ClassVar[str] = "texts"
    recorder: ClassVar[str] = "record_texts"
    labeller: ClassVar[str] = "label_texts"

    @classmethod
    def references(cls, name: str, config: Config, sources: Config) -> Iterator[str]:
        """Yield a line for each file of texts that nothing carries."""
        del sources
        for split, cut in config["splits"].items():
            if cut["texts"] not in config["texts"]:
                at = f"sources.{name}.splits.{split}.texts"
                yield f"{at}: no file of texts is called `{cut['texts']}`; known: {', '.join(config['texts'])}"

    @property
    def model(self) -> Config:
        """The parameters of the network."""
        return self.config["model"]

    @cached_property
    def checkpoint(self) -> Checkpoint[TextFacts]:
        """The files that the network is read from."""
        return Checkpoint(f"artifacts/{self.name}/model/meta.json", self.model, read_text_facts)

    @cached_property
    def facts(self) -> TextFacts:
        """The size of the network; none where nothing tells it, which is refused."""
        if found := self.checkpoint.found[0]:
            return found
        size = self.model["shape"] or self.checkpoint.remembered.get("shape")
        return TextFacts(**size) if size else TextFacts("", 0, 0)

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.facts.width

    @property
    def n_tokens(self) -> int:
        """Content tokens of a sequence."""
        return self.model["n_tokens"]

    @property
    def has_cls(self) -> bool:
        """Whether a token begins each sequence."""
        return self.model["bos"]

    @property
    def layer_numbers(self) -> list[int]:
        """The recorded blocks, 0-based."""
        return numbered(self.config["layers"], self.facts.depth)

    @property
    def origin(self) -> str:
        """The hub id, or the folder as the configuration spells it."""
        return self.model["path"]

    def text(self, split: str) -> str:
        """Return the file that a split is cut from."""
        return self.config["texts"][self.config["splits"][split]["texts"]]

    def model_edges(self) -> list[str]:
        """Return the edge of the network."""
        return [self.checkpoint.edge]

    def absent(self) -> Iterator[str]:
        """Yield a remark for the network, and each file of texts, that is not there."""
        yield from self.checkpoint.absent(f"sources.{self.name}")
        for name, path in self.config["texts"].items():
            if not Path(path).exists():
                yield f"sources.{self.name}.texts.{name}: {path} is absent; edits of it are not seen"

    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        every = [self.of(split) for split in self.splits]
        return {
            "pin_text_model": [{"source": self.name}],
            "list_texts": every,
            "record_texts": self.shards(),
            "label_texts": every if self.config["classes"] else [],
        }

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction between texts, network and layers."""
        at = f"sources.{self.name}"
        unusable = list(self.checkpoint.problems(at, bool(self.facts.depth)))
        yield from unusable
        if unusable:
            return
        if found := self.checkpoint.found[0]:
            yield from self.checkpoint.misstated(at, found.shape(), self.model["shape"])
        depth, length = self.facts.depth, self.n_tokens + self.has_cls
        wrong = [layer for layer in self.layer_numbers if not 0 <= layer < depth]
        if wrong or not self.layer_numbers:
            layer = f"no layer {wrong[0]}" if wrong else f"`{self.config['layers']}` is none"
            yield f"{at}.layers: {layer}; 0-based: the last of {depth} is {depth - 1}"
        if self.facts.max_tokens is not None and length > self.facts.max_tokens:
            yield f"{at}.model.n_tokens: the network takes {self.facts.max_tokens} tokens, not {length}"
        if self.is_probed and not self.config["classes"]:
            yield f"{at}.classes: probes need classes; name the labels in {self.text(PROBE_SPLITS[0])}"
        yield from overlaps(self, "texts", "sequences", self.splits)
