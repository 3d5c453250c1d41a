"""The ``spec`` of every job: all parameters that change its result, a digest of its code among them.

Device, threads, paths and how much of a GPU is asked for are none of them.
"""

from functools import cache
from pathlib import Path
from typing import Any

from code_digest import REMEMBERED, code_digest
from eigenloom.bases.registry import find_kind
from eigenloom.provenance import canonical_json
from expert_models import ExpertSpecs
from image_source import ImageSource
from plan import Plan
from pretrained_specs import PretrainedSpecs
from race_specs import RaceSpecs
from source import Wildcards, held_out_places
from spectra_source import STYLE, SpectraSource
from warm_study import Study

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "draw": "prepare",
    "list_images": "prepare",
    "train_run": "train",
    "tabulate": "write_tables",
    "race_full": "race",
    "rank_full": "rank",
} | dict.fromkeys(("encode_label", "encode_topk", "encode_dense"), "encode")
SCRIPTS |= {f"{rule}_full": rule for rule in ("simulate", "fit_patches", "train_arms", "compare_arms")}
"""Rules whose script has another name."""


class Specs(ExpertSpecs, PretrainedSpecs, RaceSpecs):
    """Canonical specifications of the jobs of a plan."""

    def __init__(self, plan: Plan):
        """Take the plan."""
        self.plan = plan
        self.config = plan.config

    def text(self, rule: str, wildcards: Wildcards) -> str:
        """Return the canonical JSON of a job's specification, code digest included."""
        kind = self.plan.bases[wildcards["basis"]]["kind"] if "basis" in wildcards else None
        own = {} if rule in ("join_codes", "score") else {"kind": kind}
        return canonical_json({**getattr(self, rule)(wildcards), "code": code(rule, own.get("kind"))})

    def _images(self, w: Wildcards) -> ImageSource:
        """Return the source of a job on images."""
        source = self.plan.sources[w["source"]]
        assert isinstance(source, ImageSource)
        return source

    def _spectra(self, w: Wildcards) -> SpectraSource:
        """Return the source of a job on spectra."""
        source = self.plan.sources[w["source"]]
        assert isinstance(source, SpectraSource)
        return source

    def draw(self, w: Wildcards) -> dict[str, Any]:
        """Which images of which set, in an order that the seed decides."""
        source = self._images(w)
        cut = source.config["splits"][w["split"]]
        sizes = {"n_examples": cut["n_examples"], "first": cut["first"]}
        images = dict(source.images(w["split"]))
        if images.get("classes"):  # labels follow their order, which the keys of a canonical mapping would lose
            images["classes"] = [[name, ids] for name, ids in images["classes"].items()]
        return {"seed": self.config["seed"], **w, **sizes, "images": images}

    list_images = draw

    def train(self, w: Wildcards) -> dict[str, Any]:
        """The network and its training."""
        source = self._images(w)
        preprocess = {**source.model["preprocess"], "n_patches": source.n_tokens}
        model = {**source.model, "preprocess": preprocess}
        kept = {"snapshots": self.config["weights"]["snapshots"]}
        return {"seed": self.config["seed"], "model": model, "labels": source.config["labels"], **kept}

    def train_run(self, w: Wildcards) -> dict[str, Any]:
        """The network of a source, trained otherwise: no bar, and a warm-up that fits."""
        spec, run = self.train(w), self.plan.runs[w["run"]]
        warmup = min(spec["model"]["warmup"], run["steps"])
        spec["model"] |= {"steps": run["steps"], "warmup": warmup, "bar": {}}
        spec["model"] |= {"optimizer": run["optimizer"]} if "optimizer" in run else {}
        return spec | ({} if run["seed"] is None else {"seed": run["seed"]})

    def decompose(self, w: Wildcards) -> dict[str, Any]:
        """Which checkpoints are left out, and how the others are decomposed."""
        return self._collection(w, "n_components", "method", "block_size")

    def rebuild(self, w: Wildcards) -> dict[str, Any]:
        """How far the decomposition is cut, and on how many networks and images it is judged."""
        return self._collection(w, "k", "judged", "n_images")

    def record(self, w: Wildcards) -> dict[str, Any]:
        """One shard of a recording."""
        source = self.plan.sources[w["source"]]
        return {
            "source": w["source"],
            "split": w["split"],
            "shard": int(w["part"]),
            "layers": source.layer_numbers,
            "n_examples": source.n_examples(w["split"]),
            **source.config["record"],
            "max_tokens_per_shard": source.max_tokens_per_shard(w["split"]),
        }

    def label(self, w: Wildcards) -> dict[str, Any]:
        """How patches get their labels."""
        source = self._images(w)
        geometry = {"resize": source.network.resize, "n_patches": source.n_tokens}
        return {**w, "patch": source.network.patch, "preprocess": geometry, "rule": source.config["labels"]}

    def simulate(self, w: Wildcards) -> dict[str, Any]:
        """Stars and instrument."""
        spectra = self._spectra(w).spectra
        style = {key: spectra[key] for key in STYLE}
        return {"seed": self.config["seed"], "n_spectra": spectra["n_spectra"], "style": style}

    def list_spectra(self, w: Wildcards) -> dict[str, Any]:
        """Which spectra of the file a split consists of, and how they are treated."""
        source = self._spectra(w)
        own = ("kind", "path", "keys")
        return {
            "seed": self.config["seed"],
            **w,
            "first": source.first(w["split"]),
            "n_examples": source.n_examples(w["split"]),
            "n_pixels": source.spectra["n_pixels"],
            **{key: source.config[key] for key in ("bad_pixels", "normalise")},
            "spectra": {key: value for key, value in source.spectra.items() if key in own},
        }

    record_spectra = record_texts = record

    def label_spectra(self, w: Wildcards) -> dict[str, Any]:
        """The label that is cut into classes."""
        return {**w, **self.plan.sources[w["source"]].config["classes"]}

    def simulate_full(self, w: Wildcards) -> dict[str, Any]:
        """As many stars as the full study of attention takes."""
        return {**self.simulate(w), "n_spectra": self._study(w, "_full").n_spectra}

    def denoise(self, w: Wildcards) -> dict[str, Any]:
        """How the survey is split."""
        source = self._spectra(w)
        return {**self._survey(w), "bad_pixels": source.config["bad_pixels"], "denoise": source.config["denoise"]}

    score_denoised = denoise

    def fit_patches(self, w: Wildcards, suffix: str = "") -> dict[str, Any]:
        """The windows, and the kernel PCA of them."""
        study, keys = self._study(w, suffix).config, ("patch", "patches_per_spectrum", "dim", "n_landmarks")
        treated = {key: self._spectra(w).config[key] for key in ("bad_pixels", "normalise")}
        return {**self._survey(w), **treated, "n_train": _size(w), **{key: study[key] for key in keys}}

    def train_arms(self, w: Wildcards, suffix: str = "") -> dict[str, Any]:
        """One size and seed of the study, all arms of it."""
        study = self._study(w, suffix)
        own = {key: value for key, value in study.config.items() if key not in ("n_train", "n_seeds")}
        own |= {"arms": list(study.arms), "n_most": max(study.config["n_train"])}
        return {**self.fit_patches(w, suffix), **own, "repeat": int(w["repeat"].removeprefix("seed-"))}

    def compare_arms(self, w: Wildcards, suffix: str = "") -> dict[str, Any]:
        """The order of the arms."""
        return {**w, "arms": list(self._study(w, suffix).arms)}

    def fit_patches_full(self, w: Wildcards) -> dict[str, Any]:
        """The same for the full study."""
        return self.fit_patches(w, "_full")

    def train_arms_full(self, w: Wildcards) -> dict[str, Any]:
        """The same for the full study."""
        return self.train_arms(w, "_full")

    def compare_arms_full(self, w: Wildcards) -> dict[str, Any]:
        """The same for the full study."""
        return self.compare_arms(w, "_full")

    def join_store(self, w: Wildcards) -> dict[str, Any]:
        """The description of a recording."""
        source = self.plan.sources[w["source"]]
        return {
            **w,
            "layers": source.layer_numbers,
            "n_examples": source.n_examples(w["split"]),
            "max_tokens_per_shard": source.max_tokens_per_shard(w["split"]),
            "ckpt": source.origin,
            "family": source.family,
        }

    def adopt(self, w: Wildcards) -> dict[str, Any]:
        """Where a recording lies, and what its labels mean."""
        config = self.plan.sources[w["source"]].config
        own = {key: config[key] for key in ("checksums", "classes", "void")}
        return {**w, **config["splits"][w["split"]], **own}

    def measure(self, w: Wildcards) -> dict[str, Any]:
        """The shards of one partial, and the layers where not all that are stored count."""
        source, part = self.plan.sources[w["source"]], self._part(w, "measure")
        return part | ({"layers": source.layer_numbers} if source.config["kind"] == "recorded" else {})

    def join_moments(self, w: Wildcards) -> dict[str, Any]:
        """The layer."""
        return {"layer": w["layer"]}

    def fit(self, w: Wildcards) -> dict[str, Any]:
        """Kind and parameters of the basis."""
        file = self.plan.file(w["basis"], w["layer"])
        basis = {**self.plan.bases[w["basis"]], **({"path": file} if file else {})}
        head = {"seed": self.config["seed"], "layer": w["layer"], "standardize": self.config["standardize"]}
        return {**head, "basis": basis}

    def encode_label(self, w: Wildcards) -> dict[str, Any]:
        """The nearest centre of every row."""
        return {"layout": "label", **self._encoding(w)}

    def encode_topk(self, w: Wildcards) -> dict[str, Any]:
        """The largest entries of every row, as many as the largest size that is probed."""
        stored_k = self.plan.topk(w["basis"], w["source"])[-1]
        return {"layout": "topk", "stored_k": stored_k, **self._encoding(w)}

    def encode_dense(self, w: Wildcards) -> dict[str, Any]:
        """Every entry of every row."""
        values = {"values": "squared-distance"} if self.plan.geometry(w["basis"]) == "distance" else {}
        return {"layout": "dense", "dtype": self.config["encode"]["dtype"], **values, **self._encoding(w)}

    def join_codes(self, w: Wildcards) -> dict[str, Any]:
        """Layout and split."""
        return {key: w[key] for key in ("layer", "layout", "split")}

    def evaluate(self, w: Wildcards) -> dict[str, Any]:
        """The sizes of the Top-K sweep."""
        return {**self._applied(w), "topk": self.plan.topk(w["basis"], w["source"])}

    def probe(self, w: Wildcards) -> dict[str, Any]:
        """The coding and the probe's own parameters."""
        return {
            "seed": self.config["seed"],
            **self._applied(w),
            "coding": self.plan.sweep(w["basis"], w["source"])[w["coding"]],
            "probe": self.config["probe"],
        }

    def score(self, w: Wildcards) -> dict[str, Any]:
        """Whose result, gallery, table or page it is."""
        return dict(w)

    illustrate = tabulate = render = score

    def _study(self, w: Wildcards, suffix: str) -> Study:
        """Return the study of attention whose rules end so."""
        return next(study for study in self._spectra(w).studies if study.suffix == suffix)

    def _survey(self, w: Wildcards) -> dict[str, Any]:
        """Return which survey is read."""
        spectra = self._spectra(w).spectra
        own = {key: value for key, value in spectra.items() if key in ("kind", "path", "keys")}
        return {"seed": self.config["seed"], "source": w["source"], "spectra": own}

    def _collection(self, w: Wildcards, *keys: str) -> dict[str, Any]:
        """Parameters of a collection, and the places of the checkpoints left out in each of its trainings."""
        entry = self.plan.collections[w["collection"]]
        held_out = held_out_places(self.config["weights"]["snapshots"], entry["held_out"])
        return {"seed": self.config["seed"], **w, "held_out": held_out, **{key: entry[key] for key in keys}}

    def _applied(self, w: Wildcards) -> dict[str, Any]:
        """The layer that a basis is applied to, and whether its rows may have drifted."""
        return {"layer": w["layer"], "allow_shift": self.plan.sources[w["source"]].config["allow_shift"]}

    def _encoding(self, w: Wildcards) -> dict[str, Any]:
        """What all layouts share."""
        return {**self._applied(w), **self._part(w, "encode")}

    def _part(self, w: Wildcards, section: str) -> dict[str, Any]:
        """Number and shards of a part."""
        part = int(w["part"])
        return {"part": part, "shards": self.plan.parts(w["source"], w["split"], section)[part]}


def _size(w: Wildcards) -> int:
    """Return the number of spectra that a wildcard names."""
    return int(w["size"].removeprefix("n-"))


@cache
def code(rule: str, kind: str | None) -> str:
    """Digest a rule's script, the modules it imports, and the module of the kind of basis it works on."""
    modules = [find_kind(kind).module] if kind else []
    script = ROOT / "scripts" / f"{SCRIPTS.get(rule, rule)}.py"
    return code_digest(script, [ROOT / "src", ROOT / "scripts"], modules, ROOT / REMEMBERED)
