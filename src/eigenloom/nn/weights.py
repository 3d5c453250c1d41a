"""A collection of checkpoints of the small ViT: what its components carry as numbers, and as networks."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from eigenloom.codes.weights import BLOCK, WeightBasis, reconstruct
from eigenloom.evaluation.weights import (
    FITTED,
    HELD_OUT,
    Places,
    group_errors,
    random_components,
    sketch_beside_exact,
    spread_out,
    variance_shares,
    walk_control,
)
from eigenloom.nn.rebuilt import Judge
from eigenloom.sources.checkpoints import Checkpoints

FORMAT = "eigenloom.weights"
VERSION = 1
CURVE = (
    "k", "bytes", "nmse_fitted", "nmse_held_out", "nmse_held_out_random", "nmse_fitted_walk", "nmse_held_out_walk",
    "accuracy_fitted", "accuracy_held_out", "accuracy_held_out_random",
)  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """Checkpoints of some trainings, all in memory, beside the basis of those that are not held out.

    Fields: ``rows [n, D]`` float32; ``paths`` and ``steps [n]``; ``training [n]``, names; ``held_out [n]`` bool;
    ``edges``, name -> the training's edge.
    """

    weights: WeightBasis
    checkpoints: Checkpoints
    rows: Tensor
    paths: list[Path]
    steps: list[int]
    training: list[str]
    held_out: Tensor
    edges: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(
        cls,
        weights: WeightBasis,
        trainings: Mapping[str, tuple[Mapping[str, Any], Mapping[Path, int]]],
        held_out: Sequence[int],
    ) -> Self:
        """Read every checkpoint.

        Args:
            weights: the basis.
            trainings: name -> edge, and checkpoints in time order with their steps.
            held_out: places, among those of each training, of the checkpoints that were left out of the fit.

        Raises:
            MismatchError: a checkpoint is of another model.
            StoreError: a file is missing or damaged.
        """
        paths = [path for _, found in trainings.values() for path in found]
        checkpoints = weights.open_like(paths)
        return cls(
            weights,
            checkpoints,
            torch.cat([block.clone() for block in checkpoints.column_blocks(BLOCK)], dim=1),
            paths,
            [step for _, found in trainings.values() for step in found.values()],
            [name for name, (_, found) in trainings.items() for _ in found],
            torch.tensor([place in held_out for _, found in trainings.values() for place in range(len(found))]),
            {name: edge for name, (edge, _) in trainings.items()},
        )

    def judged(self, n: int) -> dict[str, list[int]]:
        """Return the numbers of at most ``n`` fitted and ``n`` held-out checkpoints, spread over all."""
        numbers = {FITTED: ~self.held_out, HELD_OUT: self.held_out}
        return {name: spread_out(chosen.nonzero().flatten().tolist(), n) for name, chosen in numbers.items()}


def measure(collection: Collection, judge: Judge, ks: Sequence[int], n_judged: int, seed: int) -> dict[str, Any]:
    """Return everything that ``results/weights/{collection}/metrics.json`` holds but its provenance.

    Args:
        collection: checkpoints and their basis.
        judge: says what a network is worth.
        ks: numbers of components, 0 the mean.
        n_judged: networks judged at each k, of fitted and of held-out checkpoints each.
        seed: of random directions, walks and sketch.
    """
    basis, rows, held_out = collection.weights.basis, collection.rows, collection.held_out
    n_features, n_components = basis.components.shape
    random = replace(basis, components=random_components(n_features, n_components, seed))
    exact, floor = (Places.of(rows, b.mean, b.components, held_out) for b in (basis, random))
    lengths = [collection.training.count(name) for name in collection.edges]
    walk, walk_shares = walk_control(rows, lengths, held_out, n_components, seed)
    numbers = collection.judged(n_judged)
    own = {i: judge.accuracy(collection.paths[i]) for chosen in numbers.values() for i in chosen}
    rebuilt = {
        name: _accuracies(collection, judge, ks, exact, collection.weights, found) for name, found in numbers.items()
    }
    control = _accuracies(
        collection, judge, ks, floor, replace(collection.weights, basis=random), numbers[HELD_OUT]
    )  # fmt: skip
    last = max(ks)
    centred = rows[held_out] - basis.mean
    left = centred - exact.scores[held_out, :last].float() @ basis.components[:, :last].T
    return {
        "format": FORMAT,
        "version": VERSION,
        "n_features": n_features,
        "n_components": n_components,
        "method": basis.method,
        "orthonormality_error": basis.orthonormality_error,
        "trainings": [_training(name, edge) for name, edge in collection.edges.items()],
        "samples": [
            {
                "training": collection.training[i],
                "step": collection.steps[i],
                "held_out": bool(held_out[i]),
                "scores": [float(s) for s in exact.scores[i, :2]],
                "accuracy": own.get(i),
            }
            for i in range(len(rows))
        ],
        "shares": variance_shares(basis.explained_variance, basis.total_variance),
        "shares_walk": walk_shares,
        "original": {name: _mean([own[i] for i in found]) for name, found in numbers.items()},
        "curve": [
            dict(zip(CURVE, (
                k, 4 * n_features * (k + 1), *exact.nmse(k).values(), floor.nmse(k)[HELD_OUT], *walk.nmse(k).values(),
                rebuilt[FITTED][k], rebuilt[HELD_OUT][k], control[k],
            ), strict=True))
            for k in ks
        ],
        "groups": group_errors(left, centred, collection.weights.layout),
        "groups_k": last,
        "sketch": dict(sketch_beside_exact(rows[~held_out], basis, seed)),
    }  # fmt: skip


def csv_text(curve: Sequence[Mapping[str, Any]]) -> str:
    """Return the curve as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CURVE, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return file.getvalue()


def _accuracies(
    collection: Collection,
    judge: Judge,
    ks: Sequence[int],
    places: Places,
    weights: WeightBasis,
    numbers: Sequence[int],
) -> dict[int, float]:
    """Write the networks rebuilt from k scores as files, and return k -> the mean accuracy of those files."""
    found: dict[int, float] = {}
    with TemporaryDirectory() as folder:
        out = Path(folder, "rebuilt.safetensors")
        for k in ks:
            accuracies = []
            for i in numbers[:1] if k == 0 else numbers:  # without components all are the mean network
                reconstruct(weights, places.scores[i].float(), out, collection.checkpoints.files[i], k)
                accuracies.append(judge.accuracy(out))
            found[k] = _mean(accuracies)
    return found


def _training(name: str, edge: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a training."""
    spec = edge["spec"]
    return {
        "name": name,
        "seed": spec["seed"],
        "steps": spec["model"]["steps"],
        "optimizer": spec["model"]["optimizer"],
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of a few numbers."""
    return sum(values) / len(values)
