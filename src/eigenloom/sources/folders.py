"""Image folders: the ImageNet layout, and images with masks beside them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.provenance import canonical_json
from eigenloom.store.atomic import read_json, write_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_CLASSES = 255
SHOWN = 20
MAX_LIST_BYTES = 512 << 20
MaskCode = Literal["index", "ade20k-full"]
"""How a mask holds its ids: as grey values or palette indices; as ``floor(R/10) * 256 + G``, others being void."""
MAX_ID = {"index": 255, "ade20k-full": 25 * 256 + 255}
MODES = {"index": ("L", "P"), "ade20k-full": ("RGB",)}
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises on files it cannot, or will not, decode."""


def list_images(root: Path, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """List the image files below a folder: relative paths, sorted as bytes, hidden ones left out.

    Links to folders are followed, except to one they lie in.

    Raises:
        StoreError: the folder does not exist.
    """
    if not root.is_dir():
        raise StoreError(f"{root}: no such folder; set images.*.root to where the images are")
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        kept = (name for name in subfolders if not name.startswith("."))
        subfolders[:] = [name for name in kept if not here.resolve().is_relative_to((here / name).resolve())]
        shown = (here / name for name in files if not name.startswith("."))
        names += [p.relative_to(root).as_posix() for p in shown if p.suffix.lower() in suffixes and p.is_file()]
    return sorted(names, key=str.encode)


def choose(names: Sequence[str], root: Path, seed: int, first: int, n_examples: int) -> list[str]:
    """Take ``n_examples`` of a seeded order of the names, from ``first`` on; a smaller number gives a prefix.

    Raises:
        DataError: there are fewer; the message has both numbers and the first paths.
    """
    if len(names) < first + n_examples:
        raise DataError(
            f"{root}: holds {len(names)} images ({', '.join(names[:3])}, ...), but the configuration takes"
            f" {n_examples} from number {first} on; lower n_examples or first"
        )
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    return [names[i] for i in order[first : first + n_examples]]


def prepare_image_folder(
    directory: Path, options: Mapping[str, Any], *, seed: int, split: str, first: int, n_examples: int
) -> dict[str, Any]:
    """List a folder in the ImageNet layout, ``root/<class>/...``, into ``files.json``; return the edge's facts.

    Raises:
        ConfigError: an unknown option.
        DataError: too few images, or images that cannot be read.
    """
    del split
    root = root_of(options, ())
    listed = list_images(root)
    chosen = choose(listed, root, seed, first, n_examples)
    names = sorted({name.split("/")[0] for name in listed if "/" in name}, key=str.encode)  # the same for every split
    class_ids = [names.index(name.split("/")[0]) if "/" in name else None for name in chosen]
    _refuse(root, {name: reason for name in chosen if (reason := _unreadable(root / name))})
    files = _write_list(directory, {"root": str(root), "images": chosen, "image_class": class_ids})
    return {"classes": [], "void": 0, "has_masks": False, "image_classes": names, "files": files}


def prepare_segmentation_folder(
    directory: Path, options: Mapping[str, Any], *, seed: int, split: str, first: int, n_examples: int
) -> dict[str, Any]:
    """Pair ``root/images/**`` with ``root/masks/**.png`` by relative stem into ``files.json``; return the edge's facts.

    Raises:
        ConfigError: an unknown option, classes that overlap, or more than 255 of them.
        DataError: images without mask, masks without image, sizes that differ, files that cannot be read.
    """
    del split
    root = root_of(options, ("classes", "void"))
    named = dict(options.get("classes", ()))  # a mapping, or pairs where the order has to survive canonical JSON
    listed = list_images(root / "images")
    images = {name.rpartition(".")[0]: name for name in listed}
    masks = {name.rpartition(".")[0]: name for name in list_images(root / "masks", (".png",))}
    _refuse(root, {name: "has a namesake" for name in listed if images[name.rpartition(".")[0]] != name})
    return publish_pairs(
        directory, root, (Path("images"), images), (Path("masks"), masks), named, options.get("void", []),
        seed=seed, first=first, n_examples=n_examples,
    )  # fmt: skip


def publish_pairs(
    directory: Path,
    root: Path,
    images: tuple[Path, Mapping[str, str]],
    masks: tuple[Path, Mapping[str, str]],
    classes: Mapping[str, Sequence[int]],
    void: Sequence[int],
    *,
    seed: int,
    first: int,
    n_examples: int,
    code: MaskCode = "index",
) -> dict[str, Any]:
    """Pair images with masks of equal stem into ``files.json``; return the edge's facts.

    Args:
        directory: of the edge.
        root: of the data.
        images: folder below the root, and stem -> path of each image below it.
        masks: the same of the masks.
        classes: name of each class -> ids in the masks; stored labels follow their order, from 1.
        void: ids of no class.
        seed: of the order.
        first: how many examples of the seeded order to leave out at the front.
        n_examples: how many to take.
        code: how masks hold ids.

    Raises:
        ConfigError: classes that overlap, or more than 255 of them.
        DataError: images without mask, masks without image, sizes that differ, files that cannot be read.
    """
    (image_folder, image_of), (mask_folder, mask_of) = images, masks
    table = label_table(classes, void, MAX_ID[code])
    wrong = {image_of[stem]: "has no mask" for stem in image_of.keys() - mask_of.keys()}
    wrong |= {mask_of[stem]: "is a mask without an image" for stem in mask_of.keys() - image_of.keys()}
    _refuse(root, wrong)
    chosen = choose(sorted(image_of, key=str.encode), root / image_folder, seed, first, n_examples)
    for stem in chosen:
        pair = root / image_folder / image_of[stem], root / mask_folder / mask_of[stem]
        if reason := _pair_problem(*pair, MODES[code]):
            wrong[image_of[stem]] = reason
    _refuse(root, wrong)
    document = {
        "root": str(root),
        "images": [(image_folder / image_of[stem]).as_posix() for stem in chosen],
        "masks": [(mask_folder / mask_of[stem]).as_posix() for stem in chosen],
        "code": code,
        "table": {str(id_): label for id_, label in table.items()},
    }
    files = _write_list(directory, document)
    return {"classes": ["void", *classes], "void": 0, "has_masks": True, "image_classes": [], "files": files}


def label_table(
    classes: Mapping[str, Sequence[int]], void: Sequence[int], max_id: int = MAX_ID["index"]
) -> dict[int, int]:
    """Map mask ids to stored labels: 0 void, then classes in the order they are listed.

    Raises:
        ConfigError: none or more than 255 classes, an id outside 0..``max_id``, or one that is listed twice.
    """
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise ConfigError(f"images.*.classes: {len(classes)} classes; 1 to {MAX_CLASSES} fit a label of one byte")
    table: dict[int, int] = {}
    for label, ids in enumerate([void, *classes.values()]):
        for id_ in ids:
            if not 0 <= id_ <= max_id:
                raise ConfigError(f"images.*.classes: mask id {id_} is not in 0..{max_id}, all that a mask can hold")
            if id_ in table:
                raise ConfigError(f"images.*.classes: mask id {id_} is listed twice")
            table[id_] = label
    return table


class FolderImages:
    """Images, and masks if there are, read from a user's folder; an ``ImageSet``."""

    def __init__(self, directory: Path, edge: Mapping[str, Any]):
        """Read the list beside an edge."""
        listed = read_json(directory / "files.json", MAX_LIST_BYTES)
        self.classes = tuple(edge["classes"])
        self.void = edge["void"]
        self.has_masks = edge["has_masks"]
        self.image_classes = tuple(edge["image_classes"])
        self._root = Path(listed["root"])
        self._images: list[str] = listed["images"]
        self._masks: list[str] = listed.get("masks", [])
        self._class_ids: list[int | None] = listed.get("image_class", [None] * len(self._images))
        self._code: MaskCode = listed.get("code", "index")
        self._table = {int(id_): label for id_, label in listed.get("table", {}).items()}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        """Decode one image, uint8 ``[H, W, 3]``.

        Raises:
            DataError: it cannot be decoded.
        """
        path = self._root / self._images[index]
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be read as an image ({error}); replace it or take it away") from None

    def mask(self, index: int) -> np.ndarray:
        """Decode one mask and map its ids to stored labels, uint8 ``[H, W]``.

        Raises:
            DataError: no masks, an RGB mask, or an id in neither list.
        """
        if not self.has_masks:
            raise DataError(
                f"{self._root}: an image_folder has no masks; patch labels need a segmentation_folder or ade20k"
            )
        path = self._root / self._masks[index]
        try:
            with Image.open(path) as image:
                ids = np.asarray(image).astype(np.int64)
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be read as a mask ({error})") from None
        if self._code == "ade20k-full":
            ids = ids[..., 0] // 10 * 256 + ids[..., 1]
        lookup = np.full(MAX_ID[self._code] + 1, -1 if self._code == "index" else self.void, dtype=np.int16)
        lookup[list(self._table)] = list(self._table.values())
        labels = lookup[ids]
        if (labels < 0).any():
            unknown = int(ids[labels < 0][0])
            raise DataError(f"{path}: mask id {unknown} is in neither classes nor void; add it to one of them")
        return labels.astype(np.uint8)

    def name(self, index: int) -> str:
        """Return the image's path below the folder."""
        return self._images[index]

    def image_class(self, index: int) -> int | None:
        """Return the class of an image, by its folder."""
        return self._class_ids[index]


def root_of(options: Mapping[str, Any], others: Sequence[str]) -> Path:
    """Return the folder's path and refuse options nobody knows.

    Raises:
        ConfigError: names the option, or says that ``root`` is missing.
    """
    unknown = options.keys() - {"root", *others}
    if unknown or "root" not in options:
        raise ConfigError(f"images: unknown option {sorted(unknown)[0]!r}" if unknown else "images: root is missing")
    return Path(options["root"])


def _unreadable(path: Path) -> str:
    """Say why the header of an image cannot be read, nothing if it can."""
    try:
        with Image.open(path):
            return ""
    except UNREADABLE as error:
        return f"cannot be read as an image ({error})"


def _pair_problem(image: Path, mask: Path, modes: Sequence[str]) -> str:
    """Say why an image and its mask do not go together, nothing if they do."""
    if reason := _unreadable(image) or _unreadable(mask):
        return reason
    with Image.open(image) as picture, Image.open(mask) as labels:
        if labels.mode not in modes:
            needed = "8-bit grey or palette is needed, not colour" if "L" in modes else "colour is needed"
            return f"its mask has mode {labels.mode}; {needed}"
        if picture.size != labels.size:
            return f"is {picture.size[0]} x {picture.size[1]}, its mask {labels.size[0]} x {labels.size[1]}"
    return ""


def _refuse(root: Path, wrong: Mapping[str, str]) -> None:
    """Raise one error that lists the first files and the total."""
    if wrong:
        lines = [f"{name} {wrong[name]}" for name in sorted(wrong)[:SHOWN]]
        raise DataError(f"{root}: {len(wrong)} file(s) cannot be used: {'; '.join(lines)}")


def _write_list(directory: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Publish ``files.json`` and return the edge's entry for it."""
    path = directory / "files.json"
    digest = write_text(path, canonical_json(document) + "\n")
    return {"files.json": {"bytes": path.stat().st_size, "sha256": digest}}
