"""A small Vision Transformer for patch segmentation: plain enough that its activations and weights can be studied.

Pre-norm blocks (Xiong et al. 2020) in one ``ModuleList``, fused query-key-value projection, scaled dot-product
attention, GELU MLP of ratio 4, linear patch embedding, CLS token, learned positions that start as two-dimensional
sines and cosines, final LayerNorm, linear head to one label per patch (Dosovitskiy et al. 2021).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import ConfigError, DataError

MLP_RATIO = 4
BRANCH_SCALE = 0.3
CLS_STD = 0.02


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ``SmallViT``: rows and columns of patches, pixels per patch side, sizes, number of labels."""

    grid: tuple[int, int]
    patch: int
    width: int
    depth: int
    heads: int
    n_labels: int

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: a size below 1, or a width that the heads, or the four position bands, do not divide.
        """
        object.__setattr__(self, "grid", tuple(self.grid))
        sizes = {**asdict(self), "grid": min(self.grid)}
        if wrong := {name: size for name, size in sizes.items() if size < 1}:
            raise ConfigError(f"model: sizes must be at least 1, not {wrong}")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"model: width {self.width} must be a multiple of heads ({self.heads}) and of 4")

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks, under the name that every transformer configuration uses."""
        return self.depth

    @property
    def n_patches(self) -> int:
        """Patches per image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_features(self) -> int:
        """Numbers per patch: three channels of ``patch x patch`` pixels."""
        return 3 * self.patch * self.patch


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        """Make the two projections; ``causal`` tokens see none that follow."""
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens ``[b, t, d]`` -> ``[b, t, d]``."""
        b, t, d = x.shape
        query, key, value = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """One pre-norm transformer block; its output is the residual stream."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        """Make the attention branch and the MLP branch."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches to the residual stream ``[b, t, d]``."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """Images ``[b, 3, h, w]`` -> label logits ``[b, P, n_labels]``, one row per patch, row-major over the grid."""

    def __init__(self, config: ViTConfig, seed: int = 0):
        """Draw the initial weights from ``seed``: N(0, 1/fan_in), branch outputs 0.3 of that, biases zero."""
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Linear(config.patch_features, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(sincos_positions(config.grid, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.n_labels)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Fill the parameters from one CPU generator, in module order."""
        source = generator(seed, "vit weights")
        self.cls_token.normal_(0.0, CLS_STD, generator=source)
        initialise_linear(self, source)

    def forward(self, images: Tensor) -> Tensor:
        """Label the patches of preprocessed images ``[b, 3, h, w]``.

        Raises:
            DataError: the images have another grid than the positions were learned on.
        """
        found = tuple(side // self.config.patch for side in images.shape[2:])
        if found != self.config.grid:
            raise DataError(
                f"an image of {found[0]} x {found[1]} patches was given to a network trained on"
                f" {self.config.grid[0]} x {self.config.grid[1]}; set preprocess.resize to square"
            )
        return self.label(patchify(images, self.config.patch))

    def label(self, patches: Tensor) -> Tensor:
        """Label patches that are already cut: ``[b, P, 3 patch^2]`` -> logits ``[b, P, n_labels]``."""
        x = self.patch_embed(patches) + self.positions
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 1:]))


@torch.no_grad()
def initialise_linear(model: nn.Module, source: torch.Generator) -> None:
    """Fill linear layers in module order: N(0, 1/fan_in), branch outputs 0.3 of that, biases zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gain = BRANCH_SCALE if name.endswith(("proj", "fc2")) else 1.0
            module.weight.normal_(0.0, gain / module.in_features**0.5, generator=source)
            module.bias.zero_()


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images ``[b, c, h, w]`` into patches ``[b, P, c patch^2]``, row-major, each as (channel, row, column)."""
    b, c, h, w = images.shape
    cut = images.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(b, (h // patch) * (w // patch), c * patch * patch)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed positions ``[P, width]``: sines and cosines of the row in one half, of the column in the other."""
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).to(torch.float32)
