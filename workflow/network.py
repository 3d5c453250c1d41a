"""The network that a source of images is recorded with: trained here, or pretrained and read from the user's disk.

A kind says how long rows are, how many there are per image, and what is wrong with its part of the configuration.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar

from checkpoint import Checkpoint
from eigenloom.sources.model_files import ANY_GRID, ModelFacts, has_cls, read_facts
from source import FAMILY, Wildcards

Config = Mapping[str, Any]
RANGE = re.compile(r"(\d+)-(\d+)")


def patches_of(images: Config, patch: int) -> int | None:
    """Return the number of patches of images that are taken as they are, where the configuration tells their size."""
    return (images["canvas"] // patch) ** 2 if "canvas" in images else None


def numbered(layers: list[int] | str, depth: int) -> list[int]:
    """Return the 0-based layers that a list, a range ``18-23`` or an end ``last-6`` means; some may not exist."""
    if not isinstance(layers, str):
        return layers
    if found := RANGE.fullmatch(layers):
        return list(range(int(found[1]), int(found[2]) + 1))
    return list(range(depth - int(layers.removeprefix("last-")), depth))


@dataclass(frozen=True)
class Network(ABC):
    """A network of the source ``source``: its configuration, and the images of ``fit_train``."""

    source: str
    config: Config
    images: Config

    rule: ClassVar[str]
    """The rule that makes its edge."""

    @property
    def edge(self) -> str:
        """Path of the edge."""
        return f"artifacts/{self.source}/model/meta.json"

    @property
    def jobs(self) -> dict[str, list[Wildcards]]:
        """Rule -> wildcards of the job that makes the edge."""
        return {self.rule: [{"source": self.source}]}

    @property
    def origin(self) -> str:
        """What the shard protocol calls the checkpoint."""
        return self.source

    @property
    def family(self) -> str:
        """The word that the shard protocol has for its architecture."""
        return FAMILY

    @property
    def has_cls(self) -> bool:
        """Whether a CLS token is stored beside the patches."""
        return True

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a row."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side of a patch in pixels."""

    @property
    @abstractmethod
    def resize(self) -> str:
        """How images become whole patches."""

    @property
    def n_tokens(self) -> int | None:
        """Patches per image; None where the configuration does not tell, which is refused."""
        return self.config["preprocess"]["n_patches"] or patches_of(self.images, self.patch)

    @abstractmethod
    def contradictions(self, at: str) -> Iterator[str]:
        """Yield a line for each contradiction, after the place of the source."""

    def files(self) -> list[str]:
        """Return paths of the user's that the edge is made from."""
        return []

    def absent(self, at: str) -> Iterator[str]:
        """Yield a remark where files of the user's are not there."""
        del at
        yield from ()


class TrainedNetwork(Network):
    """A small vision transformer, trained on the images of a source."""

    rule = "train"

    @property
    def width(self) -> int:
        """As configured."""
        return self.config["width"]

    @property
    def depth(self) -> int:
        """As configured."""
        return self.config["depth"]

    @property
    def patch(self) -> int:
        """As configured."""
        return self.config["patch"]

    @property
    def resize(self) -> str:
        """As configured."""
        return self.config["preprocess"]["resize"]

    def contradictions(self, at: str) -> Iterator[str]:
        """Yield what is wrong with the shape, the patches and the length of the training."""
        model, n_patches = self.config, self.config["preprocess"]["n_patches"]
        if self.width % model["heads"] or self.width % 4:
            yield f"{at}.model.width: {self.width} must be a multiple of heads ({model['heads']}) and of 4"
        if (self.resize == "none") != (n_patches is None):
            yield f"{at}.model.preprocess.n_patches: goes with `resize: square`, and only with it"
        elif n_patches is not None and isqrt(n_patches) ** 2 != n_patches:
            yield f"{at}.model.preprocess.n_patches: {n_patches} is no square number"
        elif self.n_tokens is None:
            kind = self.images["kind"]
            yield f"{at}.model.preprocess: {kind} images differ in size; set `resize: square` and `n_patches`"
        elif n_patches is None and self.images["canvas"] % self.patch:
            yield f"{at}.model.patch: {self.images['canvas']} pixels are not a multiple of {self.patch}"
        if model["warmup"] > model["steps"]:
            yield f"{at}.model.warmup: {model['warmup']} is more than the {model['steps']} steps"


