"""The study of attention that starts from kernel PCA: its jobs, and what is contradictory in its configuration.

The default study is part of every run; the full one, more spectra and seeds, runs on request (``snakemake
spectra_full``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from source import Wildcards

ARMS = ("cold", "small", "linear-pca", "random-features", "kpca-warm")
FULL_ARMS = (*ARMS, "kpca-sharp")
RULES = ("fit_patches", "train_arms", "compare_arms")


@dataclass(frozen=True)
class Study:
    """``name``, which is its folder; ``suffix`` of its rules; its ``config``; its ``arms``."""

    name: str
    suffix: str
    config: Mapping[str, Any]
    arms: Sequence[str]

    @property
    def n_spectra(self) -> int:
        """How many spectra its parts take."""
        return max(self.config["n_train"]) + self.config["n_val"] + self.config["n_test"]

    def jobs(self, source: str, simulated: bool) -> dict[str, list[Wildcards]]:
        """Return the wildcards of its jobs by rule."""
        sizes: list[Wildcards] = [{"source": source, "size": f"n-{n:05d}"} for n in sorted(self.config["n_train"])]
        seeds = [{**size, "repeat": f"seed-{seed}"} for size in sizes for seed in range(self.config["n_seeds"])]
        by_rule = dict(zip(RULES, (sizes, seeds, [{"source": source}]), strict=True))
        found = {f"{rule}{self.suffix}": jobs for rule, jobs in by_rule.items()}
        return found | ({"simulate_full": [{"source": source}]} if self.suffix and simulated else {})

    def unknown_labels(self, at: str, known: Sequence[str]) -> Iterator[str]:
        """Yield a line for each label that simulated stars lack."""
        for label in self.config["labels"]:
            if label not in known:
                yield f"{at}.attention.labels: simulated stars have no `{label}`; known: {', '.join(known)}"

    def contradictions(self, at: str, width: int, n_spectra: int | None) -> Iterator[str]:
        """Yield a line for each contradiction; ``n_spectra`` of a simulated survey, which the full study draws anew."""
        config, at = self.config, f"{at}.attention"
        if n_spectra is not None and not self.suffix and self.n_spectra > n_spectra:
            yield f"{at}: n_train, n_val and n_test ask for {self.n_spectra} spectra, but n_spectra is {n_spectra}"
        if width and config["patch"] > width:
            yield f"{at}.patch: {config['patch']} pixels, but spectra have {width}"
        if config["dim"] % config["heads"] or config["dim"] % 2:
            yield f"{at}.dim: {config['dim']} must be even and a multiple of heads, {config['heads']}"
        if config["dim"] > config["n_landmarks"]:
            yield f"{at}.n_landmarks: {config['n_landmarks']} cannot span {config['dim']} components, as dim asks"
        if config["dim"] > config["patch"]:
            yield f"{at}.dim: {config['dim']}, but patches of {config['patch']} pixels have fewer linear components"
        n_patches = min(config["n_train"]) * config["patches_per_spectrum"]
        if config["n_landmarks"] > n_patches:
            yield f"{at}.n_landmarks: {config['n_landmarks']}, but the smallest n_train has {n_patches} patches"
        if config["freeze_qk_epochs"] > config["epochs"]:
            yield f"{at}.freeze_qk_epochs: {config['freeze_qk_epochs']}, but there are {config['epochs']} epochs"


def studies(config: Mapping[str, Any] | None) -> list[Study]:
    """Return the studies that a source's ``attention`` asks for."""
    if not config:
        return []
    own = {key: value for key, value in config.items() if key != "full"}
    found = [Study("attention", "", own, ARMS)]
    return found + ([Study("attention-full", "_full", {**own, **config["full"]}, FULL_ARMS)] if config["full"] else [])
