"""Images through a network: rows are the outputs of its blocks for the patches of every image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from network import NETWORKS, Network, numbered, patches_of
from source import PROBE_SPLITS, Source, Wildcards, overlaps

WITH_MASKS = ("scenes", "segmentation_folder", "ade20k")
Config = Mapping[str, Any]


@dataclass(frozen=True)
class ImageSource(Source):
    """Sets of images, a network and layers of it; ``owner`` trains the network, when another source does."""

    examples: ClassVar[str] = "images"
    recorder: ClassVar[str] = "record"
    labeller: ClassVar[str] = "label"

    @classmethod
    def needs(cls, config: Config) -> str | None:
        """Name the source that trains the network, when another does."""
        return config["model"].get("source")

    @classmethod
    def references(cls, name: str, config: Config, sources: Config) -> Iterator[str]:
        """Yield a line for each set of images, and each network, that nothing carries."""
        for split, cut in config["splits"].items():
            if cut["images"] not in config["images"]:
                at = f"sources.{name}.splits.{split}.images"
                yield f"{at}: no set of images is called `{cut['images']}`; known: {', '.join(config['images'])}"
        if config["model"]["kind"] == "trained":
            other = config["model"]["source"]
            trained = [n for n, s in sources.items() if s.get("model", {}).get("kind") == "vit"]
            if other not in trained:
                known = ", ".join(trained) or "none"
                yield f"sources.{name}.model.source: `{other}` trains no network; sources that do: {known}"

    @property
    def model(self) -> Config:
        """The parameters of the network."""
        return (self.owner or self).config["model"]

    @cached_property
    def network(self) -> Network:
        """What images go through."""
        if isinstance(self.owner, ImageSource):
            return self.owner.network
        return NETWORKS[self.model["kind"]](self.name, self.model, self.images("fit_train"))

    @property
    def origin(self) -> str:
        """Name of the source that trains the network, or of the pretrained network."""
        return self.network.origin

    @property
    def family(self) -> str:
        """The word that the shard protocol has for the network."""
        return self.network.family

    @property
    def has_cls(self) -> bool:
        """Whether the network has a CLS token, which is stored."""
        return self.network.has_cls

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.network.width

    @property
    def n_tokens(self) -> int | None:
        """Patches per image; None where the configuration does not tell, which is refused."""
        return self.network.n_tokens

    @property
    def layer_numbers(self) -> list[int]:
        """The recorded blocks, 0-based."""
        return numbered(self.config["layers"], self.network.depth)

    def images(self, split: str) -> Config:
        """Return the set of images that a split is cut from."""
        return self.config["images"][self.config["splits"][split]["images"]]

    def has_masks(self, split: str) -> bool:
        """Say whether the patches of a split have labels."""
        return self.images(split)["kind"] in WITH_MASKS

    def model_edges(self) -> list[str]:
        """Return the edge of the network."""
        return [self.network.edge]

    def absent(self) -> Iterator[str]:
        """Yield a remark for the network, and each folder of images, that is not there."""
        if self.owner is None:
            yield from self.network.absent(f"sources.{self.name}")
        for name, images in self.config["images"].items():
            if "root" in images and not Path(images["root"]).exists():
                yield f"sources.{self.name}.images.{name}: {images['root']} is absent; edits of it are not seen"

    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        drawn = [split for split in self.splits if self.images(split)["kind"] == "scenes"]
        return {
            "draw": [self.of(split) for split in drawn],
            "list_images": [self.of(split) for split in self.splits if split not in drawn],
            **(self.network.jobs if self.owner is None else {}),
            "record": self.shards(),
            "label": [self.of(split) for split in self.splits if self.has_masks(split)],
        }

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction between images, network and layers."""
        at, network = f"sources.{self.name}", self.network
        wrong = [layer for layer in self.layer_numbers if not 0 <= layer < network.depth]
        if network.depth and (wrong or not self.layer_numbers):
            layer = f"no layer {wrong[0]}" if wrong else f"`{self.config['layers']}` is none"
            yield f"{at}.layers: {layer}; 0-based: the last of {network.depth} is {network.depth - 1}"
        if self.owner is None:
            yield from network.contradictions(at)
        if self.model["kind"] == "vit" and self.owner is None:
            yield from self._training(at)
        for split in self.splits:
            images = self.images(split)
            if split in PROBE_SPLITS and not self.has_masks(split):
                known = ", ".join(WITH_MASKS)
                yield f"{at}.splits.{split}: probes need patch labels; {images['kind']} has none, {known} have"
            found = patches_of(images, network.patch)
            if network.resize == "none" and found not in (None, self.n_tokens):
                yield f"{at}.splits.{split}: {found} patches per image, but the network takes {self.n_tokens}"
        drawn = [split for split in self.splits if self.images(split)["kind"] == "scenes"]  # which never share any
        yield from overlaps(self, "images", "images", [split for split in self.splits if split not in drawn])
        for name, images in self.config["images"].items():
            yield from _images(images, f"{at}.images.{name}")

    def _training(self, at: str) -> Iterator[str]:
        """The images that a network is trained on."""
        for split in ("fit_train", "fit_val"):
            if not self.has_masks(split):
                kind = self.images(split)["kind"]
                advice = "use `model: {kind: trained}` or `{kind: pretrained}`"
                yield f"{at}.splits.{split}: {kind} has no masks to train a network on; {advice}"


def _images(images: Config, at: str) -> Iterator[str]:
    """One set of images."""
    if images["kind"] == "ade20k" and (images["layout"] == "full") != bool(images["classes"]):
        needs = (
            "needs the classes you want, by their numbers" if not images["classes"] else "brings its own 150 classes"
        )
        yield f"{at}.classes: the layout {images['layout']} {needs}"
    if images["kind"] == "scenes":
        least, most = images["digits"]
        if least > most:
            yield f"{at}.digits: {least} is more than {most}"
        if images["canvas"] % images["patch"]:
            yield f"{at}.canvas: {images['canvas']} is not a multiple of patch, {images['patch']}"
        largest = 8 * max(images["zooms"])
        if largest > images["canvas"]:
            yield f"{at}.zooms: a digit of {largest} pixels does not fit a canvas of {images['canvas']}"
    if images.get("classes"):
        owners: dict[int, str] = {}
        for owner, ids in [("void", images.get("void", [])), *images["classes"].items()]:
            for mask_id in ids:
                if mask_id in owners:
                    yield f"{at}.classes: mask id {mask_id} is both {owners[mask_id]} and {owner}"
                owners[mask_id] = owner
