"""Mixtures of experts in the plan: their trainings, the banks fitted to their experts, and the jobs of these rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from source import Wildcards

RESERVED = ("baselines", "trainings")
"""Directories beside those of the banks."""
FIT_KEYS = ("activation", "codes", "support", "n_sweeps", "polish_evals", "n_starts")
"""Keys of a bank that are parameters of the trainer; what is left but ``seeding`` belongs to the seeding."""
TRAINING_KEYS = ("steps", "batch_size", "lr", "warmup", "weight_decay", "noise", "label_smoothing", "balance")


def training_name(seed: int) -> str:
    """Name the training of a seed."""
    return f"seed-{seed}"


def size_name(rank: int, num_bases: int) -> str:
    """Name a size as results do."""
    return f"r{rank:02d}-m{num_bases:02d}"


class ExpertJobs:
    """The part of a plan that is about mixtures of experts."""

    config: Mapping[str, Any]

    @property
    def moes(self) -> Mapping[str, Mapping[str, Any]]:
        """Networks whose experts are compressed: name -> shape, trainings, sizes and banks."""
        return self.config["experts"]

    @property
    def banks(self) -> list[str]:
        """Every name of a bank of some network."""
        return sorted({bank for moe in self.moes.values() for bank in moe["banks"]})

    @property
    def moe_trainings(self) -> list[str]:
        """Every name of a training of some network."""
        return sorted({training_name(seed) for moe in self.moes.values() for seed in moe["seeds"]})

    def _train_moe(self, _rule: str) -> Iterator[Wildcards]:
        for moe, entry in self.moes.items():
            yield from ({"moe": moe, "training": training_name(seed)} for seed in entry["seeds"])

    def _fit_bank(self, _rule: str) -> Iterator[Wildcards]:
        for moe, entry in self.moes.items():
            yield from ({"moe": moe, "bank": bank} for bank in entry["banks"])

    _judge_bank = _fit_bank

    def _judge_baselines(self, _rule: str) -> Iterator[Wildcards]:
        return ({"moe": moe} for moe in self.moes)

    def _tabulate_experts(self, _rule: str) -> Iterator[Wildcards]:
        if self.moes:
            yield {"name": self.config["name"]}


class ExpertSpecs:
    """Specifications of the jobs that are about mixtures of experts."""

    config: Mapping[str, Any]

    def train_moe(self, w: Wildcards) -> dict[str, Any]:
        """Shape, data and training of a network; the split of the data is the experiment's."""
        model = self.config["experts"][w["moe"]]["model"]
        training = {key: model[key] for key in TRAINING_KEYS}
        shape = {key: value for key, value in model.items() if key not in (*TRAINING_KEYS, "n_test")}
        data = {"n_test": model["n_test"], "seed": self.config["seed"]}
        return {"data": data, "model": shape, "training": training, "seed": int(w["training"].removeprefix("seed-"))}

    def fit_bank(self, w: Wildcards) -> dict[str, Any]:
        """Families, sizes, seeding and trainer."""
        entry = self.config["experts"][w["moe"]]
        bank = {key: value for key, value in entry["banks"][w["bank"]].items() if value is not None}
        trainer = {key: bank.pop(key) for key in FIT_KEYS if key in bank}
        seeding = {"method": bank.pop("seeding"), **bank}
        return {"seed": self.config["seed"], **self._sizes(w), "seeding": seeding, "trainer": trainer}

    def judge_bank(self, w: Wildcards) -> dict[str, Any]:
        """Whose result it is."""
        return dict(w)

    def judge_baselines(self, w: Wildcards) -> dict[str, Any]:
        """Families and sizes, whose numbers of parameters are met."""
        return {**w, **self._sizes(w), "mobe_epochs": self.config["experts"][w["moe"]]["mobe_epochs"]}

    def tabulate_experts(self, w: Wildcards) -> dict[str, Any]:
        """The experiment's name."""
        return dict(w)

    def _sizes(self, w: Wildcards) -> dict[str, Any]:
        entry = self.config["experts"][w["moe"]]
        return {"families": entry["families"], "sizes": entry["sizes"]}


def contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line per contradiction in the section ``experts``."""
    for name, entry in config["experts"].items():
        at = f"experts.{name}"
        if name in config["sources"] or name in ("weights", "tables", "reports"):
            yield f"{at}: `{name}` is the name of a source or of a directory of results; rename it"
        yield from _sizes(at, entry)
        for bank, options in entry["banks"].items():
            yield from _bank(f"{at}.banks.{bank}", bank, options, min(num_bases for _, num_bases in entry["sizes"]))


def _sizes(at: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Shape of a network and sizes of its banks."""
    model = entry["model"]
    n_experts = model["num_experts"] * model["num_hidden_layers"]
    least = min(model["moe_intermediate_size"], model["hidden_size"])
    if model["num_experts_per_tok"] > model["num_experts"]:
        yield f"{at}.model.num_experts_per_tok: {model['num_experts_per_tok']} of {model['num_experts']} experts"
    for rank, num_bases in entry["sizes"]:
        if rank > least:
            yield f"{at}.sizes: rank {rank} is above the lesser side of the experts, {least}"
        if num_bases > n_experts:
            yield f"{at}.sizes: {num_bases} bases for {n_experts} experts"


def _bank(at: str, name: str, options: Mapping[str, Any], fewest: int) -> Iterator[str]:
    """Name and support of a bank."""
    support, codes = options["support"], options["codes"]
    if name in RESERVED:
        yield f"{at}: this directory belongs to the {name}; rename the bank"
    if codes == "sparse" and support is None:
        yield f"{at}.support: sparse codes need it, the number of nonzero codes per expert"
    if codes == "nonneg" and support is not None:
        yield f"{at}.support: {support}, but nonneg codes have no target; use sparse codes"
    if support is not None and support > fewest:
        yield f"{at}.support: {support}, more than the fewest bases of `sizes`, {fewest}"
