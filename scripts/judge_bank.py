"""Judge the networks whose experts come from banks: accuracy, likelihood, distance from the network as trained."""

from eigenloom.experts.collection import load_banks
from eigenloom.experts.costs import operations_of
from eigenloom.nn.moe_judging import MoEJudge, results
from eigenloom.store.atomic import write_json
from job import Job, run


def main(job: Job) -> None:
    """Open banks and networks, judge every size, write."""
    spec, banks = job.spec, load_banks(job["banks"])
    rows = []
    for edge in job.lists["trainings"]:
        judge = MoEJudge(edge)
        sizes = dict.fromkeys(name.split(".")[0] for name in banks)
        for size in sizes:
            own = {n.split(".")[2]: bank for n, bank in banks.items() if n.startswith(f"{size}.{judge.training}.")}
            share = sum(bank.saving for bank in own.values()) / len(own)
            rows.append(judge.row(spec["bank"], size, share, {f: bank.reconstruct() for f, bank in own.items()}))
    seeding = {"method": next(iter(banks.values())).metrics["seeding"]["method"], "operations": {}}
    for name, bank in banks.items():
        size = name.split(".")[0]
        seeding["operations"][size] = seeding["operations"].get(size, 0.0) + operations_of(bank)
    write_json(job.out, results(spec["moe"], spec["bank"], rows, seeding=seeding, spec=spec, inputs=job.inputs))


if __name__ == "__main__":
    run(main, "banks", "trainings")
