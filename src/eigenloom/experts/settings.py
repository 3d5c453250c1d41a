"""What a seeding and a training can be told, checked once and before anything is read."""

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from eigenloom.errors import ConfigError


class SeedingMethod(StrEnum):
    """How a bank begins; see ``docs/methods/experts.md``."""

    SVD = "svd"
    TS_PCA = "ts_pca"
    LEFT_GRAM_PCA = "left_gram_pca"
    SPHERICAL_KMEANS = "spherical_kmeans"
    RESIDUAL_GREEDY = "residual_greedy"
    HYBRID = "hybrid"


ROW_SELECTIONS = ("energy", "uniform", "random")
GAUGES = ("procrustes", "weighted", "none")
CODE_RULES = ("ls", "nnls", "omp")
KMEANS_INITS = ("kmeans++", "random")
ACTIVATIONS = ("identity", "silu", "tanh")
CODES = ("signed", "nonneg", "simplex", "sparse")


@dataclass(frozen=True)
class SeedingConfig:
    """How to seed a bank.

    method: one of ``SeedingMethod``, or its name. row_selection: which rows of each expert ``ts_pca`` and the methods
    that build on rows take: those of most ``energy`` over all experts, at ``uniform`` distances, or at ``random``.
    normalize_atoms: atoms of unit Frobenius norm, the norm moved into the codes. gauge: ``procrustes``, proxies made
    orthonormal and rotated towards their mean; ``weighted``, rotated with their singular values kept; ``none``.
    gauge_sweeps: at most so many rounds. code_rule: ``ls``, ``nnls`` or ``omp`` (at most half of the atoms, at least
    one, per expert); ``residual_greedy`` reads ``ls`` as ``nnls``, since with free codes it is a PCA. kmeans_iters,
    kmeans_init (``kmeans++`` or ``random``): of ``spherical_kmeans`` and ``hybrid``. hybrid_pca_ratio: share of the
    atoms of ``hybrid`` that a PCA makes. seed: of ``random`` rows and of k-means.
    """

    method: SeedingMethod = SeedingMethod.TS_PCA
    row_selection: str = "energy"
    normalize_atoms: bool = True
    gauge: str = "procrustes"
    gauge_sweeps: int = 10
    code_rule: str = "ls"
    kmeans_iters: int = 25
    kmeans_init: str = "kmeans++"
    hybrid_pca_ratio: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: an unknown word or a value out of range.
        """
        words = [method.value for method in SeedingMethod]
        if self.method not in words:
            raise ConfigError(f"seeding method: {self.method!r} is unknown; use {', '.join(words)}")
        object.__setattr__(self, "method", SeedingMethod(self.method))
        one_of("row_selection", self.row_selection, ROW_SELECTIONS)
        one_of("gauge", self.gauge, GAUGES)
        one_of("code_rule", self.code_rule, CODE_RULES)
        one_of("kmeans_init", self.kmeans_init, KMEANS_INITS)
        at_least("gauge_sweeps", self.gauge_sweeps, 0)
        at_least("kmeans_iters", self.kmeans_iters, 1)
        at_least("seed", self.seed, 0)
        if not isinstance(self.normalize_atoms, bool):
            raise ConfigError(f"normalize_atoms: {self.normalize_atoms!r} is neither true nor false")
        ratio = self.hybrid_pca_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise ConfigError(f"hybrid_pca_ratio: {ratio!r} is not a number from 0 to 1")

    def as_parameters(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "method": self.method.value}


@dataclass(frozen=True)
class TrainingSettings:
    """The parameters of ``AlternatingBankTrainer`` that change its result."""

    rank: int
    num_bases: int
    seeding: SeedingConfig
    activation: str = "auto"
    codes: str = "signed"
    support: int | None = None
    n_sweeps: int = 20
    polish_evals: int = 1500
    n_starts: int = 4
    normalize: bool = True
    center: bool = False
    ridge: float = 1e-10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: an unknown word or a value out of range.
        """
        for name in ("rank", "num_bases", "n_starts"):
            at_least(name, getattr(self, name), 1)
        for name in ("n_sweeps", "polish_evals", "seed"):
            at_least(name, getattr(self, name), 0)
        one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        one_of("codes", self.codes, CODES)
        if self.codes == "sparse" and self.support is None:
            raise ConfigError(
                "support: codes 'sparse' need the number of nonzero codes per expert; give support=2, say"
            )
        if self.support is not None:
            at_least("support", self.support, 1)
            if self.support > self.num_bases:
                raise ConfigError(
                    f"support: {self.support} codes per expert out of {self.num_bases} bases; must be at most that"
                )
            if self.codes == "nonneg":
                raise ConfigError("support: codes 'nonneg' take none; use 'sparse', 'simplex' or 'signed'")
        if self.center and not self.normalize:
            raise ConfigError("center: needs normalize=True")
        if not isinstance(self.ridge, float) or not 0 <= self.ridge < 1:
            raise ConfigError(f"ridge: {self.ridge!r} is not a number in [0, 1)")

    def as_parameters(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "seeding": self.seeding.as_parameters()}


def check_sizes(rank: int, num_bases: int, n_experts: int, shape: tuple[int, int], family: str = "experts") -> None:
    """Refuse a bank that cannot be, or that is no smaller than one basis per expert.

    Raises:
        ConfigError: rank above ``min(p, d)``, or more bases than experts.
    """
    at_least("rank", rank, 1)
    at_least("num_bases", num_bases, 1)
    if rank > min(shape):
        raise ConfigError(
            f"rank: {rank} is above min(p, d) = {min(shape)} of family {family!r} ({shape[0]} x {shape[1]}); lower it"
        )
    if num_bases > n_experts:
        raise ConfigError(f"num_bases: {num_bases} bases for the {n_experts} experts of family {family!r}; lower it")


def one_of(name: str, value: Any, words: tuple[str, ...]) -> None:
    """Refuse an unknown word."""
    if value not in words:
        raise ConfigError(f"{name}: {value!r} is unknown; use {', '.join(words)}")


def at_least(name: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")
