"""Images through a network: rows are the outputs of its blocks for the patches of every image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

from source import PROBE_SPLITS, Source, Wildcards

WITH_MASKS = ("scenes", "segmentation_folder")
Config = Mapping[str, Any]


def patches_of(images: Config, patch: int) -> int | None:
    """Return the number of patches of images that are taken as they are, where the configuration tells their size."""
    return (images["canvas"] // patch) ** 2 if "canvas" in images else None


@dataclass(frozen=True)
class ImageSource(Source):
    """One set of images, a network and layers of it; ``owner`` trains the network, when another source does."""

    examples: ClassVar[str] = "images"
    recorder: ClassVar[str] = "record"
    labeller: ClassVar[str] = "label"
    has_cls: ClassVar[bool] = True

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

    @property
    def origin(self) -> str:
        """Name of the source that trains the network."""
        return (self.owner or self).name

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.model["width"]

    @property
    def n_tokens(self) -> int | None:
        """Patches per image; None where the configuration does not tell, which is refused."""
        trained_on = self if self.owner is None else self.owner
        assert isinstance(trained_on, ImageSource)
        return self.model["preprocess"]["n_patches"] or patches_of(trained_on.images("fit_train"), self.model["patch"])

    @property
    def layer_numbers(self) -> list[int]:
        """The recorded blocks, 0-based."""
        return self.config["layers"]

    def images(self, split: str) -> Config:
        """Return the set of images that a split is cut from."""
        return self.config["images"][self.config["splits"][split]["images"]]

    def has_masks(self, split: str) -> bool:
        """Say whether the patches of a split have labels."""
        return self.images(split)["kind"] in WITH_MASKS

    def model_edges(self) -> list[str]:
        """Return the edge of the network."""
        return [f"artifacts/{self.origin}/model/meta.json"]

    def absent(self) -> Iterator[str]:
        """Yield a remark for each folder of images that is not there."""
        for name, images in self.config["images"].items():
            if "root" in images and not Path(images["root"]).exists():
                yield f"sources.{self.name}.images.{name}: {images['root']} is absent; edits of it are not seen"

    def _jobs(self) -> Mapping[str, list[Wildcards]]:
        drawn = [split for split in self.splits if self.images(split)["kind"] == "scenes"]
        return {
            "draw": [self.of(split) for split in drawn],
            "list_images": [self.of(split) for split in self.splits if split not in drawn],
            "train": [{"source": self.name}] if self.owner is None else [],
            "record": self.shards(),
            "label": [self.of(split) for split in self.splits if self.has_masks(split)],
        }

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction between images, network and layers."""
        at = f"sources.{self.name}"
        depth = self.model["depth"]
        for layer in self.config["layers"]:
            if layer >= depth:
                yield f"{at}.layers: no layer {layer}; 0-based: the last of {depth} is {depth - 1}"
        if self.owner is None:
            yield from self._network(at)
        for split in self.splits:
            images = self.images(split)
            if split in PROBE_SPLITS and not self.has_masks(split):
                known = ", ".join(WITH_MASKS)
                yield f"{at}.splits.{split}: probes need patch labels; {images['kind']} has none, {known} have"
            found = patches_of(images, self.model["patch"])
            if self.model["preprocess"]["resize"] == "none" and found not in (None, self.n_tokens):
                yield f"{at}.splits.{split}: {found} patches per image, but the network takes {self.n_tokens}"
        yield from self._overlaps(at)
        for name, images in self.config["images"].items():
            yield from _images(images, f"{at}.images.{name}")

    def _network(self, at: str) -> Iterator[str]:
        """The shape of a network that is trained here, and the images it is trained on."""
        model, preprocess = self.model, self.model["preprocess"]
        if model["width"] % model["heads"] or model["width"] % 4:
            yield f"{at}.model.width: {model['width']} must be a multiple of heads ({model['heads']}) and of 4"
        images, n_patches = self.images("fit_train"), preprocess["n_patches"]
        if (preprocess["resize"] == "none") != (n_patches is None):
            yield f"{at}.model.preprocess.n_patches: goes with `resize: square`, and only with it"
        elif n_patches is not None and isqrt(n_patches) ** 2 != n_patches:
            yield f"{at}.model.preprocess.n_patches: {n_patches} is no square number"
        elif self.n_tokens is None:
            kind = images["kind"]
            yield f"{at}.model.preprocess: {kind} images differ in size; set `resize: square` and `n_patches`"
        elif n_patches is None and images["canvas"] % model["patch"]:
            yield f"{at}.model.patch: {images['canvas']} pixels are not a multiple of {model['patch']}"
        if model["warmup"] > model["steps"]:
            yield f"{at}.model.warmup: {model['warmup']} is more than the {model['steps']} steps"
        for split in ("fit_train", "fit_val"):
            if not self.has_masks(split):
                kind = self.images(split)["kind"]
                yield f"{at}.splits.{split}: {kind} has no masks to train a network on; use `model: {{kind: trained}}`"

    def _overlaps(self, at: str) -> Iterator[str]:
        """Splits that share images of a folder; scenes never do."""
        taken: dict[str, list[tuple[int, int, str]]] = {}
        for split in self.splits:
            cut = self.config["splits"][split]
            if self.images(split)["kind"] == "scenes":
                continue
            first, end = cut["first"], cut["first"] + cut["n_examples"]
            for other_first, other_end, other in taken.setdefault(cut["images"], []):
                if first < other_end and other_first < end:
                    yield f"{at}.splits.{split}: shares images with {other}; `first: {max(other_end, first)}` would not"
            taken[cut["images"]].append((first, end, split))


def _images(images: Config, at: str) -> Iterator[str]:
    """One set of images."""
    if images["kind"] == "scenes":
        least, most = images["digits"]
        if least > most:
            yield f"{at}.digits: {least} is more than {most}"
        if images["canvas"] % images["patch"]:
            yield f"{at}.canvas: {images['canvas']} is not a multiple of patch, {images['patch']}"
        largest = 8 * max(images["zooms"])
        if largest > images["canvas"]:
            yield f"{at}.zooms: a digit of {largest} pixels does not fit a canvas of {images['canvas']}"
    if images["kind"] == "segmentation_folder":
        owners: dict[int, str] = {}
        for owner, ids in [("void", images["void"]), *images["classes"].items()]:
            for mask_id in ids:
                if mask_id in owners:
                    yield f"{at}.classes: mask id {mask_id} is both {owners[mask_id]} and {owner}"
                owners[mask_id] = owner
