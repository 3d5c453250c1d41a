"""What dictionaries with an encoder share: an affine map, an activation that leaves few entries, a linear decoder."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eigenloom.bases.base import Basis
from eigenloom.batches import generator
from eigenloom.errors import DataError

ACTIVATIONS = ("relu", "topk", "jumprelu")


@dataclass(frozen=True, eq=False)
class SparseCode(Basis):
    """A dictionary of ``k`` elements in the fitted space; ``k`` may exceed ``d``, and elements need not be orthogonal.

    Fields: ``center [d]``, subtracted before encoding; ``encoder [k, d]`` and ``encoder_bias [k]``; ``threshold [k]``,
    zeros but for ``jumprelu``; ``decoder [k, d]``, the elements as rows, and ``decoder_bias [d]``, the reconstruction
    of a code without entries; all float32. ``activation`` is one of ``ACTIVATIONS``; ``n_active`` the most entries
    that ``topk`` leaves of a row, else 0. Codes are never negative.
    """

    geometry: ClassVar[str] = "projection"

    center: Tensor
    encoder: Tensor
    encoder_bias: Tensor
    threshold: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    activation: str
    n_active: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return self.decoder.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes ``[b, k]`` of rows ``[b, d]``, none negative."""
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"rows of shape {tuple(x.shape)} cannot be encoded: this basis takes [b, {self.n_features}]"
            )
        centred = x.float() - self.center.to(x.device)
        drive = torch.addmm(self.encoder_bias.to(x.device), centred, self.encoder.to(x.device).T)
        return activate(drive, self.activation, self.n_active, self.threshold.to(x.device))

    def decode(self, z: Tensor) -> Tensor:
        """Return ``decoder_bias + z @ decoder``, ``[b, d]``."""
        if z.ndim != 2 or z.shape[1] != self.n_elements:
            raise DataError(f"codes of shape {tuple(z.shape)} cannot be decoded: this basis has [b, {self.n_elements}]")
        return self.decoder_bias.to(z.device) + z.float() @ self.decoder.to(z.device)


def activate(drive: Tensor, activation: str, n_active: int, threshold: Tensor) -> Tensor:
    """Turn what the encoder says of each element ``[b, k]`` into codes that are not negative.

    ``relu`` keeps what is above 0; ``topk`` of that the ``n_active`` largest of a row; ``jumprelu`` what is above the
    element's own ``threshold [k]``, unchanged (Rajamanoharan et al. 2024). NaN stays NaN.
    """
    positive = drive.relu()
    if activation == "topk" and n_active < positive.shape[1]:
        values, indices = positive.topk(n_active, dim=1)
        return torch.zeros_like(positive).scatter_(1, indices, values)
    if activation == "jumprelu":
        return positive.masked_fill(drive <= threshold, 0.0)
    return positive


def random_code(
    sample: Tensor, varying: Tensor, k: int, *, seed: int, n_active: int = 0, share: float = 0.0
) -> dict[str, Tensor]:
    """Draw a dictionary that knows nothing of the data but their scale: where training starts, and the floor of it.

    Directions are uniform on the unit sphere of the varying features, and the encoder is the decoder times the one
    number that lets the codes reconstruct ``sample`` best.

    Args:
        sample: centred rows ``[n, d]`` float32.
        varying: bool ``[d]``; elements are 0 at the other features.
        k: how many.
        seed: of the directions.
        n_active: entries per row, the largest ones; 0 takes ``share``.
        share: of all entries of ``sample`` to be above one common threshold; of random directions at most half are.

    Returns:
        ``encoder [k, d]``, ``threshold [k]``, ``decoder [k, d]``, float32.
    """
    decoder = torch.randn(k, len(varying), generator=generator(seed, "directions"), dtype=torch.float64)
    decoder *= varying
    decoder = (decoder / decoder.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).float()
    drive = sample @ decoder.T
    bound = torch.zeros(())
    if not n_active:
        n_below = min(max(round((1 - share) * drive.numel()), 1), drive.numel())
        bound = drive.flatten().kthvalue(n_below).values.clamp_min(0)
    codes = activate(drive, "topk" if n_active else "jumprelu", n_active, bound.expand(k))
    reconstructed = (codes @ decoder).double()
    scale = (sample.double() * reconstructed).sum() / reconstructed.square().sum().clamp_min(1e-300)
    return {"encoder": scale.float() * decoder, "threshold": scale.float() * bound.repeat(k), "decoder": decoder}
