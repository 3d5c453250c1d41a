"""Before a basis meets the rows of a recording: is it the recording, the layer and the scale it was fitted on?"""

from pathlib import Path

from eigenloom.bases.base import Basis, check_origin, load_basis
from eigenloom.errors import ConfigError, MismatchError
from eigenloom.moments import agreement
from eigenloom.provenance import canonical_json, text_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.recording import ActivationStore

AGREEMENT_ROWS = 4096


def layer_number(store: ActivationStore, layer: str) -> int:
    """Return the stored layer that goes by a name such as ``layer-03``.

    Raises:
        ConfigError: it was not recorded.
    """
    names = {f"layer-{number:02d}": number for number in store.layers}
    if layer not in names:
        raise ConfigError(f"{store.directory}: {layer} is not stored; stored are {', '.join(sorted(names))}")
    return names[layer]


def signature_digest(store: ActivationStore) -> str:
    """Return the sha256 of a recording's signature, by which edges compare recordings."""
    return text_digest(canonical_json(store.signature))


def matching_basis(path: str | Path, store: ActivationStore, layer: str, allow_shift: bool = False) -> Basis:
    """Load a basis to be applied to one layer of a recording, if it belongs to it.

    Compares layer and signature with those it was fitted on, and the first 4096 rows with its standardization.

    Args:
        path: directory or ``meta.json`` of the basis.
        store: the recording.
        layer: name of the layer.
        allow_shift: let rows pass that differ by more than shift and spread allow.

    Raises:
        MismatchError: the basis belongs to other rows; both values are named.
        ConfigError: the layer was not recorded.
        StoreError: the artifact is damaged.
    """
    number = layer_number(store, layer)
    check_origin(path, {"layer": layer, "signature": store.signature})
    basis = load_basis(path)
    if basis.standardization.layer not in ("", layer):
        raise MismatchError(
            f"{path}: its standardization is that of {basis.standardization.layer}, not of {layer}; fit it again"
        )
    rows = ActivationRows(store, number, batch_size=AGREEMENT_ROWS)
    if rows.n_features != basis.n_features:
        raise MismatchError(
            f"{store.directory}: rows of {rows.n_features} features, but {path} takes {basis.n_features}"
        )
    agreement(next(iter(rows)), basis.standardization, allow_shift)
    return basis
