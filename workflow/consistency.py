"""What a schema cannot say: the parts of a configuration that contradict each other, one line each."""

from collections.abc import Iterator
from typing import Any

from eigenloom.bases.registry import find_kind
from expert_models import contradictions as expert_contradictions
from plan import CODINGS_BY_GEOMETRY, Plan
from source import held_out_places
from source_kinds import KINDS

Config = dict[str, Any]


def contradictions(config: Config) -> list[str]:
    """Return one line per contradiction in a configuration that its schema accepts."""
    lines = [*_references(config), *_bases(config), *_codings(config)]
    if lines:
        return lines
    plan = Plan(config)
    lines += [*_trainings(config), *expert_contradictions(config), *_race(config)]
    for source in plan.sources.values():
        lines += source.contradictions()
    return lines or list(_sizes(plan))


def _references(config: Config) -> Iterator[str]:
    """Names that nothing carries."""
    for name, source in config["sources"].items():
        yield from KINDS[source["kind"]].references(name, source, config["sources"])
    for name, basis in config["bases"].items():
        for source in basis.get("sources") or []:
            if source not in config["sources"]:
                known = ", ".join(config["sources"])
                yield f"bases.{name}.sources: no source is called `{source}`; known: {known}"


def _trainings(config: Config) -> Iterator[str]:
    """Trainings and collections of weights."""
    weights = config["weights"]
    trained = {n: s["model"] for n, s in config["sources"].items() if s.get("model", {}).get("kind") == "vit"}
    n_snapshots = weights["snapshots"]
    unknown = {run["source"] for run in weights["runs"].values()} - trained.keys()
    if "weights" in config["sources"] and weights["collections"]:
        yield "sources.weights: artifacts/weights belongs to the collections of weights; rename the source"
    for section in ("runs", "collections"):
        for name, entry in weights[section].items():
            if entry["source"] not in trained:
                known = ", ".join(trained) or "none"
                at = f"weights.{section}.{name}.source"
                yield f"{at}: `{entry['source']}` trains no network; sources that do: {known}"
    lengths = {f"sources.{n}.model": model["steps"] for n, model in trained.items()}
    lengths |= {f"weights.runs.{n}": run["steps"] for n, run in weights["runs"].items()}
    for at, steps in lengths.items():
        if steps < n_snapshots:
            yield f"{at}.steps: {steps} steps cannot leave {n_snapshots} checkpoints; lower weights.snapshots"
    for name, entry in weights["collections"].items():
        at = f"weights.collections.{name}"
        for run in entry["runs"]:
            if weights["runs"].get(run, {}).get("source") not in (entry["source"], *unknown):
                fitting = ", ".join(n for n, r in weights["runs"].items() if r["source"] == entry["source"]) or "none"
                yield f"{at}.runs: no run of {entry['source']} is called `{run}`; known: {fitting}"
        yield from _collection(entry, n_snapshots, at)


def _collection(entry: Config, n_snapshots: int, at: str) -> Iterator[str]:
    """Sizes of one collection."""
    held_out = len(held_out_places(n_snapshots, entry["held_out"]))
    n_fitted = (1 + len(entry["runs"])) * (n_snapshots - held_out)
    if not held_out:
        yield f"{at}.held_out: none of {n_snapshots} checkpoints would be left out; raise weights.snapshots"
    elif entry["n_components"] >= n_fitted:
        yield f"{at}.n_components: {entry['n_components']}, but {n_fitted} fitted checkpoints have rank {n_fitted - 1}"
    if max(entry["k"]) > entry["n_components"]:
        yield f"{at}.k: {max(entry['k'])} is more than n_components, {entry['n_components']}"
    if entry["block_size"] & (entry["block_size"] - 1):
        yield f"{at}.block_size: {entry['block_size']} is no power of two"


def _race(config: Config) -> Iterator[str]:
    """A race on the images of a source that trains no network, or longer windows than races."""
    race = config["optimizers"]
    trained = [n for n, s in config["sources"].items() if s.get("model", {}).get("kind") == "vit"]
    if race["entries"] and race["source"] not in trained:
        known = ", ".join(trained) or "none"
        yield f"optimizers.source: `{race['source']}` trains no network; sources that do: {known}"
    for name in ("reduced", "full"):
        for entry in race[name]["entries"] or ():
            if entry not in race["entries"]:
                known = ", ".join(race["entries"]) or "none"
                yield f"optimizers.{name}.entries: no entry is called `{entry}`; known: {known}"
        for key in ("warmup", "window"):
            if race[name][key] > race[name]["steps"]:
                yield f"optimizers.{name}.{key}: {race[name][key]} is more than the {race[name]['steps']} steps"


