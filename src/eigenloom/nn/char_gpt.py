"""A small causal language model over characters, and text for it that comes with Python.

Pre-norm blocks as in ``vit``, learned positions, the output tied to the embedding. The text is that of Python's own
help, ``pydoc_data.topics``, which differs a little between versions of Python: its sha256 belongs into every result.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenloom.batches import generator
from eigenloom.nn.vit import Block, initialise_linear

VAL_SHARE = 10
"""One in so many characters, at the end of the text, is kept for validation."""


@dataclass(frozen=True)
class Characters:
    """Text as numbers of characters.

    Fields: ``train`` and ``val`` int64 ``[n]``; ``alphabet``, the characters by number; ``sha256`` of the text.
    """

    train: Tensor
    val: Tensor
    alphabet: str
    sha256: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Number the characters of a text in sorted order, and keep its last tenth for validation."""
        alphabet = "".join(sorted(set(text)))
        numbers = {character: number for number, character in enumerate(alphabet)}
        tokens = torch.tensor([numbers[character] for character in text])
        cut = len(tokens) - len(tokens) // VAL_SHARE
        return cls(tokens[:cut], tokens[cut:], alphabet, hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def of_python_topics(cls) -> Self:
        """Take the help texts of this Python, in the order of their titles."""
        from pydoc_data.topics import topics

        return cls.of("\n".join(topics[title] for title in sorted(topics)))

    def batch(self, batch_size: int, context: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``[batch_size, context]`` characters of ``train`` and those that follow each."""
        starts = torch.randint(len(self.train) - context, (batch_size, 1), generator=draw)
        places = starts + torch.arange(context)
        return self.train[places], self.train[places + 1]


class CharGPT(nn.Module):
    """Numbers of characters ``[b, t]`` -> logits of the next one ``[b, t, n_characters]``; about 0.2 M parameters."""

    def __init__(
        self, n_characters: int, width: int = 64, depth: int = 4, heads: int = 4, context: int = 64, seed: int = 0
    ):
        """Draw the initial weights from ``seed``."""
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(n_characters, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        source = generator(seed, "char gpt weights")
        with torch.no_grad():
            for table in (self.embedding, self.positions):
                table.weight.normal_(0.0, width**-0.5, generator=source)
            initialise_linear(self, source)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict each next character."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)


@torch.inference_mode()
def mean_loss(model: CharGPT, tokens: Tensor, n_characters: int = 16384) -> float:
    """Return the cross-entropy in nats per character over ``n_characters`` of ``tokens``, window by window."""
    windows = min(n_characters, len(tokens) - 1) // model.context
    inputs = tokens[: windows * model.context].view(windows, -1)
    targets = tokens[1 : windows * model.context + 1].view(windows, -1)
    summed = sum(
        float(functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"))
        for x, y in zip(inputs.split(64), targets.split(64), strict=True)
    )
    return summed / inputs.numel()
