"""One source of rows: its images, its network, and the arithmetic of its shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPLITS = ("fit_train", "fit_val", "probe_train", "probe_val")
FIT_SPLITS, PROBE_SPLITS = SPLITS[:2], SPLITS[2:]
WITH_MASKS = ("scenes", "segmentation_folder")


def number(n: int) -> str:
    """Write a shard's or part's number as it stands in file names."""
    return f"{n:05d}"


def layer_name(layer: int) -> str:
    """Write a layer as it stands in paths."""
    return f"layer-{layer:02d}"


def cuts(n: int, size: int) -> list[list[int]]:
    """Cut ``0 .. n-1`` into consecutive pieces of ``size``."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def patches_of(images: Mapping[str, Any], patch: int) -> int | None:
    """Return the number of patches of images that are taken as they are, where the configuration tells their size."""
    return (images["canvas"] // patch) ** 2 if "canvas" in images else None


@dataclass(frozen=True)
class Source:
    """One source: its images, its network and the arithmetic of its shards."""

    name: str
    config: Mapping[str, Any]
    trainer: "Source | None"
    """The source that trains the network, when another does."""

    @property
    def model(self) -> Mapping[str, Any]:
        """The parameters of the network."""
        return (self.trainer or self).config["model"]

    @property
    def model_source(self) -> str:
        """Name of the source that trains the network."""
        return (self.trainer or self).name

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.model["width"]

    @property
    def n_tokens(self) -> int | None:
        """Patches per image; None where the configuration does not tell, which ``consistency`` refuses."""
        trained_on = (self.trainer or self).images("fit_train")
        return self.model["preprocess"]["n_patches"] or patches_of(trained_on, self.model["patch"])

    @property
    def layers(self) -> list[str]:
        """Names of the recorded layers."""
        return [layer_name(layer) for layer in self.config["layers"]]

    @property
    def splits(self) -> list[str]:
        """Splits the source has, in canonical order."""
        return [split for split in SPLITS if split in self.config["splits"]]

    @property
    def is_probed(self) -> bool:
        """Whether there are labelled rows to probe."""
        return "probe_train" in self.config["splits"]

    def images(self, split: str) -> Mapping[str, Any]:
        """Return the set of images that a split is cut from."""
        return self.config["images"][self.config["splits"][split]["images"]]

    def has_masks(self, split: str) -> bool:
        """Say whether the patches of a split have labels."""
        return self.images(split)["kind"] in WITH_MASKS

    def n_examples(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.config["splits"][split]["n_examples"]

    def n_rows(self, split: str) -> int:
        """Return the number of rows of a split at one layer."""
        return self.n_examples(split) * (self.n_tokens or 0)

    def n_shards(self, split: str) -> int:
        """Return the number of shards: whole images, as many as the budget of tokens admits; CLS counts."""
        per_example = ((self.n_tokens or 0) + 1) * len(self.config["layers"])
        per_shard = max(1, self.config["record"]["max_tokens_per_shard"] // per_example)
        return -(-self.n_examples(split) // per_shard)
