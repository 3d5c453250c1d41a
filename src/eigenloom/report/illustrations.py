"""Assemble a source's gallery: per basis its chosen layer and coding, per class the best feature and its images."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from eigenloom.codes.stream import CodeStream
from eigenloom.evaluation.gallery import COLUMNS, best_images, heat_sheet, picture_sheet, scores_of
from eigenloom.report.evidence import Evidence
from eigenloom.sources.images import ImageSet
from eigenloom.sources.preprocess import Preprocess
from eigenloom.store.atomic import write_bytes
from eigenloom.store.recording import ActivationStore

N_IMAGES = 4
"""Images shown per class and basis."""
N_CLASSES = 40
"""Classes shown, those of the highest average precision of any basis first."""
SIDE = 64
"""Pixels of a tile."""


def chosen_results(evidence: Evidence) -> list[str]:
    """Return, sorted by basis, the path of each basis's result of highest Probe R on the training split."""
    best: dict[str, str] = {}
    for path, document in sorted(evidence.metrics.items()):
        key = document["basis"]
        if key not in best or _rank(document) > _rank(evidence.metrics[best[key]]):
            best[key] = path
    return [best[basis] for basis in sorted(best)]


def shown_classes(evidence: Evidence, chosen: list[str]) -> list[int]:
    """Return the ids of the classes with the highest average precision of any chosen result, at most 40, rising."""
    highest: dict[int, float] = {}
    for path in chosen:
        for row in evidence.classes[path]:
            if row["best_feature"] is not None and row["ap"] is not None:
                number = int(row["id"])
                highest[number] = max(highest.get(number, 0.0), row["ap"])
    return sorted(sorted(highest, key=lambda number: -highest[number])[:N_CLASSES])


class Sheets:
    """Pictures and maps collected on the way, written as two sheets at the end."""

    def __init__(self, images: ImageSet, store: ActivationStore) -> None:
        """Take images as the network saw them, before scaling."""
        self._images, self._tokens = images, store.tokens_per_example
        self._preprocess = Preprocess(**store.signature["preprocess"])
        self._names, self._void = store.classes or (), store.void
        labels = store.labels()
        self._labels = [] if labels is None else labels.tolist()
        self._numbers: dict[int, int] = {}
        self._maps: list[Any] = []
        self._pictures: list[Any] = []

    def add(self, codes: CodeStream, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Find the images of some classes' best features in one walk over the codes."""
        features = [int(row["best_feature"]) for row in rows]
        scores = scores_of(codes, features, [1.0 if row["w"] > 0 else -1.0 for row in rows])
        return [self._entry(row, scores[:, column]) for column, row in enumerate(rows)]

    def _entry(self, row: Mapping[str, Any], scores: Any) -> dict[str, Any]:
        """Describe one class: its feature and its images."""
        tiles = []
        for shown in best_images(scores, self._tokens, N_IMAGES):
            picture = self._picture(shown.example)
            columns = self._pictures[picture].shape[1] // self._preprocess.patch
            self._maps.append(shown.heat.reshape(-1, columns))
            tiles.append({
                "picture": picture, "map": len(self._maps) - 1, "example": self._images.name(shown.example),
                "patch": list(divmod(shown.token, columns)), "score": round(shown.score, 5),
                "label": self._label(shown.example * self._tokens + shown.token),
            })  # fmt: skip
        facts = {key: row[key] for key in ("class", "ap", "ap_floor", "ap_random")}
        sign = 1 if row["w"] > 0 else -1
        return {"id": int(row["id"]), **facts, "feature": int(row["best_feature"]), "sign": sign, "images": tiles}

    def _label(self, row: int) -> str | None:
        """Return the name of a row's label, None for void."""
        label = self._labels[row] if self._labels else self._void
        return None if label == self._void or label is None else self._names[label]

    def _picture(self, example: int) -> int:
        """Return the number of an example's picture, which is read once."""
        if example not in self._numbers:
            self._numbers[example] = len(self._pictures)
            self._pictures.append(self._preprocess.pixels(self._images.image(example)))
        return self._numbers[example]

    def write(self, pictures: Path, maps: Path) -> dict[str, Any]:
        """Write both sheets; return their facts."""
        heat, side = heat_sheet(self._maps)
        sheets = {
            "pictures": (pictures, picture_sheet(self._pictures, SIDE), SIDE, {"format": "JPEG", "quality": 90}),
            "maps": (maps, heat, side, {"format": "PNG", "optimize": True}),
        }
        return {
            name: {"file": path.name, "sha256": write_bytes(path, _encoded(sheet, **how)), "side": side,
                   "columns": COLUMNS, "size": list(sheet.size)}
            for name, (path, sheet, side, how) in sheets.items()
        }  # fmt: skip


def _rank(document: Mapping[str, Any]) -> float:
    """Order results; one without a value comes last."""
    value = document["metrics"].get("probe_r_train", document["metrics"].get("probe_r_train_balanced"))
    return float("-inf") if value is None else float(value)


def rows_of(evidence: Evidence, path: str, classes: list[int]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a result's classes that have a feature, in the order of ``classes``."""
    by_id = {int(row["id"]): row for row in evidence.classes[path]}
    for number in classes:
        row = by_id.get(number)
        if row is not None and row["best_feature"] is not None and row["w"]:
            yield row


def _encoded(sheet: Image.Image, **how: Any) -> bytes:
    """Return an image file."""
    file = io.BytesIO()
    sheet.save(file, **how)
    return file.getvalue()
