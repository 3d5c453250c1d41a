"""ADE20K in its two layouts: scene parsing (150 classes, grey masks) and the full release (colour masks beside images).

The full release's list of names is a pickle and never read; the configuration names the classes that it wants.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenloom.errors import ConfigError
from eigenloom.sources.folders import MaskCode, list_images, publish_pairs, root_of

LAYOUTS = ("scene-parsing", "full")
PARTS = ("training", "validation")
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade
name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(","))
"""Names of the classes of scene parsing: mask id 1 is the first, 0 is void."""


def prepare_ade20k(
    directory: Path, options: Mapping[str, Any], *, seed: int, split: str, first: int, n_examples: int
) -> dict[str, Any]:
    """Pair the images of one part with their masks into ``files.json``; return the edge's facts.

    Args:
        directory: of the edge.
        options: ``root``, ``part`` (training or validation), ``layout``, and with the full release ``classes``: name ->
            numbers in its masks, as a mapping or as pairs.
        seed: of the order.
        split: of no effect.
        first: how many examples of the seeded order to leave out at the front.
        n_examples: how many to take.

    Raises:
        ConfigError: an unknown option, part or layout; classes for scene parsing, none for the full release.
        StoreError: a folder is missing.
        DataError: images without mask, masks without image, sizes that differ, files that cannot be read.
    """
    del split
    root = root_of(options, ("part", "layout", "classes"))
    part, layout = options.get("part"), options.get("layout", "scene-parsing")
    if part not in PARTS or layout not in LAYOUTS:
        known = f"parts are {', '.join(PARTS)}, layouts {', '.join(LAYOUTS)}"
        raise ConfigError(f"images: no part {part!r} of a layout {layout!r}; {known}")
    classes = _classes(layout, options.get("classes"))
    code: MaskCode = "ade20k-full" if layout == "full" else "index"
    if layout == "full":
        images = Path("images", "ADE", part)
        images = images if (root / images).is_dir() else Path("images", part)
        masks, ending = images, "_seg.png"
    else:
        images, masks, ending = Path("images", part), Path("annotations", part), ".png"
    found = list_images(root / images, (".jpg",))
    labelled = [name for name in list_images(root / masks, (".png",)) if name.endswith(ending)]
    return publish_pairs(
        directory, root, (images, {name.rpartition(".")[0]: name for name in found}),
        (masks, {name.removesuffix(ending): name for name in labelled}), classes, [0],
        code=code, seed=seed, first=first, n_examples=n_examples,
    )  # fmt: skip


def _classes(layout: str, classes: Any) -> dict[str, Sequence[int]]:
    """Return name -> numbers in the masks, as the layout has them."""
    if (layout == "full") != bool(classes):
        words = "needs classes: name -> numbers in its masks" if layout == "full" else "has its own 150 classes"
        raise ConfigError(f"images: the layout {layout} of ade20k {words}")
    return dict(classes) if classes else {name: [i] for i, name in enumerate(CLASSES, 1)}
