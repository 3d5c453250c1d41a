"""The trained bank of one family, in the units of the weights; saved as an artifact of kind ``expert_bank``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenloom.errors import DataError, StoreError
from eigenloom.experts.model import bases
from eigenloom.store.artifact import read_artifact, write_artifact

KIND = "expert_bank"


@dataclass(frozen=True, eq=False)
class ExpertBank:
    """``m`` atoms that all experts of a family share, and what each expert makes of them.

    Fields: ``bank [m, r, d]``, ``codes [E, m]``, ``adapters [E, p, r]``, or ``[E, p, r + 1]`` where a constant row is
    appended to every basis (``center=True``), float32; ``activation``, ``identity``, ``silu`` or ``tanh``;
    ``transposed``, whether ``W_i^T`` was factored, since the weights have more rows than columns; ``family``;
    ``expert_names``; ``metrics``, JSON values.
    """

    bank: Tensor
    codes: Tensor
    adapters: Tensor
    activation: str
    transposed: bool
    family: str
    expert_names: tuple[str, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_experts(self) -> int:
        """Number of experts ``E``."""
        return self.codes.shape[0]

    @property
    def rank(self) -> int:
        """Rows ``r`` of an atom."""
        return self.bank.shape[1]

    @property
    def num_bases(self) -> int:
        """Number of atoms ``m``."""
        return self.bank.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(p, d)`` of the weights as they were given."""
        p, d = self.adapters.shape[1], self.bank.shape[2]
        return (d, p) if self.transposed else (p, d)

    @property
    def n_parameters(self) -> int:
        """Numbers in adapters, atoms and codes."""
        return self.adapters.numel() + self.bank.numel() + self.codes.numel()

    @property
    def saving(self) -> float:
        """Parameters over those of the weights: below 1 the bank is smaller."""
        p, d = self.shape
        return self.n_parameters / (self.n_experts * p * d)

    def basis(self, i: int) -> Tensor:
        """Return ``M_i`` ``[r, d]``, a constant row ``1 / sqrt(d)`` below it where there is one."""
        m = bases(self.codes[i : i + 1], self.bank, self.activation)[0]
        if self.adapters.shape[2] > self.rank:
            m = torch.cat([m, m.new_full((1, m.shape[1]), m.shape[1] ** -0.5)])
        return m

    def expert(self, i: int) -> Tensor:
        """Return the reconstruction of expert ``i`` as it was given, ``[p, d]`` float32.

        Raises:
            DataError: there is no such expert.
        """
        if not 0 <= i < self.n_experts:
            raise DataError(f"expert {i} of family {self.family!r}: there are {self.n_experts}, counted from 0")
        w = self.adapters[i] @ self.basis(i)
        return w.T if self.transposed else w

    def reconstruct(self) -> Tensor:
        """Return all experts ``[E, p, d]`` float32."""
        return torch.stack([self.expert(i) for i in range(self.n_experts)])


def save_bank(
    bank: ExpertBank,
    directory: str | Path,
    *,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
    run: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Write a bank as an artifact (see ``write_artifact``); return the digest of its ``meta.json``.

    Codes of which at most half are nonzero in every expert are written as ``code_values`` and ``code_indices [E, k]``.
    """
    arrays = {"bank": bank.bank, "adapters": bank.adapters}
    most = int((bank.codes != 0).sum(1).max())
    if 2 * most <= bank.num_bases:
        indices = bank.codes.abs().topk(max(most, 1), dim=1).indices.sort(1).values
        arrays |= {"code_values": bank.codes.gather(1, indices), "code_indices": indices.to(torch.int32)}
    else:
        arrays["codes"] = bank.codes
    parameters = {
        "activation": bank.activation,
        "transposed": bank.transposed,
        "family": bank.family,
        "expert_names": list(bank.expert_names),
        "metrics": dict(bank.metrics),
    }
    return write_artifact(
        directory, kind=KIND, parameters=parameters, arrays=arrays, spec=spec, inputs=inputs, run=run, files=files
    )


def load_bank(path: str | Path, verify: bool = False) -> ExpertBank:
    """Load a bank from its directory or its ``meta.json``.

    Raises:
        StoreError: the artifact is damaged, of another kind, or its arrays do not belong together.
    """
    artifact = read_artifact(path, kind=KIND, verify=verify)
    arrays, parameters = artifact.arrays, artifact.parameters
    try:
        if "codes" in arrays:
            codes = arrays["codes"]
        else:
            values = arrays["code_values"]
            empty = values.new_zeros(values.shape[0], arrays["bank"].shape[0])
            codes = empty.scatter(1, arrays["code_indices"].long(), values)
        names = tuple(parameters["expert_names"])
        bank = ExpertBank(
            arrays["bank"], codes, arrays["adapters"], parameters["activation"], parameters["transposed"],
            parameters["family"], names, parameters["metrics"],
        )  # fmt: skip
    except KeyError as error:
        raise StoreError(f"{artifact.directory}: an expert bank needs {error}, which the artifact lacks") from None
    e, m = codes.shape
    extra = bank.adapters.shape[2] - bank.rank
    if len(bank.adapters) != e or len(bank.bank) != m or len(names) != e or extra not in (0, 1):
        shapes = {name: list(tensor.shape) for name, tensor in sorted(arrays.items())}
        raise StoreError(f"{artifact.directory}: arrays of {shapes} and {len(names)} names are no bank; fit it again")
    return bank
