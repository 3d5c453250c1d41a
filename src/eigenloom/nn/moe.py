"""A small mixture-of-experts classifier: residual blocks of SwiGLU experts, of which a router picks a few per example.

Root-mean-square norm before each block (Zhang & Sennrich 2019), gated experts ``down (silu(gate x) * up x)`` (Shazeer
2020), softmax routing to the ``top_k`` best, their weights made to sum to 1, and the load-balance loss of the Switch
Transformer (Fedus et al. 2022). All experts are computed for all examples, which at this size is the fastest.
"""

from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.errors import ConfigError

BRANCH_SCALE = 0.5
EPS = 1e-6


@dataclass(frozen=True)
class MoEConfig:
    """The shape of a ``SmallMoE``: width ``d``, rows ``p`` of a gate, experts, experts per example, blocks."""

    hidden_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    num_hidden_layers: int
    n_inputs: int = 64
    n_labels: int = 10

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: a size below 1, or more experts per example than there are.
        """
        if wrong := {name: size for name, size in asdict(self).items() if size < 1}:
            raise ConfigError(f"model: sizes must be at least 1, not {wrong}")
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(f"model: top_k {self.num_experts_per_tok} of {self.num_experts} experts; lower it")


class Experts(nn.Module):
    """Router and experts of one block: ``gate`` and ``up [E, p, d]``, ``down [E, d, p]``."""

    def __init__(self, config: MoEConfig):
        """Make the parameters."""
        super().__init__()
        n, p, d = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.top_k = config.num_experts_per_tok
        self.router = nn.Parameter(torch.empty(n, d))
        self.gate = nn.Parameter(torch.empty(n, p, d))
        self.up = nn.Parameter(torch.empty(n, p, d))
        self.down = nn.Parameter(torch.empty(n, d, p))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the branch ``[b, d]`` of ``x [b, d]`` and the load-balance loss, 1 where all experts work alike."""
        chances = (x @ self.router.T).softmax(-1)
        best, chosen = chances.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(chances).scatter(1, chosen, best / best.sum(-1, keepdim=True))
        hidden = functional.silu(x @ self.gate.flatten(0, 1).T) * (x @ self.up.flatten(0, 1).T)
        weighted = hidden.unflatten(1, self.gate.shape[:2]) * weights[:, :, None]
        out = weighted.flatten(1) @ self.down.mT.flatten(0, 1)
        shares = (weights > 0).float().mean(0) / self.top_k
        return out, len(self.router) * (shares * chances.mean(0)).sum()


class MoEBlock(nn.Module):
    """One pre-norm residual block."""

    def __init__(self, config: MoEConfig):
        """Make norm and experts."""
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=EPS)
        self.experts = Experts(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Add the branch to ``x [b, d]``; return the load-balance loss beside."""
        branch, balance = self.experts(self.norm(x))
        return x + branch, balance


class SmallMoE(nn.Module):
    """Inputs ``[b, n_inputs]`` -> logits ``[b, n_labels]``."""

    def __init__(self, config: MoEConfig, seed: int = 0):
        """Draw the initial weights from ``seed``: N(0, 1 / fan_in), branch outputs half of that, biases zero."""
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.n_inputs, config.hidden_size)
        self.blocks = nn.ModuleList(MoEBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=EPS)
        self.head = nn.Linear(config.hidden_size, config.n_labels)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Fill the parameters from one CPU generator, in module order."""
        source = generator(seed, "moe weights")
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                gain = BRANCH_SCALE if name.endswith("down") else 1.0
                parameter.normal_(0.0, gain / parameter.shape[-1] ** 0.5, generator=source)
            elif name.endswith("bias"):
                parameter.zero_()

    @property
    def layers(self) -> list[MoEBlock]:
        """The blocks, in order."""
        return cast(list[MoEBlock], list(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.balanced(x)[0]

    def balanced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the mean load-balance loss of the blocks."""
        x = self.embed(x)
        losses = []
        for block in self.blocks:
            x, balance = block(x)
            losses.append(balance)
        return self.head(self.norm(x)), torch.stack(losses).mean()
