"""What a schema cannot say: the parts of a configuration that contradict each other, one line each."""

from collections.abc import Iterator
from math import isqrt
from typing import Any

from eigenloom.bases.registry import find_kind
from plan import CODINGS_BY_GEOMETRY, Plan
from source import PROBE_SPLITS, WITH_MASKS, Source, patches_of

Config = dict[str, Any]


def contradictions(config: Config) -> list[str]:
    """Return one line per contradiction in a configuration that its schema accepts."""
    lines = [*_references(config), *_bases(config), *_codings(config)]
    if lines:
        return lines
    plan = Plan(config)
    for source in plan.sources.values():
        lines += _source(source)
    return lines or list(_sizes(plan))


def _references(config: Config) -> Iterator[str]:
    """Names that nothing carries."""
    for name, source in config["sources"].items():
        for split, cut in source["splits"].items():
            if cut["images"] not in source["images"]:
                at = f"sources.{name}.splits.{split}.images"
                yield f"{at}: no set of images is called `{cut['images']}`; known: {', '.join(source['images'])}"
        if source["model"]["kind"] == "trained":
            other = source["model"]["source"]
            trained = [n for n, s in config["sources"].items() if s["model"]["kind"] == "vit"]
            if other not in trained:
                known = ", ".join(trained) or "none"
                yield f"sources.{name}.model.source: `{other}` trains no network; sources that do: {known}"


def _bases(config: Config) -> Iterator[str]:
    """Bases whose names collide or whose codings do not fit."""
    for name, basis in config["bases"].items():
        owner = name.removesuffix("-random")
        if owner != name and owner in config["bases"]:
            yield f"bases.{name}: this is the name of the floor of `{owner}`; rename it"
        geometry = find_kind(basis["kind"]).geometry
        fitting = CODINGS_BY_GEOMETRY[geometry]
        for coding in basis.get("codings", []):
            entry = config["codings"].get(coding)
            if entry is None:
                known = ", ".join(n for n, c in config["codings"].items() if c["kind"] in fitting)
                yield f"bases.{name}.codings: no coding is called `{coding}`; those that fit: {known}"
            elif entry["kind"] not in fitting:
                yield (
                    f"bases.{name}.codings: `{coding}` ({entry['kind']}) does not fit {basis['kind']}, whose codes are "
                    f"{geometry}s; kinds that do: {', '.join(fitting)}"
                )
        if 0 < (basis.get("init_rows") or 0) < basis.get("n_clusters", 0):
            yield f"bases.{name}.init_rows: {basis['init_rows']} rows cannot seed {basis['n_clusters']} clusters"
        if not basis.get("codings"):
            yield f"bases.{name}: missing key `codings`"


def _codings(config: Config) -> Iterator[str]:
    """Codings whose expanded names collide."""
    names: dict[str, str] = {}
    for name, entry in config["codings"].items():
        sizes = entry.get("k")
        for own in [f"{name}-{k:05d}" for k in sizes] if isinstance(sizes, list) else [name]:
            if own in names:
                yield f"codings.{name}: `{own}` is also made by codings.{names[own]}"
            names[own] = name


def _source(source: Source) -> Iterator[str]:
    """One source's images, network and layers."""
    at = f"sources.{source.name}"
    depth = source.model["depth"]
    for layer in source.config["layers"]:
        if layer >= depth:
            yield f"{at}.layers: no layer {layer}; 0-based: the last of {depth} is {depth - 1}"
    if source.trainer is None:
        yield from _network(source, at)
    for split in source.splits:
        images = source.images(split)
        if split in PROBE_SPLITS and not source.has_masks(split):
            known = ", ".join(WITH_MASKS)
            yield f"{at}.splits.{split}: probes need patch labels; {images['kind']} has none, {known} have"
        found = patches_of(images, source.model["patch"])
        if source.model["preprocess"]["resize"] == "none" and found not in (None, source.n_tokens):
            yield f"{at}.splits.{split}: {found} patches per image, but the network takes {source.n_tokens}"
    yield from _overlaps(source, at)
    for name, images in source.config["images"].items():
        yield from _images(images, f"{at}.images.{name}")


def _network(source: Source, at: str) -> Iterator[str]:
    """The shape of a network that is trained here, and the images it is trained on."""
    model, preprocess = source.model, source.model["preprocess"]
    if model["width"] % model["heads"] or model["width"] % 4:
        yield f"{at}.model.width: {model['width']} must be a multiple of heads ({model['heads']}) and of 4"
    images, n_patches = source.images("fit_train"), preprocess["n_patches"]
    if (preprocess["resize"] == "none") != (n_patches is None):
        yield f"{at}.model.preprocess.n_patches: goes with `resize: square`, and only with it"
    elif n_patches is not None and isqrt(n_patches) ** 2 != n_patches:
        yield f"{at}.model.preprocess.n_patches: {n_patches} is no square number"
    elif source.n_tokens is None:
        kind = images["kind"]
        yield f"{at}.model.preprocess: {kind} images differ in size; set `resize: square` and `n_patches`"
    elif n_patches is None and images["canvas"] % model["patch"]:
        yield f"{at}.model.patch: {images['canvas']} pixels are not a multiple of {model['patch']}"
    if model["warmup"] > model["steps"]:
        yield f"{at}.model.warmup: {model['warmup']} is more than the {model['steps']} steps"
    for split in ("fit_train", "fit_val"):
        if not source.has_masks(split):
            kind = source.images(split)["kind"]
            yield f"{at}.splits.{split}: {kind} has no masks to train a network on; use `model: {{kind: trained}}`"


def _overlaps(source: Source, at: str) -> Iterator[str]:
    """Splits that share images of a folder; scenes never do."""
    taken: dict[str, list[tuple[int, int, str]]] = {}
    for split in source.splits:
        cut = source.config["splits"][split]
        if source.images(split)["kind"] == "scenes":
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


def _sizes(plan: Plan) -> Iterator[str]:
    """Bases larger than their data."""
    for name, entry in plan.config["bases"].items():
        for source in plan.sources.values():
            n_rows = source.n_rows("fit_train")
            n_clusters, n_components = entry.get("n_clusters") or 0, entry.get("n_components") or 0
            if n_clusters > n_rows:
                yield f"bases.{name}.n_clusters: {n_clusters}, but fit_train of {source.name} has {n_rows} rows"
            if n_components > source.width:
                yield f"bases.{name}.n_components: {n_components}, but rows of {source.name} have length {source.width}"
            if not plan.sweep(name, source.name):
                yield f"bases.{name}.codings: every k keeps all entries of {source.name}; add `dense` or a smaller k"
