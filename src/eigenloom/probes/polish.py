"""Fits on histograms and exact passes over gathered columns: paths B and C put together."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenloom.probes.histogram import Histogram, HistogramBuilder, HistogramSums
from eigenloom.probes.objective import LogisticPairs, Penalty, Sums
from eigenloom.probes.precision import screened_precisions
from eigenloom.probes.problem import APPROXIMATE, CONVERGED, MAX_ITER, PairTable, Problem, baselines
from eigenloom.probes.rows import MIB, LabelledRows
from eigenloom.probes.scales import Scales, measure
from eigenloom.probes.sparse import ColumnSums

logger = logging.getLogger("eigenloom")
EXACT_CELLS = 2_000_000_000  # entries x classes up to which sparse codes are fitted exactly
BEST_PER_CLASS = 8
GOOD, SHARP, USELESS = 0.3, 1.0, 5.0  # sharpness: accurate to 1e-6; to be polished; to be started afresh
BYTES_PER_BIN = 112  # sums, moments and the rows of products of one bin


class PairFitter:
    """Fits all pairs of sparse or dense codes.

    Parameters of the pairs live in centred and scaled coordinates, ``beta`` and ``u [k, e]``, until the end.
    """

    def __init__(self, problem: Problem, screen: bool):
        """Measure both splits; ``screen`` asks for AP estimates of all pairs."""
        self.problem, self.settings = problem, problem.settings
        self.scales = measure(problem.train)
        self.val_scales = measure(problem.val)
        self.alive = np.flatnonzero(~self.scales.dead)
        shape = (problem.train.n_features, len(problem.evaluated))
        self.beta = np.tile(problem.prior_logit, (shape[0], 1))
        self.u, self.loss, self.val_loss = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.sharpness = np.zeros(shape)
        self.steps, self.status = np.zeros(shape, dtype=np.int32), np.full(shape, APPROXIMATE, dtype=np.int8)
        self.screened = np.zeros(shape) if screen else None
        self.sparse = problem.train.stream.layout != "dense"

    def fit(self) -> PairTable:
        """Fit every pair and return the table."""
        everything = np.zeros(self.u.shape, dtype=bool)
        everything[self.alive] = True
        n_cells = int(self.scales.entries.sum()) * len(self.problem.evaluated)
        exact = self.settings.polish == "all" or (self.sparse and n_cells <= EXACT_CELLS)
        rough = self._worth_a_histogram() if exact else self.alive
        self._on_histograms(rough, final=not exact)
        chosen = everything if exact else self._choose()
        self._start_afresh()
        self._polish(chosen)
        self._validate(chosen)
        return self._table()

    def _start_afresh(self) -> None:
        """Put pairs that are too sharp for their bins back to the prior.

        On bins coarser than the step of the sigmoid the objective may even be unbounded, as no labels on the bins'
        means need have the class sums of the rows. A pair that then gets no exact pass keeps the intercept-only
        answer, which is an upper bound of its loss.
        """
        useless = (self.sharpness > USELESS) | (self.loss < 0)
        self.beta[useless] = np.broadcast_to(self.problem.prior_logit, self.u.shape)[useless]
        self.u[useless] = 0.0
        baseline = baselines(self.problem, self.problem.train)[self.problem.evaluated]
        self.loss[useless] = np.broadcast_to(baseline, self.u.shape)[useless]

    def _worth_a_histogram(self) -> NDArray[np.int64]:
        """Features whose exact fit is cheaper from a rough start: those with many entries per bin."""
        return self.alive[self.scales.entries[self.alive] > 8 * self.settings.bins]

    def _choose(self) -> NDArray[np.bool_]:
        """Pick the pairs for exact passes: per class the best by histogram, and the sharp ones, best first."""
        chosen = np.zeros(self.u.shape, dtype=bool)
        if self.settings.polish == "none":
            return chosen
        order = self.alive[np.argsort(self.loss[self.alive], axis=0, kind="stable")]
        for e in range(self.u.shape[1]):
            chosen[order[:BEST_PER_CLASS, e], e] = True
        sharp = (self.sharpness > SHARP) & ~chosen
        sharp[self.scales.dead] = False
        n_left = max(0, self.settings.polish_limit - int(chosen.sum()))
        if int(sharp.sum()) > n_left:
            logger.info("%d sharp pairs, of which the %d of lowest loss are polished", int(sharp.sum()), n_left)
        at = np.flatnonzero(sharp)
        keep = at[np.argsort(self.loss.ravel()[at], kind="stable")[:n_left]]
        chosen.ravel()[keep] = True
        return chosen

    def _on_histograms(self, features: NDArray[np.int64], final: bool) -> None:
        """Fit on probe_train's histograms; when that is the last word, take the losses as well."""
        for block in self._histogram_blocks(features, by_class=self.settings.weighted):
            sums = self._histogram(self.problem.train, self.scales, block, by_class=self.settings.weighted)
            local = np.ones((len(block), self.u.shape[1]), dtype=bool)
            pairs, cells = self._pairs(HistogramSums(sums), self.problem.train, self.scales, block, local, binned=True)
            solution = pairs.fit(self._start(cells))
            beta, u = solution.x
            self.beta[cells], self.u[cells] = beta.cpu().numpy(), u.cpu().numpy()
            self.steps[cells] = solution.steps.cpu().numpy()
            sharpness = HistogramSums(sums).sharpness(pairs.row, u).cpu().numpy()
            self.sharpness[cells] = sharpness
            if final:
                good = (sharpness <= GOOD) & solution.converged.cpu().numpy()
                self.status[cells] = np.where(good, CONVERGED, APPROXIMATE)
                self.loss[cells] = pairs.loss(_all(pairs), solution.x).cpu().numpy()

    def _polish(self, chosen: NDArray[np.bool_]) -> None:
        """Run exact Newton passes for the chosen pairs until each converges."""
        for columns in self.problem.train.columns(np.flatnonzero(chosen.any(1))):
            block = columns.features
            weights = self.problem.weights(self.problem.train)
            sums = ColumnSums(columns, self.scales.mean[block], self.scales.scale[block], weights, self.settings.device)
            pairs, cells = self._pairs(sums, self.problem.train, self.scales, block, chosen[block])
            solution = pairs.fit(self._start(cells))
            beta, u = solution.x
            self.beta[cells], self.u[cells] = beta.cpu().numpy(), u.cpu().numpy()
            self.steps[cells] += solution.steps.cpu().numpy()
            self.status[cells] = np.where(solution.converged.cpu().numpy(), CONVERGED, MAX_ITER)
            self.loss[cells] = pairs.loss(_all(pairs), solution.x).cpu().numpy()

    def _validate(self, chosen: NDArray[np.bool_]) -> None:
        """Take probe_val's losses: exact for the chosen pairs, on histograms for the others; screen APs if asked."""
        rest = np.zeros_like(chosen)
        rest[self.alive] = ~chosen[self.alive]
        by_class = self.screened is not None or self.settings.weighted
        wanted = self.alive if self.screened is not None else np.flatnonzero(rest.any(1))
        for block in self._histogram_blocks(wanted, by_class):
            histogram = self._histogram(self.problem.val, self.val_scales, block, by_class)
            self._take_val_losses(HistogramSums(histogram), block, rest[block], binned=True)
            if self.screened is not None and histogram.class_counts is not None:
                bins = histogram.class_counts.shape[1]
                centres = histogram.mean.cpu().numpy().reshape(len(block), -1, bins)[:, 0]
                counts = histogram.class_counts.cpu().numpy()
                signs = np.zeros((len(block), counts.shape[2]))
                signs[:, self.problem.evaluated] = np.sign(self.u[block])
                self.screened[block] = screened_precisions(counts, centres, signs)[:, self.problem.evaluated]
        for columns in self.problem.val.columns(np.flatnonzero(chosen.any(1))):
            block = columns.features
            weights = self.problem.weights(self.problem.val)
            sums = ColumnSums(columns, self.scales.mean[block], self.scales.scale[block], weights, self.settings.device)
            self._take_val_losses(sums, block, chosen[block])

    def _take_val_losses(
        self, sums: Sums, block: NDArray[np.int64], local: NDArray[np.bool_], binned: bool = False
    ) -> None:
        """Evaluate the pairs marked in ``local [f, e]`` on probe_val."""
        if local.any():
            pairs, cells = self._pairs(sums, self.problem.val, self.val_scales, block, local, binned)
            self.val_loss[cells] = pairs.loss(_all(pairs), self._start(cells)).cpu().numpy()

    def _start(self, cells: tuple[NDArray, NDArray]) -> Tensor:
        """Current parameters ``[2, p]`` of some pairs."""
        return torch.from_numpy(np.stack([self.beta[cells], self.u[cells]])).to(self.settings.device)

    def _pairs(
        self,
        sums: Sums,
        rows: LabelledRows,
        scales: Scales,
        block: NDArray[np.int64],
        local: NDArray[np.bool_],
        binned: bool = False,
    ) -> tuple[LogisticPairs, tuple[NDArray, NDArray]]:
        """Make the objective of the pairs marked in ``local [f, e]``; return it with their cells in ``[k, e]``.

        A weighted histogram has a row per feature and class, everything else one per feature.
        """
        at, e = np.nonzero(local)
        feature, label = block[at], self.problem.evaluated[e]
        weight = self.problem.positive_weights(rows)[label]
        moment = weight * scales.moments(self.scales, rows.class_counts)[feature, label]
        n_classes = len(rows.class_counts)
        row = at * n_classes + label if binned and self.settings.weighted else at
        arrays = (
            *(row, label, weight * rows.class_counts[label], moment),
            *(self.scales.mean[feature], self.scales.scale[feature], self.problem.prior_logit[e]),
        )
        to = self.settings.device
        numbers, labels, positives, moments, mean, scale, origin = (torch.from_numpy(a).to(to) for a in arrays)
        penalty = Penalty.of(self.settings.objective, self.settings.l2, mean, scale, origin)
        return LogisticPairs(sums, numbers, labels, positives, moments, rows.n_rows, penalty), (feature, e)

    def _histogram_blocks(self, features: NDArray[np.int64], by_class: bool) -> list[NDArray[np.int64]]:
        """Cut features so that their histograms keep to a quarter of the memory bound."""
        n_classes = len(self.problem.reasons) if by_class else 0
        per_class = BYTES_PER_BIN if self.settings.weighted else 16
        cost = (self.settings.bins + 1) * (BYTES_PER_BIN + n_classes * per_class)
        size = max(1, self.settings.memory_mb * MIB // 4 // cost)
        return [features[first : first + size] for first in range(0, len(features), size)]

    def _histogram(self, rows: LabelledRows, scales: Scales, block: NDArray[np.int64], by_class: bool) -> Histogram:
        """Build the histograms of some features over one split."""
        weights = self.problem.weights(rows)
        n_classes = len(rows.class_counts) if by_class else 0
        builder = HistogramBuilder(
            self.scales.mean[block], self.scales.scale[block], scales.low[block], scales.high[block],
            self.settings.bins, n_classes, moments=self.settings.weighted,
        )  # fmt: skip
        zeros = None
        if self.sparse:
            parts: list[NDArray] = []
            for columns in rows.columns(block):
                builder.add_columns(columns, len(parts))
                parts += [columns.zeros(j) for j in range(len(columns))]
            zeros = np.stack(parts).astype(np.float64)
        else:
            whole = len(block) == rows.n_features
            for chunk, classes in rows.chunks():
                builder.add(chunk if whole else chunk[block], classes)
        return builder.finish(zeros, weights, self.settings.device)

    def _table(self) -> PairTable:
        """Return to code units and place the evaluated classes among all."""
        table = PairTable.for_problem(self.problem)
        cells = np.ix_(self.alive, self.problem.evaluated)
        w = self.u[self.alive] / self.scales.scale[self.alive, None]
        table.w[cells] = w
        table.b[cells] = self.beta[self.alive] - w * self.scales.mean[self.alive, None]
        for name in ("train_loss", "val_loss", "steps", "status"):
            source = self.loss if name == "train_loss" else getattr(self, name)
            getattr(table, name)[cells] = source[self.alive]
        table.mark_dead(self.problem, self.scales.dead)
        return table


def _all(pairs: LogisticPairs) -> Tensor:
    """Return the indices of all pairs."""
    return torch.arange(len(pairs.row), device=pairs.row.device)