def _bases(config: Config) -> Iterator[str]:
    """Bases whose names collide or whose codings do not fit."""
    for name, basis in config["bases"].items():
        owner = name.removesuffix("-random")
        if owner != name and owner in config["bases"]:
            yield f"bases.{name}: this is the name of the floor of `{owner}`; rename it"
        geometry = find_kind(basis["kind"]).geometry
        fitting = CODINGS_BY_GEOMETRY[geometry]
        for coding in basis.get("codings", []):
            entry = config["codings"].get(coding)
            if entry is None:
                known = ", ".join(n for n, c in config["codings"].items() if c["kind"] in fitting)
                yield f"bases.{name}.codings: no coding is called `{coding}`; those that fit: {known}"
            elif entry["kind"] not in fitting:
                yield (
                    f"bases.{name}.codings: `{coding}` ({entry['kind']}) does not fit {basis['kind']}, whose codes are "
                    f"{geometry}s; kinds that do: {', '.join(fitting)}"
                )
        if 0 < (basis.get("init_rows") or 0) < basis.get("n_clusters", 0):
            yield f"bases.{name}.init_rows: {basis['init_rows']} rows cannot seed {basis['n_clusters']} clusters"
        if 0 < (basis.get("n_landmarks") or 0) < basis.get("n_components", 0):
            yield f"bases.{name}.n_components: {basis['n_components']}, but n_landmarks is {basis['n_landmarks']}"
        if basis["kind"] in ("dictionary", "sae"):
            yield from _dictionary(basis, f"bases.{name}")
        if not basis.get("codings"):
            yield f"bases.{name}: missing key `codings`"


def _dictionary(basis: Config, at: str) -> Iterator[str]:
    """Activation and sizes of a dictionary."""
    n_active, activation = basis["n_active"], basis.get("activation", "topk")
    if (activation == "topk") != (n_active is not None):
        yield f"{at}.n_active: goes with `activation: topk`, and only with it"
    elif n_active is not None and n_active > basis["n_components"]:
        yield f"{at}.n_active: {n_active}, but n_components is {basis['n_components']}"
    if basis.get("threshold") is not None and activation != "jumprelu":
        yield f"{at}.threshold: goes with `activation: jumprelu`, and only with it"


def _codings(config: Config) -> Iterator[str]:
    """Codings whose expanded names collide."""
    names: dict[str, str] = {}
    for name, entry in config["codings"].items():
        sizes = entry.get("k")
        for own in [f"{name}-{k:05d}" for k in sizes] if isinstance(sizes, list) else [name]:
            if own in names:
                yield f"codings.{name}: `{own}` is also made by codings.{names[own]}"
            names[own] = name


def _sizes(plan: Plan) -> Iterator[str]:
    """Bases larger than their data."""
    for name, entry in plan.config["bases"].items():
        for source in map(plan.sources.__getitem__, plan.applied(name)):
            n_rows = source.n_rows("fit_train")
            n_clusters, n_components = entry.get("n_clusters") or 0, entry.get("n_components") or 0
            if n_clusters > n_rows:
                yield f"bases.{name}.n_clusters: {n_clusters}, but fit_train of {source.name} has {n_rows} rows"
            if entry["kind"] == "sae" and n_components > n_rows:
                yield f"bases.{name}.n_components: {n_components}, but fit_train of {source.name} has {n_rows} rows"
            if len(source.layers) > 1 and "{layer}" not in entry.get("path", "{layer}"):
                layers = ", ".join(source.layers)
                yield f"bases.{name}.path: one file for {layers} of {source.name}; put `{{layer}}` where they differ"
            if (n_landmarks := entry.get("n_landmarks") or 0) > n_rows:
                yield f"bases.{name}.n_landmarks: {n_landmarks}, but fit_train of {source.name} has {n_rows} rows"
            if n_components > source.width and not find_kind(entry["kind"]).beyond_width:
                yield f"bases.{name}.n_components: {n_components}, but rows of {source.name} have length {source.width}"
            if not plan.sweep(name, source.name):
                yield f"bases.{name}.codings: every k keeps all entries of {source.name}; add `dense` or a smaller k"
