"""Codes held in memory as streams, and a small planted problem, for the tests of the probes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eigenloom.codes.stream import CodeBatch
from eigenloom.probes.fit import ProbeResult, fit_probe


class ArrayCodes:
    """A matrix ``[n, k]`` delivered in batches of ``cut`` rows; counts how often it is walked."""

    def __init__(self, z: NDArray, layout: str = "dense", cut: int = 64):
        self.z, self.layout, self.cut, self.n_walks = torch.from_numpy(np.asarray(z, np.float32)), layout, cut, 0
        self.n_rows, self.n_features = self.z.shape
        self.width = max(1, int((self.z != 0).sum(1).max())) if self.n_rows else 1

    def __iter__(self) -> Iterator[CodeBatch]:
        self.n_walks += 1
        for first in range(0, self.n_rows, self.cut):
            z = self.z[first : first + self.cut]
            if self.layout == "dense":
                yield CodeBatch.dense(z)
            elif self.layout == "label":
                yield CodeBatch.label(z.argmax(1), self.n_features)
            else:
                indices = z.abs().topk(self.width, dim=1).indices
                yield CodeBatch.sparse(z.gather(1, indices), indices, self.n_features)


def planted(layout: str, n: int = 600, k: int = 6, n_classes: int = 4, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Return codes ``[n, k]`` float32 and labels ``[n]`` in ``0..n_classes-1``; each feature leans to one class."""
    rng = np.random.default_rng([seed, n, k])
    y = rng.integers(0, n_classes, n)
    z = rng.standard_normal((n, k)).astype(np.float32)
    z += 1.5 * (np.arange(k) % n_classes == y[:, None])
    if layout == "label":
        z = np.eye(k, dtype=np.float32)[z.argmax(1)]
    elif layout == "sparse":
        z = np.where(np.abs(z) >= np.sort(np.abs(z), axis=1)[:, -2:-1], z, 0).astype(np.float32)
    return z, y


def probe(
    z: NDArray,
    y: NDArray,
    layout: str,
    zv: NDArray | None = None,
    yv: NDArray | None = None,
    cut: int = 64,
    **more: Any,
) -> ProbeResult:
    """Fit a probe to codes in memory; without validation codes, on the training ones."""
    zv, yv = (z if zv is None else zv), (y if yv is None else yv)
    classes = more.pop("classes", [f"c{i}" for i in range(int(max(np.max(y), np.max(yv))) + 1)])
    return fit_probe(ArrayCodes(z, layout, cut), y, ArrayCodes(zv, layout, cut), yv, classes=classes, **more)
