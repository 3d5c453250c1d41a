"""What a valid configuration asks for: sources, shards, bases with their floors, codings, and the jobs of every rule.

Plain data, no Snakemake: rules state their paths, a ``Plan`` states over which wildcards they run.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from eigenloom.bases.registry import find_kind, floor_of
from source import FIT_SPLITS, PROBE_SPLITS, Source, cuts, number

Wildcards = dict[str, str]

LAYOUTS = {"label": "distance", "topk": "projection", "dense": "projection"}
"""Layout of code files -> the geometry it is written for by default; ``dense`` serves both."""
CODINGS_BY_GEOMETRY = {
    "distance": (
        "onehot", "inverse-distance", "inverse-distance-nearest", "similarity", "squared-distance", "threshold",
        "nearest",
    ),
    "projection": ("dense", "topk"),
}  # fmt: skip
GPU_FITS = ("kmeans",)
"""Kinds whose fit profits from a GPU; the others are one small eigendecomposition once moments exist."""
FAMILIES = {
    "stores": ("draw", "list_images", "train", "record", "label", "join_store"),
    "moments": ("measure", "join_moments"),
    "bases": ("fit",),
    "codes": ("encode_label", "encode_topk", "encode_dense", "join_codes"),
    "probes": ("probe",),
    "metrics": ("evaluate", "score"),
    "report": ("tabulate", "render"),
}
"""Family, which is also the name of a target -> the rules that make its files."""


class Plan:
    """Everything that a valid configuration asks for."""

    def __init__(self, config: Mapping[str, Any]):
        """Take a configuration that ``configuration.check`` found valid, defaults filled in."""
        self.config = config
        self._indices: dict[tuple[str, tuple[str, ...]], dict[tuple[str | None, ...], list[Wildcards]]] = {}
        self._sweeps: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.sources: dict[str, Source] = {}
        for name, entry in sorted(config["sources"].items(), key=lambda item: "source" in item[1]["model"]):
            self.sources[name] = Source(name, entry, self.sources.get(entry["model"].get("source")))

    @cached_property
    def bases(self) -> dict[str, dict[str, Any]]:
        """Every basis and its floor: name -> kind and parameters, absent ones left to the kind."""
        bases = {}
        for name, entry in self.config["bases"].items():
            parameters = {k: v for k, v in entry.items() if k not in ("kind", "codings") and v is not None}
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

    def geometry(self, basis: str) -> str:
        """Say where a basis's codes come from: ``distance`` or ``projection``."""
        return find_kind(self.bases[basis]["kind"]).geometry

    def n_elements(self, basis: str, source: str) -> int:
        """Return the width of a code, as far as the configuration tells; at most the row length for projections."""
        entry = self.bases[basis]
        width = self.sources[source].width
        return entry["n_clusters"] if "n_clusters" in entry else min(entry.get("n_components", width), width)

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
        listed = {b: [n for n, c in self._listed(b) if self._keeps_all(c, b, source)] for b in self.config["bases"]}
        return {basis: names for basis, names in listed.items() if names}

    @cached_property
    def codings(self) -> list[str]:
        """Every coding that some basis has on some source."""
        return sorted(
            {coding for basis in self.bases for source in self.sources for coding in self.sweep(basis, source)}
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
            for name, images in source.config["images"].items():
                if "root" in images and not Path(images["root"]).exists():
                    yield f"sources.{source.name}.images.{name}: {images['root']} is absent; edits of it are not seen"

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
            for job in getattr(self, f"_{rule}")(rule):
                index.setdefault(tuple(job.get(key) for key in keys), []).append(job)
            self._indices[rule, keys] = index
        return self._indices[rule, keys].get(tuple(given[key] for key in keys), [])

    def _splits(self) -> Iterator[tuple[Source, Wildcards]]:
        for source in self.sources.values():
            for split in source.splits:
                yield source, {"source": source.name, "split": split}

    def _draw(self, rule: str) -> Iterator[Wildcards]:
        return (w for s, w in self._splits() if (s.images(w["split"])["kind"] == "scenes") == (rule == "draw"))

    _list_images = _draw

    def _train(self, _rule: str) -> Iterator[Wildcards]:
        return ({"source": source.name} for source in self.sources.values() if source.trainer is None)

    def _record(self, _rule: str) -> Iterator[Wildcards]:
        return ({**w, "part": number(i)} for s, w in self._splits() for i in range(s.n_shards(w["split"])))

    def _label(self, _rule: str) -> Iterator[Wildcards]:
        return (w for source, w in self._splits() if source.has_masks(w["split"]))

    def _join_store(self, _rule: str) -> Iterator[Wildcards]:
        return (w for _, w in self._splits())

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
            for source in self.sources.values():
                yield from ({"source": source.name, "basis": basis, "layer": layer} for layer in source.layers)

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

    def _tabulate(self, _rule: str) -> Iterator[Wildcards]:
        yield {"name": self.config["name"]}

    _render = _tabulate