class PretrainedNetwork(Network):
    """A vision transformer of the transformers library, in a folder or in the Hugging Face cache.

    Its size comes from its ``config.json``; where that is absent, from the edge of an earlier run, or from ``shape``.
    """

    rule = "pin_model"

    @cached_property
    def checkpoint(self) -> Checkpoint[ModelFacts]:
        """The files it is read from."""
        return Checkpoint(self.edge, self.config, lambda folder: read_facts(folder, self.config["cls"]))

    @cached_property
    def facts(self) -> ModelFacts:
        """What is planned with; a network without size where nothing tells, which is refused."""
        if found := self.checkpoint.found[0]:
            return found
        edge = self.checkpoint.remembered
        known = {**edge["shape"], "n_patches": edge["preprocess"]["n_patches"]} if edge else {}
        size = {**known, **(self._stated or {})}
        return ModelFacts(**size) if size else ModelFacts("", 0, 0, 1, True)

    @property
    def _stated(self) -> dict[str, Any] | None:
        """The size that the configuration states."""
        shape = self.config["shape"]
        return shape and {**shape, "has_cls": has_cls(shape["architecture"], self.config["cls"])}

    @property
    def family(self) -> str:
        """That of the architecture."""
        return self.facts.family

    @property
    def origin(self) -> str:
        """The hub id, or the folder as the configuration spells it."""
        return self.config["path"]

    @property
    def has_cls(self) -> bool:
        """As the architecture has it, or as configured."""
        return self.facts.has_cls

    @property
    def width(self) -> int:
        """As the checkpoint has it."""
        return self.facts.width

    @property
    def depth(self) -> int:
        """As the checkpoint has it."""
        return self.facts.depth

    @property
    def patch(self) -> int:
        """As the checkpoint has it."""
        return self.facts.patch

    @property
    def resize(self) -> str:
        """As configured, else what keeps the shape of an image where the network can take it."""
        return self.config["preprocess"]["resize"] or ("grid" if self.facts.takes_any_grid else "square")

    @property
    def n_tokens(self) -> int | None:
        """As configured, else what the checkpoint was made for."""
        if self.resize == "none":
            return patches_of(self.images, self.patch)
        return self.config["preprocess"]["n_patches"] or self.facts.n_patches

    @property
    def preprocess(self) -> dict[str, Any]:
        """The preprocessing; mean and deviation are None where they are the checkpoint's own."""
        stated = self.config["preprocess"]
        n_patches = None if self.resize == "none" else self.n_tokens
        return {"resize": self.resize, "n_patches": n_patches, "mean": stated["mean"], "std": stated["std"]}

    def files(self) -> list[str]:
        """Return the folder; nothing where the cache is looked into."""
        return self.checkpoint.files()

    def absent(self, at: str) -> Iterator[str]:
        """Yield a remark where the checkpoint is not there."""
        yield from self.checkpoint.absent(at)

    def contradictions(self, at: str) -> Iterator[str]:
        """Yield what is wrong with the checkpoint, its stated size, and the patches."""
        unusable = list(self.checkpoint.problems(at, bool(self.facts.depth)))
        yield from unusable
        if unusable:
            return
        if found := self.checkpoint.found[0]:
            yield from self.checkpoint.misstated(at, found.shape(), self._stated)
        n_patches, learned = self.config["preprocess"]["n_patches"], self.facts.n_patches
        if self.n_tokens is None:
            words = "images differ in size" if self.resize == "none" else "nothing tells how many"
            yield f"{at}.model.preprocess.n_patches: {words}; set `n_patches`, 256 for instance"
        elif self.resize == "none" and n_patches:
            yield f"{at}.model.preprocess.n_patches: goes with `resize: square` or `grid`"
        elif self.resize == "square" and isqrt(self.n_tokens) ** 2 != self.n_tokens:
            yield f"{at}.model.preprocess.n_patches: {self.n_tokens} is no square number; or set `resize: grid`"
        elif not self.facts.takes_any_grid and (self.resize == "grid" or learned not in (None, self.n_tokens)):
            of = f"{learned} patches" if learned else "one square of patches"
            yield (
                f"{at}.model.preprocess: {self.facts.architecture} has learned positions of {of}; leave `resize` and"
                f" `n_patches` to it (those that take any grid: {', '.join(ANY_GRID)})"
            )


NETWORKS: dict[str, type[Network]] = {"vit": TrainedNetwork, "pretrained": PretrainedNetwork}
"""Kind of a model in the configuration -> its network; ``trained`` is that of another source."""
