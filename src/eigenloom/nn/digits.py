"""Handwritten digits that come with scikit-learn: 8 x 8 pixels, ten classes, split by a seed."""

from dataclasses import dataclass
from typing import Self

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.errors import ConfigError

N_DIGITS = 1797
N_PIXELS = 64
TOP = 16.0
"""Value of a full pixel."""


@dataclass(frozen=True)
class Digits:
    """Pixels in [0, 1], float32 ``[n, 64]``, and labels int64 ``[n]``, of training and of test images."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def split(cls, n_test: int, seed: int) -> Self:
        """Cut ``n_test`` of the 1797 images off for testing, the same for one seed.

        Raises:
            ConfigError: nothing would be left to train on or to test with.
        """
        if not 1 <= n_test < N_DIGITS:
            raise ConfigError(f"n_test: {n_test} of {N_DIGITS} digits; at least one must be left on either side")
        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels / TOP).to(torch.float32)
        y = torch.from_numpy(labels).to(torch.int64)
        order = torch.randperm(N_DIGITS, generator=generator(seed, "digits split"))
        test, train = order[:n_test], order[n_test:]
        return cls(x[train], y[train], x[test], y[test])
