"""From files to the two streams of a probe: recordings, a basis, and codes where they were written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.codes.checks import layer_number, matching_basis, signature_digest
from eigenloom.codes.codings import coding_from
from eigenloom.codes.shards import CodeShards, check_together, open_codes
from eigenloom.codes.views import RowCodes, StoredCodes
from eigenloom.errors import ConfigError, DataError, MismatchError
from eigenloom.provenance import file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.atomic import read_json
from eigenloom.store.recording import ActivationStore, open_store

VOID = ("masked", "class")
MAX_LIST_BYTES = 1 << 30
Codes = RowCodes | StoredCodes


@dataclass(frozen=True, eq=False)
class ProbeInputs:
    """Two streams of codes, probe_train's first, with the labels of their rows; ``void`` is the label to mask."""

    codes: tuple[Codes, Codes]
    labels: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    void: int | None

    def facts(self) -> dict[str, Any]:
        """Return what the coding became, and how many entries of each split it clipped, for the artifact."""
        train, val = self.codes
        return {
            "coding": train.coding.parameters(),
            "coding_name": train.coding.name,
            "n_clipped_train": train.n_clipped,
            "n_clipped_val": val.n_clipped,
        }


def open_inputs(
    stores: tuple[Path, Path],
    basis: Path,
    *,
    layer: str,
    coding: Mapping[str, Any],
    codes: tuple[Path, Path] | None = None,
    void: str = "masked",
    allow_shift: bool = False,
    device: torch.device | str = "cpu",
) -> ProbeInputs:
    """Open everything and check that it belongs together.

    Args:
        stores: ``store.json`` of probe_train and of probe_val.
        basis: ``meta.json``.
        layer: name.
        coding: configuration entry; numbers that depend on data are taken from probe_train.
        codes: manifests of both splits; None streams from the stores through the basis.
        void: ``masked``, or ``class`` to count void as a class.
        allow_shift: let rows pass whose moments are far from those the basis was fitted on.
        device: where rows are encoded.

    Raises:
        ConfigError: the coding does not fit, or ``void`` is neither.
        DataError: no labels, or splits that share examples.
        MismatchError: recordings, basis and codes are not of one making.
    """
    if void not in VOID:
        raise ConfigError(f"void: {void!r} is not one of {', '.join(VOID)}")
    opened = (open_store(stores[0]), open_store(stores[1]))
    refuse_shared_examples(stores, opened)
    labels = (_labels(opened[0]), _labels(opened[1]))
    if (opened[0].classes, opened[0].void) != (opened[1].classes, opened[1].void):
        raise MismatchError(
            f"{stores[0]} has the classes {opened[0].classes}, {stores[1]} {opened[1].classes}; "
            "prepare, label and join both splits again from one source"
        )
    fitted, _ = (matching_basis(basis, store, layer, allow_shift) for store in opened)
    if codes is None:
        streams = _stream(opened, fitted, layer, coding, device)
    else:
        streams = _stored(codes, stores, opened, basis, layer, coding, device)
    classes = opened[0].classes
    if classes is None:
        raise DataError(f"{stores[0]}: has labels but no names of classes; adopt the recording with its classes")
    return ProbeInputs(streams, labels, classes, opened[0].void if void == "masked" else None)


def refuse_shared_examples(paths: tuple[Path, Path], stores: tuple[ActivationStore, ActivationStore]) -> None:
    """Refuse to judge a probe on rows it was fitted to.

    Compares the edges themselves, the digests of their shards, and the lists of examples where those are at hand.

    Raises:
        DataError: how many examples are shared, and the first.
    """
    advice = "give the splits disjoint examples (`first`, `n_examples`) and record again"
    if file_digest(paths[0]) == file_digest(paths[1]):
        raise DataError(f"{paths[1]}: probe_val is the very recording that probe_train is; {advice}")
    shards = [
        {shard.get("sha256"): shard["name"] for shard in (store.sidecar or {}).get("shards", ())} for store in stores
    ]
    same = sorted(shards[1][digest] for digest in shards[0].keys() & shards[1].keys() - {None})
    if same:
        raise DataError(f"{paths[1]}: {len(same)} shards are also in {paths[0]}, {same[0]} first; {advice}")
    lists = [_examples(store) for store in stores]
    both = sorted(lists[0] & lists[1])
    if both:
        raise DataError(f"{paths[1]}: {len(both)} examples are also in {paths[0]}: {', '.join(both[:3])}; {advice}")


def _examples(store: ActivationStore) -> set[str]:
    """List the full paths of a recording's examples, as far as the images edge it was made from is still there."""
    for path in (Path(name) for name in (store.sidecar or {}).get("inputs", {})):
        listing = path.with_name("files.json")
        if "images" in path.parts and listing.is_file():
            listed = read_json(listing, MAX_LIST_BYTES)
            if isinstance(listed, dict) and "root" in listed:
                return {str(Path(listed["root"], name)) for name in listed["images"]}
    return set()


def _labels(store: ActivationStore) -> Tensor:
    """Return the labels of every row."""
    labels = store.labels()
    if labels is None:
        raise DataError(
            f"{store.directory}: has no patch labels, which a probe needs; sources of kind scenes and "
            "segmentation_folder have them"
        )
    return labels


def _stream(
    stores: tuple[ActivationStore, ActivationStore],
    basis: Basis,
    layer: str,
    coding: Mapping[str, Any],
    device: torch.device | str,
) -> tuple[Codes, Codes]:
    """Encode on the way."""
    rows = [ActivationRows(store, layer_number(store, layer)) for store in stores]
    resolved = coding_from(coding).calibrate(basis, rows[0], device)
    one, other = (
        RowCodes(r, basis, resolved, device=device, where=where)
        for r, where in zip(rows, ("probe_train", "probe_val"), strict=True)
    )
    return one, other


def _stored(
    codes: tuple[Path, Path],
    stores: tuple[Path, Path],
    opened: tuple[ActivationStore, ActivationStore],
    basis: Path,
    layer: str,
    coding: Mapping[str, Any],
    device: torch.device | str,
) -> tuple[Codes, Codes]:
    """Read codes back, after comparing their origin with recordings, layer and basis."""
    shards = tuple(open_codes(path) for path in codes)
    check_together(*shards)
    for found, path, store in zip(shards, stores, opened, strict=True):
        _check_origin(found, path, store, basis, layer)
    train = StoredCodes(shards[0], coding_from(coding), device=device).calibrated()
    return train, StoredCodes(shards[1], train.coding, device=device)


def _check_origin(codes: CodeShards, path: Path, store: ActivationStore, basis: Path, layer: str) -> None:
    """Refuse codes of another recording, layer or basis.

    Raises:
        MismatchError: names what differs, with both values.
    """
    expected = {
        "layer": layer,
        "basis": file_digest(basis),
        "signature": signature_digest(store),
        "n_rows": store.n_rows,
        "split": (store.sidecar or {}).get("split", ""),
    }
    for name, wanted in expected.items():
        found = codes.meta[name]
        if found != wanted:
            raise MismatchError(
                f"{codes.path}: its {name} is {str(found)[:16]}, but {path} and {basis} call for {str(wanted)[:16]}; "
                "run encode and join_codes again"
            )
