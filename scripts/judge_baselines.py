"""Judge networks whose experts come from other factorisations of as many parameters, and the controls."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from eigenloom.experts import baselines, factorisations
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.mobe import train_mobe
from eigenloom.nn.moe_judging import MoEJudge, controls, results
from eigenloom.store.atomic import write_json
from job import Job, run

Factorisation = tuple[str, float, Callable[[Tensor], Tensor]]


def main(job: Job) -> None:
    """Open every network, judge it and its controls, then every factorisation at every size, and write."""
    spec = job.spec
    rows: list[dict[str, Any]] = []
    for edge in job.lists["trainings"]:
        judge = MoEJudge(edge)
        rows += controls(judge, spec["families"])
        own = {family: judge.experts(family) for family in spec["families"]}
        shape = next(iter(own.values())).shape
        for rank, num_bases in spec["sizes"]:
            for name, share, factorise in compared(
                (shape[0], shape[1], shape[2]), rank, num_bases, spec["mobe_epochs"]
            ):
                size = f"r{rank:02d}-m{num_bases:02d}"
                rows.append(judge.row(name, size, share, {f: factorise(w) for f, w in own.items()}))
    write_json(job.out, results(spec["moe"], "baselines", rows, spec=spec, inputs=job.inputs))


def compared(shape: tuple[int, int, int], rank: int, num_bases: int, mobe_epochs: int) -> Iterator[Factorisation]:
    """Yield name, share of the parameters and function of every factorisation at a bank's size."""
    e, p, d = shape
    whole = e * p * d
    groups = min(num_bases, e)
    n_parameters = baselines.bank_parameters(e, (p, d), rank, num_bases)
    found = factorisations.equal_sizes(n_parameters, shape, groups)
    k, one, many, delta = (found[name] for name in ("truncated", "stacked", "grouped", "delta"))
    yield "SVD of the bank's rank (bound)", e * rank * (p + d) / whole, lambda w: baselines.truncated(w, rank)
    yield "truncated SVD", k * (p + d) / whole, lambda w: factorisations.truncated_together(w, k)
    yield "stacked SVD", one * (e * p + d) / whole, lambda w: factorisations.stacked(w, one)
    yield "grouped SVD", many * (e * p + groups * d) / whole, lambda w: factorisations.stacked(w, many, groups)
    share = (p * d + delta * (p + d)) / whole
    yield "mean and delta", share, lambda w: factorisations.mean_and_delta(w, delta)
    if mobe_epochs:
        name = f"MoBE, tanh, {mobe_epochs} epochs"
        yield name, n_parameters / whole, lambda w: rival(w, rank, num_bases, mobe_epochs)


def rival(w: Tensor, rank: int, num_bases: int, epochs: int) -> Tensor:
    """Train MoBE's objective and return what its factors make of the experts."""
    arm = train_mobe(w, rank, num_bases, activation="tanh", epochs=epochs)
    names = tuple(map(str, range(len(w))))
    return ExpertBank(arm.bank, arm.codes, arm.adapters, "tanh", False, "", names).reconstruct()


if __name__ == "__main__":
    run(main, "trainings")
