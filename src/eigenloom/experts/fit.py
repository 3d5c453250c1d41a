"""The fit of one family as a state machine: every step is small, and its state can be saved between any two."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigenloom.batches import generator
from eigenloom.experts.model import mix
from eigenloom.experts.parameters import CodeParameters
from eigenloom.experts.polish import Problem, Run
from eigenloom.experts.schedule import LINEAR_SHARE, Rung, activations_of, rungs, scales_for, starts
from eigenloom.experts.settings import TrainingSettings
from eigenloom.experts.source import Tiles
from eigenloom.experts.support import PenaltyControl, SupportControl, TemperatureControl, above, support_of
from eigenloom.experts.sweeps import CodeRule, sweep
from eigenloom.experts.warm_start import seed_bank

logger = logging.getLogger("eigenloom")
Point = tuple[Tensor, Tensor]


class FamilyFit:
    """Sweeps from every start, descents of the linear model, descents of activations; call ``advance`` until ``done``.

    ``accepted`` is the best point so far, by the error of adapters refitted to it: nothing worse ever replaces it.
    """

    def __init__(self, tiles: Tiles, settings: TrainingSettings):
        """Begin with the first start."""
        self.tiles, self.settings = tiles, settings
        self.phase = "sweeps"
        self.starts = starts(settings.n_starts, settings.seeding)
        self.accepted: tuple[float, Point, str] = (float("inf"), (torch.empty(0), torch.empty(0)), "identity")
        self.history: list[dict[str, Any]] = []
        self.seeding: dict[str, Any] = {}
        self.total = sum(float(w.square().sum(dtype=torch.float64)) for _, w in tiles)
        self._points: list[Point] = []
        self._current: Point | None = None
        self._best: tuple[float, Point] | None = None
        self._sweep = 0
        self._control = self._new_control()
        self._runs: list[Run] = []
        self._rung = self._index = 0
        self._branch: Point | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase == "done"

    def advance(self) -> None:
        """Do one sweep, or one step of a descent."""
        if self.phase == "sweeps":
            self._advance_sweeps()
        else:
            self._advance_descent()

    # Sweeps

    def _advance_sweeps(self) -> None:
        """Sweep once from the current start; at its end go on to the next."""
        s = self.settings
        start = self.starts[len(self._points)]
        if self._current is None:
            self._current, self._best, self._sweep = self._seeded(len(self._points)), None, 0
            self._control = self._new_control()
        n_sweeps = s.n_sweeps if start.seeding is not None else 0
        constrained = s.codes != "signed" or s.support is not None
        codes, bank = self._current
        rule = CodeRule(s.codes, s.support, self._control.knob if self._control else 0.0)
        value, *after = sweep(self.tiles, codes, bank, rule, s.ridge)
        feasible = self._sweep > 0 or not constrained
        frozen = self._control is None or self._control.frozen(self._sweep, n_sweeps)
        if feasible and frozen and (self._best is None or value < self._best[0]):
            self._best = value, (codes, bank)
        if self._sweep in (0, n_sweeps):
            self._note("seed" if self._sweep == 0 else "sweeps", start.name, "identity", self._sweep, value)
        if self._sweep >= n_sweeps and self._best is not None:
            if self._control is not None:
                self._best = self._without_small_codes(*self._best[1])
            self._offer(*self._best, "identity")
            self._points.append(self._best[1])
            self._current = None
            if len(self._points) == len(self.starts):
                self._begin_linear()
            return
        if self._control is not None:
            self._control.update(float(support_of(after[0]).double().mean()), self._sweep, n_sweeps)
        self._current = after[0], after[1]
        self._sweep += 1

    def _seeded(self, number: int) -> Point:
        """Return codes and bank of a start, on the device."""
        s, start = self.settings, self.starts[number]
        if start.seeding is None:
            rng = generator(s.seed, "random bank", number)
            codes = torch.randn(self.tiles.n_experts, s.num_bases, generator=rng)
            bank = torch.randn(s.num_bases, s.rank, self.tiles.shape[1], generator=rng) / s.rank**0.5
        else:
            found = seed_bank(self.tiles, s.rank, s.num_bases, start.seeding)
            codes, bank = found.codes, found.bank
            if number == 0:
                self.seeding = {key: value for key, value in found.metrics.items() if key != "seconds"}
        return codes.to(self.tiles.device), bank.to(self.tiles.device)

    def _without_small_codes(self, codes: Tensor, bank: Tensor) -> tuple[float, Point]:
        """Set codes that do not count to zero, and return the error with them."""
        kept = codes * above(codes)
        if self.settings.codes == "simplex":
            kept = kept / kept.sum(1, keepdim=True)
        value = sweep(self.tiles, kept, bank, CodeRule("signed"), self.settings.ridge)[0]
        return value, (kept, bank)

    def _new_control(self) -> SupportControl | None:
        """Return the controller of the support, where one is wanted."""
        s = self.settings
        if s.support is None or s.codes == "sparse":
            return None
        return (PenaltyControl if s.codes == "signed" else TemperatureControl)(s.support, s.num_bases)

    # Descents

    def _ladder(self) -> list[Rung]:
        """Return the rungs of the phase."""
        s = self.settings
        activations = activations_of(s.activation)
        linear = round(s.polish_evals * LINEAR_SHARE) if activations else s.polish_evals
        if self.phase == "linear":
            return rungs(len(self.starts), linear, least=2)
        return rungs(len(activations) * len(scales_for(s.polish_evals)), s.polish_evals - linear)

    def _begin_linear(self) -> None:
        """Turn the points that sweeps have reached into runs."""
        self.phase, self._rung, self._index = "linear", 0, 0
        for start, point in zip(self.starts, self._points, strict=True):
            self._runs.append(Run.begin(start.name, self._problem("identity", point[0]), *point))

    def _begin_activations(self) -> None:
        """Start every activation at every scale from the point where the linear run that leads now began."""
        self.phase, self._rung, self._index, self._runs = "activations", 0, 0, []
        activations = activations_of(self.settings.activation)
        if not activations:
            self.phase = "done"
            return
        assert self._branch is not None
        if self.settings.activation != "auto":
            self.accepted = float("inf"), *self.accepted[1:]  # the linear model was only the way to what was asked for
        codes, bank = self._branch
        size = mix(codes, bank).square().mean().sqrt().clamp_min(1e-30)
        for activation in activations:
            for scale in scales_for(self.settings.polish_evals):
                name = f"{activation} from {scale:g}"
                problem = self._problem(activation, codes)
                self._runs.append(Run.begin(name, problem, codes, bank * (scale / size)))

    def _advance_descent(self) -> None:
        """Iterate the run whose turn it is; at the end of a rung keep the best half."""
        ladder = self._ladder()
        rung = ladder[self._rung]
        run = self._runs[self._index]
        if run.descent.evaluations < rung.evaluations and not run.descent.stalled:
            run.iterate()
            return
        self._note(self.phase, run.name, run.problem.activation, run.descent.evaluations, run.descent.value)
        self._index += 1
        if self._index < len(self._runs):
            return
        order = sorted(range(len(self._runs)), key=lambda i: (self._runs[i].descent.value, i))
        best = self._runs[order[0]]
        self._offer(best.descent.value, best.point, best.problem.activation)
        if self.phase == "linear" and self._rung == 0:
            self._branch = self._points[order[0]]
        self._rung, self._index = self._rung + 1, 0
        if self._rung < len(ladder):
            self._runs = [self._runs[i] for i in sorted(order[: ladder[self._rung].alive])]
        elif self.phase == "linear":
            self._begin_activations()
        else:
            self.phase = "done"

    def _problem(self, activation: str, codes: Tensor) -> Problem:
        """Return the problem of an activation; zero codes stay zero where the support is limited."""
        s = self.settings
        shape = (s.num_bases, s.rank, self.tiles.shape[1])
        kind = "sparse" if s.support is not None and s.codes == "signed" else s.codes
        parameters = CodeParameters(kind, codes != 0 if s.support is not None else None)
        return Problem(self.tiles, activation, parameters, shape, s.ridge)

    # What is kept

    def _offer(self, value: float, point: Point, activation: str) -> None:
        """Accept a point if it is better than any before."""
        if value < self.accepted[0]:
            self.accepted = value, (point[0].clone(), point[1].clone()), activation

    def _note(self, stage: str, name: str, activation: str, count: int, value: float) -> None:
        """Keep a point of the curve."""
        error = (value / self.total) ** 0.5 if self.total else 0.0
        self.history.append(
            {"stage": stage, "start": name, "activation": activation, "count": count, "relative_error": error}
        )
        logger.info("%s, %s, %s: relative error %.5f after %d", stage, name, activation, error, count)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which ``restore`` goes on."""
        points: dict[str, Point | None] = {"accepted": self.accepted[1], "branch": self._branch}
        points |= {f"point{i}": point for i, point in enumerate(self._points)}
        points |= {"current": self._current, "best": self._best[1] if self._best else None}
        tensors: dict[str, Tensor] = {}
        for name, point in points.items():
            if point is not None:
                tensors |= {f"{name}.codes": point[0], f"{name}.bank": point[1]}
        values = [self.accepted[0], self._best[0] if self._best else 0.0]
        tensors["values"] = torch.tensor(values, dtype=torch.float64)
        runs = [run.state() for run in self._runs]
        tensors |= {f"run{i}.{name}": tensor for i, (found, _) in enumerate(runs) for name, tensor in found.items()}
        position = {
            "phase": self.phase, "sweep": self._sweep, "rung": self._rung, "index": self._index,
            "activation": self.accepted[2], "points": len(self._points), "runs": [facts for _, facts in runs],
            "knob": self._control.knob if self._control else 0.0, "history": self.history,
            "seeding": self.seeding,
        }  # fmt: skip
        return {name: tensor.clone() for name, tensor in tensors.items()}, position

    def restore(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""

        def point(name: str) -> Point | None:
            if f"{name}.codes" not in tensors:
                return None
            codes, bank = (tensors[f"{name}.{part}"].to(self.tiles.device).clone() for part in ("codes", "bank"))
            return codes, bank

        accepted, best = point("accepted"), point("best")
        assert accepted is not None
        values = tensors["values"].tolist()
        self.phase, self._sweep = position["phase"], position["sweep"]
        self._rung, self._index = position["rung"], position["index"]
        self.accepted = values[0], accepted, position["activation"]
        self._best = None if best is None else (values[1], best)
        self._branch, self._current = point("branch"), point("current")
        self._points = [p for i in range(position["points"]) if (p := point(f"point{i}")) is not None]
        self.history, self.seeding = list(position["history"]), dict(position["seeding"])
        if self._control is not None:
            self._control.knob = position["knob"]
        self._runs = []
        for i, facts in enumerate(position["runs"]):
            own = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"run{i}.")}
            codes = self._branch[0] if self.phase == "activations" and self._branch else self._points[0][0]
            problem = self._problem(facts["activation"], self._mask_source(facts["name"], codes))
            self._runs.append(Run.restored(problem, own, facts))

    def _mask_source(self, name: str, codes: Tensor) -> Tensor:
        """Return the codes whose zeros a run keeps: those of its own start in the linear phase."""
        if self.phase == "linear":
            return self._points[[start.name for start in self.starts].index(name)][0]
        return codes
