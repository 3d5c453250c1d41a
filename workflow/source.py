"""One source of rows: what every kind of it can say of itself, and the arithmetic of its shards.

A kind is a class: it names its rules and over which wildcards they run, says how long its rows are, and finds the
contradictions in its own part of a configuration. ``sources.KINDS`` lists the kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

Wildcards = dict[str, str]
SPLITS = ("fit_train", "fit_val", "probe_train", "probe_val")
FIT_SPLITS, PROBE_SPLITS = SPLITS[:2], SPLITS[2:]
FAMILY = "fake-clip"
"""The word that the shard protocol reserves for networks it does not know."""


def number(n: int) -> str:
    """Write a shard's or part's number as it stands in file names."""
    return f"{n:05d}"


def layer_name(layer: int) -> str:
    """Write a layer as it stands in paths."""
    return f"layer-{layer:02d}"


def cuts(n: int, size: int) -> list[list[int]]:
    """Cut ``0 .. n-1`` into consecutive pieces of ``size``."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def held_out_places(n_snapshots: int, every: int) -> list[int]:
    """Return which checkpoints of a training are left out of a fit: the last but one of each ``every``, 0-based."""
    return list(range(every - 2, n_snapshots, every))


@dataclass(frozen=True)
class Source(ABC):
    """One source: its configuration, and the source that it takes something from, where it does."""

    name: str
    config: Mapping[str, Any]
    owner: "Source | None" = None

    examples: ClassVar[str]
    """Directory, below the source's, of the edges that say which examples a split consists of."""
    recorder: ClassVar[str]
    """The rule that records a shard."""
    labeller: ClassVar[str]
    """The rule that labels the rows of a split."""

    @classmethod
    def needs(cls, config: Mapping[str, Any]) -> str | None:
        """Name the source that this one takes something from; None where it stands alone."""
        del config
        return None

    @classmethod
    def references(cls, name: str, config: Mapping[str, Any], sources: Mapping[str, Any]) -> Iterator[str]:
        """Yield a line for each name in the configuration that nothing carries."""
        del name, config, sources
        yield from ()

    @abstractmethod
    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction in the configuration."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a row."""

    @property
    @abstractmethod
    def n_tokens(self) -> int | None:
        """Rows per example at one layer; None where the configuration does not tell, which is refused."""

    @property
    @abstractmethod
    def layer_numbers(self) -> list[int]:
        """The recorded layers, 0-based."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """What the rows come out of, as the shard protocol names a checkpoint."""

    @property
    def has_cls(self) -> bool:
        """Whether a token of every example is stored that is not a row."""
        return False

    @property
    def family(self) -> str:
        """The word that the shard protocol has for what the rows come out of."""
        return FAMILY

    @abstractmethod
    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        """Return rule -> the wildcards of its jobs, for the rules that end in a recording, ``join_store`` left out."""

    def model_edges(self) -> list[str]:
        """Return the edge of the network whose activations are recorded; none where rows are the data themselves."""
        return []

    def examples_edge(self, split: str) -> str:
        """Return the edge that says which examples a split consists of."""
        return f"artifacts/{self.name}/{self.examples}/{split}/meta.json"

    def absent(self) -> Iterator[str]:
        """Yield a remark for each path of the user's that is not there."""
        yield from ()

    @cached_property
    def jobs(self) -> Mapping[str, list[Wildcards]]:
        """Rule -> the wildcards of its jobs, for the rules that end in a recording."""
        return {**self._jobs(), "join_store": [self.of(split) for split in self.splits]}

    def of(self, split: str) -> Wildcards:
        """Return the wildcards of a split."""
        return {"source": self.name, "split": split}

    def shards(self) -> list[Wildcards]:
        """Return the wildcards of every shard."""
        return [{**self.of(s), "part": number(i)} for s in self.splits for i in range(self.n_shards(s))]

    @property
    def layers(self) -> list[str]:
        """Names of the recorded layers."""
        return [layer_name(layer) for layer in self.layer_numbers]

    @property
    def splits(self) -> list[str]:
        """Splits the source has, in canonical order."""
        return [split for split in SPLITS if split in self.config["splits"]]

    @property
    def is_probed(self) -> bool:
        """Whether there are labelled rows to probe."""
        return "probe_train" in self.config["splits"]

    def n_examples(self, split: str) -> int:
        """Return the number of examples of a split."""
        return self.config["splits"][split]["n_examples"]

    def n_rows(self, split: str) -> int:
        """Return the number of rows of a split at one layer."""
        return self.n_examples(split) * (self.n_tokens or 0)

    @property
    def tokens_per_example(self) -> int:
        """(token, layer) vectors of one example; CLS counts."""
        return ((self.n_tokens or 0) + self.has_cls) * len(self.layer_numbers)

    def max_tokens_per_shard(self, split: str) -> int:
        """Return the budget of a shard: the source's, or what the number of shards of the split makes of it."""
        wanted = self.config["splits"][split]["n_shards"]
        if wanted is None:
            return self.config["record"]["max_tokens_per_shard"]
        return -(-self.n_examples(split) // wanted) * self.tokens_per_example

    def n_shards(self, split: str) -> int:
        """Return the number of shards: whole examples, as many as the budget of tokens admits."""
        per_shard = max(1, self.max_tokens_per_shard(split) // max(1, self.tokens_per_example))
        return -(-self.n_examples(split) // per_shard)


def overlaps(source: Source, key: str, what: str, splits: list[str]) -> Iterator[str]:
    """Yield a line for each split that shares examples with an earlier one; ``key`` names the set it is cut from."""
    taken: dict[str, list[tuple[int, int, str]]] = {}
    for split in splits:
        cut = source.config["splits"][split]
        first, end = cut["first"], cut["first"] + cut["n_examples"]
        for other_first, other_end, other in taken.setdefault(cut[key], []):
            if first < other_end and other_first < end:
                at = f"sources.{source.name}.splits.{split}"
                yield f"{at}: shares {what} with {other}; `first: {max(other_end, first)}` would not"
        taken[cut[key]].append((first, end, split))
