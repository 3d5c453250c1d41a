"""Fixed features that queries and keys can start from: kernel PCA, linear PCA, random Fourier features, or none.

A feature map is a module without parameters. Its buffers follow ``.to`` and ``state_dict`` but keep their number
format, whatever the network is cast to: distances in bfloat16 carry no digits.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.bases.projection import Projection
from eigenloom.batches import generator
from eigenloom.errors import MismatchError
from eigenloom.linalg.kernels import KERNELS, kernel_of

BUDGET = 1 << 22
"""Kernel values held at a time where no gradient is needed."""


class FeatureMap(nn.Module):
    """``[..., width] -> [..., n_features]``, whitened; each token's features depend on that token alone."""

    width: int
    n_features: int

    @abstractmethod
    def forward(self, source: Tensor) -> Tensor:
        """Return whitened features of tokens ``[..., width]``."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the buffers and keep their formats."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class OwnFeatures(FeatureMap):
    """The tokens themselves: what an ordinary attention makes its queries and keys of."""

    def __init__(self, width: int):
        """Take the width of a token."""
        super().__init__()
        self.width = self.n_features = width

    def forward(self, source: Tensor) -> Tensor:
        """Return the tokens."""
        return source


class AffineFeatures(FeatureMap):
    """``(f((source - shift) projection) - offset) scale``, where f is the identity here; in float32 or float64."""

    shift: Tensor
    projection: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, projection: Tensor, offset: Tensor, scale: Tensor):
        """Take ``shift [d]``, ``projection [d, r]``, ``offset [r]`` and ``scale [r]``, of one format."""
        super().__init__()
        for name, tensor in (("shift", shift), ("projection", projection), ("offset", offset), ("scale", scale)):
            self.register_buffer(name, tensor.detach().clone().to(projection.dtype))
        self.width, self.n_features = projection.shape

    def forward(self, source: Tensor) -> Tensor:
        """Return whitened features of ``[..., d]``; no gradient flows back.

        Raises:
            MismatchError: tokens of another width.
        """
        check_width(self, source.shape[-1])
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            return (self.bend((source.to(self.shift.dtype) - self.shift) @ self.projection) - self.offset) * self.scale

    def bend(self, values: Tensor) -> Tensor:
        """Return the values as they are."""
        return values


class LinearFeatures(AffineFeatures):
    """Whitened principal components of a linear basis, descending."""

    @classmethod
    def of(cls, basis: Projection, variances: Tensor) -> "LinearFeatures":
        """Take a projection fitted without standardization, and the variance of each of its codes ``[r]``."""
        mean, components = basis.mean.float(), basis.components.float()
        return cls(mean, components.T, torch.zeros(len(components)), variances.clamp_min(1e-30).rsqrt().float())


class FourierFeatures(AffineFeatures):
    """``cos(w.x + phase)``, standardised: random features of the Gaussian kernel (Rahimi & Recht 2007)."""

    phase: Tensor

    @classmethod
    def draw(cls, rows: Tensor, gamma: float, n_features: int, seed: int) -> "FourierFeatures":
        """Draw frequencies of ``exp(-gamma |x - y|^2)`` and standardise the features on ``rows [n, d]``."""
        source = generator(seed, "fourier features")
        frequencies = (2 * gamma) ** 0.5 * torch.randn(rows.shape[1], n_features, generator=source)
        phase = 2 * torch.pi * torch.rand(n_features, generator=source)
        values = torch.cos(rows.float() @ frequencies + phase)
        made = cls(torch.zeros(rows.shape[1]), frequencies, values.mean(0), values.std(0).clamp_min(1e-6).reciprocal())
        made.register_buffer("phase", phase)
        return made

    def bend(self, values: Tensor) -> Tensor:
        """Return the cosines."""
        return torch.cos(values + self.phase)


class KernelFeatures(FeatureMap):
    """Codes of a kernel PCA, descending, and whitened by the buffer ``scale = 1/sqrt(explained_variance)``.

    ``encoded`` are the basis' own codes of ``(source - standard_mean) / standard_scale``: the basis is applied in the
    space it was fitted in. Kernel values are computed in the format of the basis, float32 or float64, with autocast
    off, and in pieces of ``BUDGET`` values where no gradient is needed. Without ``differentiable`` none ever is.
    """

    standard_mean: Tensor
    standard_scale: Tensor
    shift: Tensor
    landmarks: Tensor
    constant: Tensor
    projection: Tensor
    offset: Tensor
    scale: Tensor
    kernel_numbers: Tensor
    SHAPED = (
        "standard_mean", "standard_scale", "shift", "landmarks", "constant", "projection", "offset", "scale",
        "kernel_numbers",
    )  # fmt: skip

    def __init__(self, arrays: Mapping[str, Tensor], differentiable: bool = False):
        """Take the buffers, named as in ``SHAPED``; see ``of``."""
        super().__init__()
        for name in self.SHAPED:
            self.register_buffer(name, arrays[name].detach().clone().contiguous())
        self.width, self.n_features = self.landmarks.shape[1], self.projection.shape[1]
        number, gamma, degree, coef0 = self.kernel_numbers.tolist()
        self.kernel = kernel_of(KERNELS[int(number)], gamma, int(degree), coef0)
        self.product, self.square, _ = self.kernel.factors(self.constant)
        self.differentiable = differentiable

    @classmethod
    def of(cls, basis: KernelPCA, differentiable: bool = False) -> "KernelFeatures":
        """Take a fitted basis; one that whitens its own codes is not whitened again."""
        dtype = basis.landmarks.dtype
        deviations = basis.explained_variance.double().clamp_min(1e-300).sqrt()
        own = deviations.reciprocal() if basis.whiten else torch.ones_like(deviations)
        _, _, constant = basis.kernel_function.factors(basis.landmarks.double().square().sum(1))
        numbers = [float(KERNELS.index(basis.kernel)), basis.gamma, float(basis.degree), basis.coef0]
        return cls(
            {
                "standard_mean": basis.standardization.mean.to(dtype),
                "standard_scale": basis.standardization.scale.to(dtype),
                "shift": basis.shift.to(dtype),
                "landmarks": basis.landmarks,
                "constant": constant.to(dtype),
                "projection": (basis.projection.double() * own).to(dtype),
                "offset": (basis.offset.double() * own).to(dtype),
                "scale": (torch.ones_like(deviations) if basis.whiten else deviations.reciprocal()).to(dtype),
                "kernel_numbers": torch.tensor(numbers, dtype=torch.float64),
            },
            differentiable,
        )

    def forward(self, source: Tensor) -> Tensor:
        """Return whitened features."""
        return self.encoded(source) * self.scale

    def encoded(self, source: Tensor) -> Tensor:
        """Return the codes ``[..., r]`` of tokens ``[..., d]``.

        Raises:
            MismatchError: tokens of another width.
        """
        check_width(self, source.shape[-1])
        rows = source.reshape(-1, self.width)
        with torch.autocast(source.device.type, enabled=False):
            if self.differentiable and torch.is_grad_enabled() and source.requires_grad:
                codes = self._codes(rows)
            else:
                piece = max(1, BUDGET // len(self.landmarks))
                with torch.no_grad():
                    if len(rows) <= piece:
                        codes = self._codes(rows)
                    else:
                        codes = torch.cat([self._codes(part) for part in rows.split(piece)])
        return codes.reshape(*source.shape[:-1], self.n_features)

    def _codes(self, rows: Tensor) -> Tensor:
        """Return codes ``[b, r]`` of rows ``[b, d]``."""
        rows = (rows.to(self.shift.dtype) - self.standard_mean) / self.standard_scale - self.shift
        values = torch.addmm(self.constant, rows, self.landmarks.T, alpha=self.product)
        if self.square:
            values = values + self.square * rows.square().sum(1, keepdim=True)
        return torch.addmm(self.offset, self.kernel.finish(values), self.projection, beta=-1)


def check_width(features: FeatureMap, found: int) -> None:
    """Refuse tokens that the features were not fitted on, with the ways out.

    Raises:
        MismatchError: with both widths.
    """
    if features.width != found:
        raise MismatchError(
            f"the features were fitted on rows of width {features.width}, but the attention is fed width {found}; fit "
            "them on raw patches of that width, or on tokens recorded at this layer, or give what they were fitted on "
            "as `source`"
        )
