"""A small transformer that reads a spectrum in overlapping patches and estimates labels of the star.

Its first block takes any ``WarmSelfAttention``; everything else is the same whatever that is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import ConfigError
from eigenloom.nn.vit import BRANCH_SCALE, MLP_RATIO, Block
from eigenloom.nn.warm_attention import WarmSelfAttention


@dataclass(frozen=True)
class SpectrumShape:
    """Sizes: ``n_pixels`` of a spectrum, ``patch`` pixels every ``stride``, ``dim``, ``depth``, ``heads``, labels."""

    n_pixels: int
    patch: int
    stride: int
    dim: int
    depth: int
    heads: int
    n_labels: int

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: a size below 1, a patch longer than the spectrum, or a width that the heads do not divide.
        """
        if min(vars(self).values()) < 1 or self.patch > self.n_pixels or self.dim % self.heads or self.dim % 2:
            raise ConfigError(f"attention: these sizes do not fit together: {vars(self)}")

    @property
    def n_tokens(self) -> int:
        """Patches per spectrum."""
        return (self.n_pixels - self.patch) // self.stride + 1


class WarmBlock(nn.Module):
    """A pre-norm block whose attention takes its features of the raw patches, or of its own input."""

    def __init__(self, attention: WarmSelfAttention, own: bool):
        """Take the attention; ``own`` says that queries and keys are made of the block's input."""
        super().__init__()
        self.norm1 = nn.LayerNorm(attention.dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(attention.dim)
        self.fc1 = nn.Linear(attention.dim, MLP_RATIO * attention.dim)
        self.fc2 = nn.Linear(MLP_RATIO * attention.dim, attention.dim)
        self.own = own

    def source(self, x: Tensor, patches: Tensor) -> Tensor:
        """Return what features are taken of."""
        return self.norm1(x) if self.own else patches

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        """Add both branches to the residual stream ``[b, t, d]``."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed if self.own else patches)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class SpectrumViT(nn.Module):
    """Normalised spectra ``[b, m]`` -> standardised labels ``[b, n_labels]``, from the mean of all tokens."""

    def __init__(self, shape: SpectrumShape, attention: WarmSelfAttention, own: bool, seed: int):
        """Draw all weights but those of the adapters from ``seed``, the same whatever the attention's features."""
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(shape.patch, shape.dim)
        self.positions = nn.Parameter(_positions(shape.n_tokens, shape.dim))
        self.first = WarmBlock(attention, own)
        self.rest = nn.ModuleList(Block(shape.dim, shape.heads) for _ in range(shape.depth - 1))
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.n_labels)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Fill linear layers, in module order, N(0, 1/fan_in), branch outputs 0.3 of that; leave adapters alone."""
        source = generator(seed, "spectrum vit")
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("adapter"):
                gain = BRANCH_SCALE if name.endswith(("proj", "fc2")) else 1.0
                module.weight.normal_(0.0, gain / module.in_features**0.5, generator=source)
                if module.bias is not None:
                    module.bias.zero_()

    def patches(self, spectra: Tensor) -> Tensor:
        """Cut spectra ``[b, m]`` into ``[b, t, patch]``."""
        return spectra.unfold(1, self.shape.patch, self.shape.stride)

    def tokens(self, patches: Tensor) -> Tensor:
        """Embed patches; what the first block is given, ``[b, t, dim]``."""
        return self.embed(patches - 1) + self.positions

    def forward(self, spectra: Tensor) -> Tensor:
        """Estimate labels."""
        patches = self.patches(spectra)
        x = self.first(self.tokens(patches), patches)
        for block in self.rest:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def _positions(n_tokens: int, width: int) -> Tensor:
    """Return sines and cosines of the place ``[T, width]``, as a start."""
    frequencies = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(n_tokens, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1).float()
