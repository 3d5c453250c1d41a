"""Several banks in one artifact of kind ``expert_banks``: of some trainings, families and sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eigenloom.errors import StoreError
from eigenloom.experts.bank import ExpertBank
from eigenloom.store.artifact import read_artifact, write_artifact

KIND = "expert_banks"
ARRAYS = ("bank", "codes", "adapters")
NOT_KEPT = ("settings", "history")
"""Metrics of a bank that the specification says already, or that nobody reads afterwards."""


def save_banks(
    directory: str | Path,
    banks: Mapping[str, ExpertBank],
    *,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Write banks by name (see ``write_artifact``); return the digest of the ``meta.json``.

    Arrays are ``NAME.bank``, ``NAME.codes`` and ``NAME.adapters``; the parameter ``banks`` holds the rest by name.
    """
    arrays: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, bank in banks.items():
        arrays |= {f"{name}.{part}": getattr(bank, part) for part in ARRAYS}
        described[name] = {
            "activation": bank.activation,
            "transposed": bank.transposed,
            "family": bank.family,
            "expert_names": list(bank.expert_names),
            "metrics": {key: value for key, value in bank.metrics.items() if key not in NOT_KEPT},
        }
    return write_artifact(
        directory, kind=KIND, parameters={"banks": described}, arrays=arrays, spec=spec, inputs=inputs, run=run
    )


def load_banks(path: str | Path) -> dict[str, ExpertBank]:
    """Load banks by name from a directory or its ``meta.json``.

    Raises:
        StoreError: the artifact is damaged, of another kind, or lacks an array.
    """
    artifact = read_artifact(path, kind=KIND)
    arrays = artifact.arrays
    try:
        return {
            name: ExpertBank(
                arrays[f"{name}.bank"], arrays[f"{name}.codes"], arrays[f"{name}.adapters"], told["activation"],
                told["transposed"], told["family"], tuple(told["expert_names"]), told["metrics"],
            )
            for name, told in artifact.parameters["banks"].items()
        }  # fmt: skip
    except KeyError as error:
        raise StoreError(f"{artifact.directory}: lacks {error} of a bank; run the rule that makes it") from None
