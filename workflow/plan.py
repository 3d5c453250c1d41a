"""What a valid configuration asks for: sources, shards, bases with their floors, codings, and the jobs of every rule.

Plain data, no Snakemake: rules state their paths, a ``Plan`` states over which wildcards they run.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from eigenloom.bases.registry import find_kind, floor_of
from expert_models import ExpertJobs
from image_source import ImageSource
from source import FIT_SPLITS, PROBE_SPLITS, Source, Wildcards, cuts, number
from source_kinds import build

LAYOUTS = {"label": "distance", "topk": "projection", "dense": "projection"}
"""Layout of code files -> the geometry it is written for by default; ``dense`` serves both."""
CODINGS_BY_GEOMETRY = {
    "distance": (
        "onehot", "inverse-distance", "inverse-distance-nearest", "similarity", "squared-distance", "threshold",
        "nearest",
    ),
    "projection": ("dense", "topk"),
}  # fmt: skip
PLANNING_KEYS = ("kind", "codings", "sources")
"""Keys of a basis that are no parameters of its fit."""
GPU_FITS = ("kmeans", "kernel_pca", "robust_pca", "sae")
"""Kinds whose fit profits from a GPU; the others are one small eigendecomposition once moments exist."""
FAMILIES = {
    "spectra": (
        "simulate", "list_spectra", "denoise", "score_denoised", "fit_patches", "train_arms", "compare_arms",
    ),
    "stores": (
        "draw", "list_images", "train", "pin_model", "record", "label", "record_spectra", "label_spectra",
        "pin_text_model", "list_texts", "record_texts", "label_texts", "join_store", "adopt",
    ),
    "weights": ("train_run", "decompose", "rebuild"),
    "experts": ("train_moe", "fit_bank", "judge_bank", "judge_baselines", "tabulate_experts"),
    "moments": ("measure", "join_moments"),
    "bases": ("fit",),
    "codes": ("encode_label", "encode_topk", "encode_dense", "join_codes"),
    "probes": ("probe",),
    "metrics": ("evaluate", "score"),
    "optimizers": ("race",),
    "report": ("tabulate", "illustrate", "render"),
}  # fmt: skip
"""Family, which is also the name of a target -> the rules that make its files."""
ON_REQUEST = {"spectra_full": ("simulate_full", "fit_patches_full", "train_arms_full", "compare_arms_full")}
"""Targets that ``all`` leaves out -> their rules."""


class Plan(ExpertJobs):
    """Everything that a valid configuration asks for."""

    def __init__(self, config: Mapping[str, Any]):
        """Take a configuration that ``configuration.check`` found valid, defaults filled in."""
        self.config = config
        self._indices: dict[tuple[str, tuple[str, ...]], dict[tuple[str | None, ...], list[Wildcards]]] = {}
        self._sweeps: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.sources: dict[str, Source] = build(config["sources"])

    @cached_property
    def bases(self) -> dict[str, dict[str, Any]]:
        """Every basis and its floor: name -> kind and parameters, absent ones left to the kind."""
        bases = {}
        for name, entry in self.config["bases"].items():
            parameters = {k: v for k, v in entry.items() if k not in PLANNING_KEYS and v is not None}
            bases[name] = {"kind": entry["kind"], **parameters}
            bases[self.floor(name)] = floor_of(entry["kind"], parameters)
        return bases

    @staticmethod
    def floor(basis: str) -> str:
        """Name the floor of a basis."""
        return f"{basis}-random"

    def owner(self, basis: str) -> str:
        """Name the configured basis that a basis or floor belongs to."""
        return basis if basis in self.config["bases"] else basis.removesuffix("-random")

    def applied(self, basis: str) -> list[str]:
        """Return the sources that a basis or floor is fitted on: those it names, else all."""
        chosen = self.config["bases"][self.owner(basis)].get("sources")
        return [name for name in self.sources if not chosen or name in chosen]

    def geometry(self, basis: str) -> str:
        """Say where a basis's codes come from: ``distance`` or ``projection``."""
        return find_kind(self.bases[basis]["kind"]).geometry

    def file(self, basis: str, layer: str) -> str | None:
        """Return the user's file that a basis of one layer is read from; None where it is fitted."""
        path = self.bases[basis].get("path")
        return path and path.replace("{layer}", layer)

    def n_elements(self, basis: str, source: str) -> int:
        """Return the width of a code, as far as the configuration tells; mostly at most the row length."""
        entry = self.bases[basis]
        width = self.sources[source].width
        if "n_clusters" in entry:
            return entry["n_clusters"]
        n_components = entry.get("n_components", width)
        return n_components if find_kind(entry["kind"]).beyond_width else min(n_components, width)

    def sweep(self, basis: str, source: str) -> dict[str, dict[str, Any]]:
        """Return the codings of a basis: name -> kind and parameters; a list of ``k`` makes one coding per entry.

        Entries that would keep everything are left out (see ``dropped``).
        """
        if (basis, source) not in self._sweeps:
            listed = self._listed(basis)
            self._sweeps[basis, source] = {n: c for n, c in listed if not self._keeps_all(c, basis, source)}
        return self._sweeps[basis, source]

    def dropped(self, source: str) -> dict[str, list[str]]:
        """Return for each basis the codings that the sweep leaves out because they would keep everything."""
        applied = [basis for basis in self.config["bases"] if source in self.applied(basis)]
        listed = {b: [n for n, c in self._listed(b) if self._keeps_all(c, b, source)] for b in applied}
        return {basis: names for basis, names in listed.items() if names}

    @cached_property
    def codings(self) -> list[str]:
        """Every coding that some basis has on some source."""
        return sorted(
            {coding for basis in self.bases for source in self.applied(basis) for coding in self.sweep(basis, source)}
        )

    @property
    def environment(self) -> str:
        """The environment of rules that may use a GPU: ``cpu`` or ``gpu``."""
        return "cpu" if self.config["device"] in ("cpu", "mps") else "gpu"

    def gpus(self, rule: str, device: str, wildcards: Wildcards) -> int:
        """Say how many GPUs a job asks the scheduler for: one where its device may be a GPU and its work profits.

        On one machine the number limits nothing unless ``--resources gpu=N`` is given.
        """
        profits = rule != "fit" or self.bases[wildcards["basis"]]["kind"] in GPU_FITS
        return int(profits and device.startswith(("auto", "cuda")))

    def remarks(self) -> Iterator[str]:
        """Yield what a user should know though nothing is wrong."""
        for source in self.sources.values():
            for basis, names in self.dropped(source.name).items():
                yield f"bases.{basis}: {', '.join(names)} would keep all entries of {source.name} and are left out"
            yield from source.absent()

    def _keeps_all(self, coding: Mapping[str, Any], basis: str, source: str) -> bool:
        return "k" in coding and coding["k"] >= self.n_elements(basis, source)

    def _listed(self, basis: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and parameters of each coding, lists of ``k`` expanded."""
        for name in self.config["bases"][self.owner(basis)]["codings"]:
            entry = {key: value for key, value in self.config["codings"][name].items() if value is not None}
            if entry["kind"] == "nearest" and entry["values"] != "inverse-distance":
                del entry["eps"]
            if isinstance(entry.get("k"), list):
                yield from ((f"{name}-{number(k)}", {**entry, "k": k}) for k in sorted(entry["k"]))
            else:
                yield name, entry

    def topk(self, basis: str, source: str) -> list[int]:
        """Return the sizes of the Top-K sweep of a basis, rising."""
        return sorted({c["k"] for c in self.sweep(basis, source).values() if c["kind"] == "topk"})

    def layouts(self, basis: str, source: str) -> list[str]:
        """Return the layouts in which a basis's codes are written; none for floors."""
        if basis not in self.config["bases"]:
            return []
        wanted = self.config["encode"]["materialize"]
        fits = {
            "label": self.geometry(basis) == "distance",
            "topk": self.geometry(basis) == "projection" and bool(self.topk(basis, source)),
            "dense": True,
        }
        return [layout for layout in LAYOUTS if layout in wanted and fits[layout]]

    def encoded_splits(self, source: str) -> list[str]:
        """Return the splits of a source whose codes are written."""
        return [split for split in self.sources[source].splits if split in self.config["encode"]["splits"]]

    def viewed(self, source: str, basis: str, coding: str) -> str | None:
        """Return the written layout that a coding is read from, or None where the probe streams."""
        written = self.layouts(basis, source) if set(PROBE_SPLITS) <= set(self.encoded_splits(source)) else []
        kind = self.sweep(basis, source)[coding]["kind"]
        own = {"onehot": "label", "inverse-distance-nearest": "label", "topk": "topk"}.get(kind, "dense")
        return next((layout for layout in (own, "dense") if layout in written), None)

    def parts(self, source: str, split: str, section: str) -> list[list[int]]:
        """Return the shards of each part that a section (``measure``, ``encode``) cuts a split into."""
        return cuts(self.sources[source].n_shards(split), self.config[section]["shards_per_job"])

    def jobs(self, rule: str, **given: str) -> list[Wildcards]:
        """Return the wildcards of every job of a rule, or of those that have the given ones."""
        keys = tuple(sorted(given))
        if (rule, keys) not in self._indices:
            index: dict[tuple[str | None, ...], list[Wildcards]] = {}
            for job in getattr(self, f"_{rule}", self._recorded)(rule):
                index.setdefault(tuple(job.get(key) for key in keys), []).append(job)
            self._indices[rule, keys] = index
        return self._indices[rule, keys].get(tuple(given[key] for key in keys), [])

    def _recorded(self, rule: str) -> Iterator[Wildcards]:
        return (job for source in self.sources.values() for job in source.jobs.get(rule, ()))

    def trainings(self, collection: str) -> Iterator[tuple[str, Wildcards]]:
        """Yield rule and wildcards of the trainings whose checkpoints form a collection, the source's own first."""
        entry = self.collections[collection]
        yield "train", {"source": entry["source"]}
        yield from (("train_run", {"source": entry["source"], "run": run}) for run in entry["runs"])

    @property
    def snapshots(self) -> list[str]:
        """Names of the checkpoints that every training keeps."""
        return [f"snapshot-{i:02d}.safetensors" for i in range(1, self.config["weights"]["snapshots"] + 1)]

    @property
    def collections(self) -> Mapping[str, Mapping[str, Any]]:
        """Checkpoints that are decomposed together: name -> trainings and parameters."""
        return self.config["weights"]["collections"]

    @property
    def runs(self) -> Mapping[str, Mapping[str, Any]]:
        """Further trainings: name -> source and what differs from the source's own."""
        return self.config["weights"]["runs"]

    def _train_run(self, _rule: str) -> Iterator[Wildcards]:
        return ({"source": entry["source"], "run": run} for run, entry in self.runs.items())

    def _decompose(self, _rule: str) -> Iterator[Wildcards]:
        return ({"collection": collection} for collection in self.collections)

    _rebuild = _decompose

    def _measure(self, _rule: str) -> Iterator[Wildcards]:
        for source in self.sources:
            for split in FIT_SPLITS:
                for part in range(len(self.parts(source, split, "measure"))):
                    yield {"source": source, "split": split, "part": number(part)}

    def _join_moments(self, _rule: str) -> Iterator[Wildcards]:
        for source in self.sources.values():
            for split in FIT_SPLITS:
                yield from ({"source": source.name, "split": split, "layer": layer} for layer in source.layers)

    def _fit(self, _rule: str) -> Iterator[Wildcards]:
        for basis in self.bases:
            for source in self.applied(basis):
                for layer in self.sources[source].layers:
                    yield {"source": source, "basis": basis, "layer": layer}

    _evaluate = _fit

    def _join_codes(self, _rule: str) -> Iterator[Wildcards]:
        for w in self._fit("fit"):
            for layout in self.layouts(w["basis"], w["source"]):
                yield from ({**w, "layout": layout, "split": split} for split in self.encoded_splits(w["source"]))

    def _encode_label(self, rule: str) -> Iterator[Wildcards]:
        for w in self._join_codes(rule):
            if w.pop("layout") == rule.removeprefix("encode_"):
                n_parts = len(self.parts(w["source"], w["split"], "encode"))
                yield from ({**w, "part": number(part)} for part in range(n_parts))

    _encode_topk = _encode_dense = _encode_label

    def _probe(self, _rule: str) -> Iterator[Wildcards]:
        for w in self._fit("fit"):
            if self.sources[w["source"]].is_probed:
                yield from ({**w, "coding": coding} for coding in self.sweep(w["basis"], w["source"]))

    def _score(self, rule: str) -> Iterator[Wildcards]:
        return (w for w in self._probe(rule) if w["basis"] in self.config["bases"])

    def _illustrate(self, _rule: str) -> Iterator[Wildcards]:
        """Galleries of sources whose rows are patches of images and that are probed."""
        pictured = [name for name, source in self.sources.items() if isinstance(source, ImageSource)]
        own = {"name": self.config["name"]}
        return ({**own, "source": name} for name in pictured if self.jobs("probe", source=name))

    def _race(self, _rule: str) -> Iterator[Wildcards]:
        return self.races("reduced")

    def _race_full(self, _rule: str) -> Iterator[Wildcards]:
        return self.races("full")

    def races(self, name: str) -> Iterator[Wildcards]:
        """Yield the wildcards of every optimizer on every task of the ``reduced`` or the ``full`` race."""
        race = self.config["optimizers"]
        for task in race[name]["tasks"]:
            chosen = race["entries"] if race[name]["entries"] is None else race[name]["entries"]
            yield from ({"source": race["source"], "task": task, "entry": entry} for entry in chosen)

    def _rank_full(self, _rule: str) -> Iterator[Wildcards]:
        return iter([{"source": source} for source in dict.fromkeys(w["source"] for w in self.races("full"))])

    def _tabulate(self, _rule: str) -> Iterator[Wildcards]:
        yield {"name": self.config["name"]}

    _render = _tabulate
