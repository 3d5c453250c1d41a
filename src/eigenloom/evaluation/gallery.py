"""For each class, the patches that a method's best feature marks most, and the images they lie in.

A feature's score is ``sign(w) z``: its code, turned so that more speaks for the class. Images are those with the
highest score of any patch; the map of an image shows the scores of all its patches in the range that the feature has on
the whole split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eigenloom.codes.stream import CodeStream
from eigenloom.errors import DataError

COLUMNS = 16
"""Tiles in a row of a sheet."""
HEAT = (255, 96, 0)
CELL = 2
"""Pixels of a patch in a map, so that a map of ``r x c`` patches can be centred on a square of ``2 max(r, c)``."""


@dataclass(frozen=True)
class Shown:
    """One image of a feature: which example, its best token, the score there, and all scores as bytes ``[P]``."""

    example: int
    token: int
    score: float
    heat: np.ndarray


def scores_of(codes: CodeStream, features: Sequence[int], signs: Sequence[float]) -> Tensor:
    """Walk the codes once and keep some features, float32 ``[n_rows, len(features)]``, turned by the signs."""
    wanted, turned = torch.tensor(list(features)), torch.tensor(list(signs), dtype=torch.float32)
    return torch.cat([batch.to_dense().cpu()[:, wanted] * turned for batch in codes])


def best_images(scores: Tensor, n_tokens: int, n_images: int) -> list[Shown]:
    """Choose the images with the highest score of any patch, ties by stored order.

    Args:
        scores: of one feature, ``[n_examples * n_tokens]``.
        n_tokens: patches per image.
        n_images: how many to choose, if there are so many.

    Raises:
        DataError: the scores are not those of whole images.
    """
    if len(scores) % n_tokens:
        raise DataError(f"{len(scores)} rows are no whole images of {n_tokens} patches; record the split again")
    by_image = scores.view(-1, n_tokens)
    best, tokens = by_image.max(1)
    low, high = float(scores.min()), float(scores.max())
    heat = ((by_image - low) / max(high - low, 1e-30) * 255).round().to(torch.uint8).numpy()
    chosen = torch.sort(best, descending=True, stable=True).indices[:n_images].tolist()
    return [Shown(i, int(tokens[i]), float(best[i]), heat[i]) for i in chosen]


def picture_sheet(pictures: Sequence[np.ndarray], side: int) -> Image.Image:
    """Lay images, uint8 ``[h, w, 3]``, on a sheet of square tiles, each shrunk to fit and centred."""
    sheet = Image.new("RGB", _size(len(pictures), side), (128, 128, 128))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(picture)
        scale = side / max(tile.size)
        if scale < 1:
            tile = tile.resize([max(1, round(length * scale)) for length in tile.size], Image.Resampling.LANCZOS)
        elif scale >= 2:
            tile = tile.resize([length * int(scale) for length in tile.size], Image.Resampling.NEAREST)
        left, top = _corner(number, side)
        sheet.paste(tile, (left + (side - tile.size[0]) // 2, top + (side - tile.size[1]) // 2))
    return sheet


def heat_sheet(maps: Sequence[np.ndarray]) -> tuple[Image.Image, int]:
    """Lay maps, uint8 ``[rows, columns]``, on a sheet as the opacity of one colour; return it and a tile's side."""
    side = CELL * max((max(heat.shape) for heat in maps), default=1)
    alpha = np.zeros(_size(len(maps), side)[::-1], np.uint8)
    for number, heat in enumerate(maps):
        large = heat.repeat(CELL, 0).repeat(CELL, 1)
        left, top = _corner(number, side)
        left, top = left + (side - large.shape[1]) // 2, top + (side - large.shape[0]) // 2
        alpha[top : top + large.shape[0], left : left + large.shape[1]] = large
    colour = Image.new("RGBA", alpha.shape[::-1], (*HEAT, 0))
    colour.putalpha(Image.fromarray(alpha))
    return colour, side


def _size(n: int, side: int) -> tuple[int, int]:
    """Return width and height of a sheet."""
    return COLUMNS * side, max(1, -(-n // COLUMNS)) * side


def _corner(number: int, side: int) -> tuple[int, int]:
    """Return the left upper corner of a tile."""
    return number % COLUMNS * side, number // COLUMNS * side
