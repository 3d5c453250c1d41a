"""What a configuration asks for, and which jobs an edit of each key changes, without Snakemake."""

import copy
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import specs as specs_module
from configuration import check, schema
from eigenloom.store.protocol import Metadata, metadata_bytes
from plan import FAMILIES, ON_REQUEST, Plan
from source import cuts, held_out_places
from specs import Specs

ROOT = Path(__file__).resolve().parents[2]
RULES = [rule for rules in (FAMILIES | ON_REQUEST).values() for rule in rules]


@pytest.fixture(autouse=True)
def _one_digest(monkeypatch):
    """Code does not change here, and scripts need not exist."""
    monkeypatch.setattr(specs_module, "code", lambda rule, kind: f"{rule} {kind}")


@cache
def recordings() -> tuple[str, tempfile.TemporaryDirectory]:
    """Three recordings of which only the description is there: more a plan does not read."""
    held = tempfile.TemporaryDirectory()
    for name, n_examples in (("one", 1000), ("two", 100), ("three", 100)):
        directory = Path(held.name, name)
        directory.mkdir()
        metadata = Metadata("dinov3", "dinov3_vits16", (0, 2), 4, True, 64, n_examples, 1000, "", "images")
        (directory / "metadata.json").write_bytes(metadata_bytes(metadata))
    return os.path.relpath(held.name), held


def default() -> dict[str, Any]:
    """The default configuration and, so that every key occurs, sources of folders, spectra, recordings of one's own."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["sources"]["photos"] = {
        "images": {
            "plain": {"kind": "image_folder", "root": "data/plain"},
            "masked": {"kind": "segmentation_folder", "root": "data/masked", "classes": {"sea": [1], "air": [2, 3]}},
        },
        "splits": {
            "fit_train": {"images": "plain", "n_examples": 2000},
            "fit_val": {"images": "plain", "n_examples": 100, "first": 2000},
            "probe_train": {"images": "masked", "n_examples": 50},
            "probe_val": {"images": "masked", "n_examples": 50, "first": 50},
        },
        "model": {"kind": "trained", "source": "scenes"},
        "layers": [3],
    }
    config["sources"]["own"] = {
        "kind": "spectra",
        "spectra": {"kind": "hdf5", "path": "data/own.h5", "n_pixels": 512},
        "splits": {"fit_train": {"n_examples": 900}, "fit_val": {"n_examples": 100}},
    }
    config["sources"]["foreign"] = {
        "kind": "recorded",
        "splits": {"fit_train": {"path": f"{recordings()[0]}/one"}, "fit_val": {"path": f"{recordings()[0]}/two"}},
        "classes": 3,
    }
    config["weights"]["runs"]["again"] = {"source": "scenes", "optimizer": {"kind": "spectra_teon"}}
    config["codings"] |= {"near": {"kind": "threshold"}, "few": {"kind": "nearest", "k": 8}}
    config["bases"]["long"] = {"kind": "srht_pca", "n_components": 16}
    config["bases"]["taken"] = {"kind": "dictionary", "path": "data/{layer}.safetensors", "n_components": 512}
    config["bases"]["kernel-pca"]["codings"] = ["topk", "dense"]
    more = ["inverse-distance", "similarity", "near", "few", "inverse-distance-nearest"]
    config["bases"]["kmeans-064"]["codings"] += more
    config["encode"]["materialize"] = ["label", "topk", "dense"]
    return config


def with_another() -> dict[str, Any]:
    """The same, and a second network, trained by the other optimizer."""
    config = default()
    config["sources"]["again"] = copy.deepcopy(config["sources"]["scenes"])
    config["sources"]["again"]["model"]["optimizer"] = {"kind": "adamw"}
    return config


def with_pretrained() -> dict[str, Any]:
    """The default configuration, and images through a pretrained network that is not there, its size stated."""
    config = default()
    config["sources"]["ready"] = {
        "images": {
            "scenes": {"kind": "scenes", "canvas": 64},
            "ade": {"kind": "ade20k", "root": "data/ade", "part": "training"},
            "full": {
                "kind": "ade20k", "root": "data/full", "part": "training", "layout": "full",
                "classes": {"sky": [2420], "sea": [7]},
            },
        },
        "splits": {
            "fit_train": {"images": "scenes", "n_examples": 50},
            "fit_val": {"images": "scenes", "n_examples": 20},
            "probe_train": {"images": "ade", "n_examples": 30},
            "probe_val": {"images": "full", "n_examples": 30},
        },
        "model": {
            "kind": "pretrained", "path": "data/dino",
            "shape": {"architecture": "dinov3_vit", "width": 96, "depth": 12, "patch": 16},
            "preprocess": {"n_patches": 16},
        },
        "layers": [9, 10, 11],
    }  # fmt: skip
    return config


def with_texts() -> dict[str, Any]:
    """The default configuration, and texts through a network that is not there, its size stated."""
    config = default()
    cuts = {"fit_train": (40, 0), "fit_val": (20, 40), "probe_train": (30, 60), "probe_val": (10, 90)}
    config["sources"]["words"] = {
        "kind": "texts",
        "texts": {"corpus": "data/corpus.jsonl"},
        "splits": {s: {"texts": "corpus", "n_examples": n, "first": first} for s, (n, first) in cuts.items()},
        "model": {
            "path": "data/bert", "n_tokens": 32, "shape": {"architecture": "bert", "width": 96, "depth": 12},
        },
        "classes": ["noun", "verb"],
        "layers": "last-1",
    }  # fmt: skip
    return config


def plan_of(config: dict[str, Any]) -> Plan:
    config = copy.deepcopy(config)
    assert check(config) == []
    return Plan(config)


def texts(config: dict[str, Any]) -> dict[tuple[str, ...], str]:
    """(rule, wildcards) of every job -> its specification."""
    plan = plan_of(config)
    specs = Specs(plan)
    return {(rule, *job.values()): specs.text(rule, job) for rule in RULES for job in plan.jobs(rule)}


def changed(before: dict[str, Any], path: str, value: Any) -> set[tuple[str, ...]]:
    """The jobs that an edit adds, removes or gives another specification."""
    after = copy.deepcopy(before)
    *parents, key = path.split("/")
    node = after
    for parent in parents:
        node = node.setdefault(parent, {})
    node[key] = value
    one, two = texts(before), texts(after)
    return {job for job in one.keys() | two.keys() if one.get(job) != two.get(job)}


S, M, K, P = "sources/scenes", "sources/scenes/model", "bases/kmeans-256", "bases/pca"
N = "bases/kernel-pca"
STARS, OWN = "sources/stars", "sources/own"
READY, WORDS = "sources/ready/model", "sources/words"
X = "experts/digits-moe"
RACE = "optimizers"
W, R = "weights/collections/trajectory", "weights/runs/gentle"
TRAIN = {"train", "train_run"}
NO_TEXTS = {rule: set() for rule in ("pin_text_model", "list_texts", "record_texts", "label_texts")}
SIMULATE, DENOISE = {"simulate", "simulate_full"}, {"denoise", "score_denoised"}
PATCHES, ARMS = {"fit_patches", "fit_patches_full"}, {"train_arms", "train_arms_full"}
ATTENTION = f"{STARS}/attention"
SEEDED = {"draw", "list_images", *TRAIN, *SIMULATE, *DENOISE, *PATCHES, *ARMS, "list_spectra", "decompose", "rebuild"}
SEEDED |= {"fit", "probe", "train_moe", "fit_bank"}
ENCODES = {"encode_label", "encode_topk", "encode_dense"}
STORE = {"record", "join_store"}
CODINGS = {"probe", "score"}
AFTER_LAYERS = {*STORE, "join_moments", "fit", "evaluate", *ENCODES, "join_codes", *CODINGS}
# Dotted path -> (another value, rules whose own specification changes). What follows from inputs, Snakemake knows.
EDITS: dict[str, tuple[Any, set[str]]] = {
    "name": ("other", {"illustrate", "tabulate", "tabulate_experts", "render"}),
    "seed": (1, SEEDED),
    "device": ("cpu", set()),
    "standardize": ("center", {"fit"}),
    f"{S}/images/scenes/canvas": (72, {"race", "draw", *TRAIN, "label", "record", "measure", *ENCODES}),
    f"{S}/images/scenes/patch": (16, {"draw"}),
    f"{S}/images/scenes/digits": ([1, 4], {"draw"}),
    f"{S}/images/scenes/zooms": ([4, 3, 2], {"draw"}),
    "sources/photos/images/plain/root": ("data/other", {"list_images"}),
    "sources/photos/images/masked/root": ("data/other", {"list_images"}),
    "sources/photos/images/masked/classes": ({"air": [2, 3], "sea": [1]}, {"list_images"}),
    "sources/photos/images/masked/void": ([0, 255], {"list_images"}),
    "sources/photos/splits/fit_val/first": (2001, {"list_images"}),
    "sources/photos/splits/fit_val/images": ("masked", {"list_images", "label"}),
    f"{S}/splits/fit_val/n_examples": (300, {"draw", *STORE}),
    f"{S}/splits/probe_val/n_shards": (3, {*STORE, *ENCODES}),
    f"{S}/splits/probe_val/n_examples": (500, {"draw", *STORE, *ENCODES}),
    f"{M}/width": (64, {*TRAIN, "evaluate", "encode_topk", *CODINGS}),
    f"{M}/depth": (5, TRAIN),
    f"{M}/heads": (8, TRAIN),
    f"{M}/patch": (16, {"race", *TRAIN, "label", "record", "measure", *ENCODES}),
    f"{M}/steps": (100, {"train"}),
    f"{M}/batch_size": (16, TRAIN),
    f"{M}/warmup": (0, TRAIN),
    f"{M}/void_weight": (0.5, {"race", *TRAIN}),
    f"{M}/optimizer/lr": (0.001, TRAIN),
    f"{M}/optimizer/adamw_lr": (0.001, TRAIN),
    f"{M}/optimizer/rank_ratio": (0.1, TRAIN),
    f"{M}/optimizer/stack": (1, TRAIN),
    f"{M}/optimizer/weight_decay": (0.0, TRAIN),
    f"{M}/optimizer/clip": (2.0, TRAIN),
    f"{M}/bar/accuracy": (0.5, {"train"}),
    f"{M}/bar/recall": (0.5, {"train"}),
    f"{M}/bar/below_prior": (True, {"train"}),
    f"{M}/preprocess": ({"resize": "square", "n_patches": 64}, {"race", *TRAIN, "label"}),
    f"{M}/preprocess/resize": None,  # the two go together, above
    f"{M}/preprocess/n_patches": None,
    f"{M}/preprocess/mean": ([0.0, 0.0, 0.0], {"race", *TRAIN}),
    f"{M}/preprocess/std": ([1.0, 1.0, 1.0], {"race", *TRAIN}),
    "sources/again/model/optimizer/betas": ([0.9, 0.9], {"train"}),
    "sources/photos/model/source": None,  # needs a second network, below
    f"{READY}/path": ("data/other", {"pin_model", "join_store"}),
    f"{READY}/revision": ("v1", {"pin_model"}),
    f"{READY}/download": (True, set()),  # how files come here changes nothing
    f"{READY}/blocks": ("model.layer", {"pin_model"}),
    f"{READY}/cls": (False, {"pin_model"}),
    f"{READY}/shape/architecture": ("dinov2", {"pin_model", "join_store"}),
    f"{READY}/shape/width": (64, {"pin_model", "evaluate", "encode_topk", *CODINGS}),
    f"{READY}/shape/depth": (24, {"pin_model"}),
    f"{READY}/shape/patch": (8, {"pin_model", "label"}),
    f"{READY}/preprocess/resize": ("square", {"pin_model", "label"}),
    f"{READY}/preprocess/n_patches": (64, {"pin_model", "label"}),
    f"{READY}/preprocess/mean": ([0.0, 0.0, 0.0], {"pin_model"}),
    f"{READY}/preprocess/std": ([1.0, 1.0, 1.0], {"pin_model"}),
    "sources/words/texts/corpus": ("data/other.jsonl", {"list_texts"}),
    f"{WORDS}/model/path": ("data/other", {"pin_text_model", "join_store"}),
    f"{WORDS}/model/revision": ("v1", {"pin_text_model"}),
    f"{WORDS}/model/download": (True, set()),
    f"{WORDS}/model/blocks": ("encoder.layer", {"pin_text_model"}),
    f"{WORDS}/model/n_tokens": (64, {"pin_text_model", "list_texts"}),
    f"{WORDS}/model/bos": (False, {"pin_text_model", "list_texts"}),
    f"{WORDS}/model/shape/architecture": ("roberta", {"pin_text_model"}),
    f"{WORDS}/model/shape/width": (64, {"pin_text_model", "evaluate", "encode_topk", *CODINGS}),
    f"{WORDS}/model/shape/depth": (13, {"pin_text_model", "record_texts", *AFTER_LAYERS} - {"record", "encode_label"}),
    f"{WORDS}/classes": (["verb", "noun"], {"list_texts"}),
    f"{WORDS}/splits/fit_val/texts": None,  # there is one
    "sources/ready/images/ade/part": ("validation", {"list_images"}),
    "sources/ready/images/ade/root": ("data/other", {"list_images"}),
    "sources/ready/images/ade/layout": None,  # goes with the classes
    "sources/ready/images/full/classes": ({"sea": [7], "sky": [2420]}, {"list_images"}),
    f"{S}/layers": ([0, 3], AFTER_LAYERS),
    f"{S}/labels": ("majority", {"race", "label", *TRAIN}),
    f"{S}/allow_shift": (True, {*ENCODES, "evaluate", "probe"}),
    f"{S}/record/max_tokens_per_shard": (32500, {*STORE, "measure", *ENCODES}),
    f"{S}/record/batch_size": (50, {"record"}),
    f"{S}/record/forward_dtype": ("bfloat16", {"record"}),
    f"{STARS}/spectra/n_spectra": (2500, {"simulate"}),
    f"{STARS}/spectra/n_pixels": (256, {*SIMULATE, "list_spectra", "evaluate", "encode_topk", *CODINGS}),
    **{
        f"{STARS}/spectra/{key}": (value, SIMULATE)
        for key, value in {
            "wavelength": [4000.0, 6000.0], "n_lines": 9, "line_seed": 1, "velocity": 0, "snr": [5, 6], "hit_rate": 0,
            "hit_amplitude": 2,
        }.items()
    },
    f"{OWN}/spectra/path": ("data/other.h5", {"list_spectra"}),
    **{f"{OWN}/spectra/keys/{key}": ("x", {"list_spectra"}) for key in ("flux", "error", "wavelength", "labels")},
    "sources/foreign/splits/fit_val/path": (f"{recordings()[0]}/three", {"adopt"}),
    "sources/foreign/layers": ([2], {"measure", "join_moments", "fit", "evaluate"}),
    "sources/foreign/classes": (["void", "sky"], {"adopt"}),
    "sources/foreign/void": (0, {"adopt"}),
    "sources/foreign/checksums": (False, {"adopt"}),
    "sources/foreign/allow_shift": (True, {"evaluate"}),
    f"{STARS}/bad_pixels": ("mask", {"list_spectra", *DENOISE, *PATCHES, *ARMS}),
    f"{STARS}/normalise": ("continuum", {"list_spectra", *PATCHES, *ARMS}),
    **{
        f"{STARS}/denoise/{key}": (value, DENOISE)
        for key, value in {
            "lambda_scale": 1.0, "threshold": 4.0, "positive": False, "rank_guess": 9, "max_iter": 9,
        }.items()
    },
    f"{ATTENTION}/n_train": ([300, 900], {"fit_patches", "train_arms"}),
    f"{ATTENTION}/n_val": (200, {*ARMS, "simulate_full"}),
    f"{ATTENTION}/n_test": (400, {*ARMS, "simulate_full"}),
    f"{ATTENTION}/n_seeds": (4, {"train_arms"}),
    f"{ATTENTION}/epochs": (9, {"train_arms"}),
    **{
        f"{ATTENTION}/{key}": (value, ARMS)
        for key, value in {
            "labels": ["T_eff"], "noise": [1], "stride": 8, "depth": 1, "heads": 2, "freeze_qk_epochs": 1,
            "batch_size": 8, "lr": 0.1, "weight_decay": 0.0, "target_logit_std": 1.0,
        }.items()
    },
    **{
        f"{ATTENTION}/{key}": (value, PATCHES | ARMS)
        for key, value in {"patch": 96, "dim": 32, "n_landmarks": 128, "patches_per_spectrum": 4}.items()
    },
    f"{ATTENTION}/full/n_train": ([300], {"simulate_full", "fit_patches_full", "train_arms_full"}),
    f"{ATTENTION}/full/n_seeds": (5, {"train_arms_full"}),
    f"{ATTENTION}/full/epochs": (9, {"train_arms_full"}),
    f"{STARS}/splits/probe_val/n_examples": (200, {"list_spectra", "record_spectra", "join_store"}),
    f"{STARS}/splits/fit_train/n_examples": (900, {"list_spectra", "record_spectra", "join_store"}),
    f"{STARS}/classes/label": ("M_H", {"label_spectra"}),
    f"{STARS}/classes/bins": (4, {"label_spectra"}),
    f"{K}/n_clusters": (255, {"fit"}),
    f"{K}/sources": (["scenes", "stars"], {"fit", "evaluate", *ENCODES, "join_codes", *CODINGS} - {"encode_topk"}),
    f"{K}/codings": (["onehot"], CODINGS),
    **{
        f"{K}/{key}": (value, {"fit"})
        for key, value in {
            "algorithm": "minibatch", "batch_size": 1, "minibatch_iter": 1, "polish_iter": 1, "n_init": 1,
            "max_iter": 1, "tol": 0.5, "init": "random", "init_rows": 999, "learning_rate": "ema",
            "decay": 0.5, "ema": 0.5, "relocate": 0.0, "precision": "screen",
        }.items()
    },
    f"{P}/n_components": (16, {"fit", "evaluate", "encode_topk", *CODINGS}),
    f"{P}/codings": (["topk"], CODINGS),
    f"{P}/sources": (["scenes"], {"fit", "evaluate", *ENCODES, "join_codes", *CODINGS} - {"encode_label"}),
    f"{P}/whiten": (True, {"fit"}),
    f"{P}/tol": (0.1, {"fit"}),
    f"{P}/rank_tol": (0.1, {"fit"}),
    f"{N}/n_components": (16, {"fit", "evaluate", "encode_topk", *CODINGS}),
    f"{N}/codings": (["topk"], CODINGS),
    **{
        f"{N}/{key}": (value, {"fit"})
        for key, value in {
            "n_landmarks": 99, "kernel": "poly", "gamma": 0.1, "degree": 2, "coef0": 0.5, "whiten": True, "ridge": 0.1,
            "landmark_choice": "k-means++", "kernel_dtype": "float64", "rank_tol": 0.1, "preimage": "landmarks",
        }.items()
    },
    **{
        f"bases/robust-pca/{key}": (value, {"fit"})
        for key, value in {
            "rank_guess": 9, "lambda_": 0.1, "tol": 0.1, "gap_tol": 0.1, "max_iter": 9, "sample_rows": 99,
            "noise_std": "auto", "robust_iter": 2,
        }.items()
    },
    "bases/long/method": ("srht", {"fit"}),
    "bases/long/r_factor": (8.0, {"fit"}),
    "bases/long/power_iter": (0, {"fit"}),
    "bases/long/block_size": (1024, {"fit"}),
    "bases/taken/path": ("data/other-{layer}.safetensors", {"fit"}),
    "bases/taken/n_components": (64, {"fit", "evaluate", "encode_topk", *CODINGS}),
    "bases/taken/activation": None,  # goes with one of the next two
    "bases/taken/n_active": None,
    "bases/taken/threshold": None,
    "bases/taken/rows": ("standardized", {"fit"}),
    "bases/taken/subtract_bias": (False, {"fit"}),
    **{
        f"bases/taken/keys/{key}": ("x", {"fit"})
        for key in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold")
    },
    "bases/sae/n_components": (400, {"fit"}),
    **{
        f"bases/sae/{key}": (value, {"fit"})
        for key, value in {
            "n_active": 8, "steps": 9, "batch_size": 9, "lr": 0.1, "warmup": 9, "dead_after": 9, "n_aux": 9,
            "aux_weight": 0.5,
        }.items()
    },
    "codings/inverse-distance/eps": (1.0, {"probe"}),
    "codings/inverse-distance-nearest/eps": (1.0, {"probe"}),
    "codings/topk/k": ([1, 4], {"evaluate", "encode_topk", *CODINGS}),
    "codings/few/k": (7, {"probe"}),
    "codings/few/values": ("similarity", {"probe"}),
    "codings/few/eps": (1.0, {"probe"}),
    "codings/near/tau": (2.0, {"probe"}),
    "codings/near/quantile": (0.2, {"probe"}),
    "measure/shards_per_job": (1, {"measure"}),
    "encode/shards_per_job": (1, ENCODES),
    "encode/materialize": (["label", "topk"], {"encode_dense", "join_codes"}),
    "encode/splits": (["fit_val"], {*ENCODES, "join_codes"}),
    "encode/dtype": ("float16", {"encode_dense"}),
    **{
        f"probe/{key}": (value, {"probe"})
        for key, value in {
            "l2": 1.0e-4, "objective": "saev", "class_weight": "inverse_frequency", "bins": 64, "polish": "all",
            "polish_limit": 1, "top_n": 0, "memory_mb": 64, "void": "class",
        }.items()
    },
    "weights/snapshots": (12, {*TRAIN, "decompose", "rebuild"}),
    f"{R}/source": None,  # needs a second network
    f"{R}/seed": (5, {"train_run"}),
    f"{R}/steps": (50, {"train_run"}),
    f"{R}/optimizer/lr": (0.001, {"train_run"}),
    f"{R}/optimizer/betas": ([0.9, 0.9], {"train_run"}),
    f"{R}/optimizer/weight_decay": (0.0, {"train_run"}),
    f"{R}/optimizer/clip": (2.0, {"train_run"}),
    **{
        f"weights/runs/again/optimizer/{key}": (value, {"train_run"})
        for key, value in {"adamw_lr": 0.001, "rank_ratio": 0.1, "stack": 1}.items()
    },
    f"{W}/source": None,
    f"{W}/runs": (["gentle"], set()),  # seen by its inputs
    f"{W}/held_out": (3, {"decompose", "rebuild"}),
    f"{W}/n_components": (9, {"decompose"}),
    f"{W}/method": ("dual", {"decompose"}),
    f"{W}/block_size": (131072, {"decompose"}),
    f"{W}/k": ([0, 8], {"rebuild"}),
    f"{W}/judged": (2, {"rebuild"}),
    f"{W}/n_images": (50, {"rebuild"}),
    f"{X}/seeds": ([0, 1, 2, 3, 5], {"train_moe"}),  # banks see it by their inputs
    f"{X}/families": (["up"], {"fit_bank", "judge_baselines"}),
    f"{X}/mobe_epochs": (5, {"judge_baselines"}),
    f"{X}/sizes": ([[16, 8]], {"fit_bank", "judge_baselines"}),
    **{
        f"{X}/model/{key}": (value, {"train_moe"})
        for key, value in {
            "hidden_size": 48, "moe_intermediate_size": 16, "num_experts": 12, "num_experts_per_tok": 1, "lr": 0.001,
            "num_hidden_layers": 3, "n_test": 400, "steps": 100, "batch_size": 64, "warmup": 10, "weight_decay": 2,
            "noise": 0, "label_smoothing": 0, "balance": 0,
        }.items()
    },
    **{
        f"{X}/banks/ts-pca/{key}": (value, {"fit_bank"})
        for key, value in {
            "seeding": "svd", "row_selection": "uniform", "gauge": "none", "code_rule": "omp", "activation": "auto",
            "codes": "simplex", "support": 3, "n_sweeps": 5, "polish_evals": 7, "n_starts": 2,
        }.items()
    },
    f"{RACE}/source": ("again", {"race"}),
    f"{RACE}/weight_decay": (0.2, {"race"}),
    f"{RACE}/reduced/tasks": (["text"], {"race"}),
    f"{RACE}/reduced/entries": (["spectra"], {"race"}),
    f"{RACE}/full/entries": (["spectra"], set()),
    **{
        f"{RACE}/reduced/{key}": (value, {"race"})
        for key, value in {"steps": 50, "warmup": 5, "seeds": 2, "window": 5}.items()
    },
    # The full race is a target of its own: its rules are none of `all`.
    **{
        f"{RACE}/full/{key}": (value, set())
        for key, value in {"tasks": ["text"], "steps": 50, "warmup": 5, "seeds": 2, "window": 5}.items()
    },
    **{
        f"{RACE}/shapes/patches/{key}": (value, {"race"})
        for key, value in {"width": 32, "depth": 2, "heads": 2, "batch_size": 8}.items()
    },
    **{
        f"{RACE}/shapes/text/{key}": (value, set())  # not a task of the reduced race
        for key, value in {"width": 32, "depth": 2, "heads": 2, "batch_size": 8, "context": 32}.items()
    },
    f"{RACE}/entries/spectra-teon/algorithm": ("muon", {"race"}),
    **{
        f"{RACE}/entries/spectra-teon/{key}": (value, {"race"})
        for key, value in {"literal": True, "stack": 1, "rank_ratio": 0.1, "min_rank": 1, "oversample": 2}.items()
    },
    f"{RACE}/entries/spectra-teon/lr/patches": (0.1, {"race"}),
    f"{RACE}/entries/spectra-teon/adamw_lr/patches": (0.1, {"race"}),
    f"{RACE}/entries/spectra-teon/lr/text": (0.1, set()),
    f"{RACE}/entries/spectra-teon/adamw_lr/text": (0.1, set()),
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path, edit in EDITS.items() if edit])
def test_an_edit_of_a_key_changes_exactly_its_rules(path):
    value, rules = EDITS[path]
    used = (value, *path.split("/"))
    makers = {"again": with_another, "ready": with_pretrained, "words": with_texts}
    make = next((make for name, make in makers.items() if name in used), default)
    jobs = changed(make(), path, value)
    assert {job[0] for job in jobs} == rules
    if path.startswith(K):
        assert all({"kmeans-256", "kmeans-256-random"} & set(job) for job in jobs)
        assert any("kmeans-256-random" in job for job in jobs) == (path.endswith(("n_clusters", "codings", "sources")))
    if path.startswith(P) and not path.endswith(("n_components", "codings", "sources")):
        assert not any("pca-random" in job for job in jobs)


def test_every_key_of_the_schema_has_its_edit():
    """Each leaf of the schema occurs in the table above, by its place with names and kinds left out."""

    def leaves(node: Any, path: tuple[str, ...]) -> set[tuple[str, ...]]:
        while "$ref" in node:
            node = schema()["$defs"][node["$ref"].rpartition("/")[2]]
        found = set()
        for key, child in node.get("properties", {}).items():
            found |= {() if key == "kind" else leaf for leaf in leaves(child, (*path, key))}
        if path != ("classes",) and isinstance(node.get("additionalProperties"), dict) and path[-1] != "classes":
            found |= leaves(node["additionalProperties"], (*path, "*"))
        for child in node.get("oneOf", []):
            found |= leaves(child, path)
        return found - {()} or {path}

    named = {"sources": (1, 3), "bases": (1,), "codings": (1,), "weights": (2,), "optimizers": (2,)}

    def place(path: str) -> tuple[str, ...]:
        parts = path.split("/")
        wild = [*named.get(parts[0], ())]
        if parts[:2] in (["optimizers", "shapes"], ["optimizers", "reduced"], ["optimizers", "full"]):
            wild = []
        if parts[:1] == ["sources"] and (len(parts) < 4 or parts[2] not in ("images", "texts")):
            wild = [1]
        if parts[:1] == ["experts"]:
            wild = [1, 3] if parts[2] == "banks" else [1]
        return tuple("*" if n in wild and n < len(parts) else part for n, part in enumerate(parts))

    tested = {place(path) for path in EDITS}
    splits = {("sources", "*", "splits", s, k) for s in ("fit_train", "fit_val", "probe_train", "probe_val")
              for k in ("images", "texts", "n_examples", "first", "n_shards", "path")}  # fmt: skip
    missing = {leaf for leaf in leaves(schema(), ()) if leaf not in tested} - splits
    assert missing == {("codings", "*")}  # codings that have a kind and nothing else


def test_a_dictionary_has_a_file_per_layer_and_its_activation_goes_with_a_number():
    config = default()
    plan = plan_of(config)
    at = {"source": "scenes", "layer": "layer-03"}
    assert plan.file("taken", "layer-03") == plan.file("taken-random", "layer-03") == "data/layer-03.safetensors"
    assert plan.file("pca", "layer-03") is None
    assert Specs(plan).fit({**at, "basis": "taken"})["basis"]["path"] == "data/layer-03.safetensors"
    assert Specs(plan).fit({**at, "basis": "taken-random"})["basis"]["random"] is True
    floor = Specs(plan).fit({**at, "basis": "sae-random"})["basis"]
    assert floor == {"kind": "sae", "n_components": 384, "n_active": 16, "steps": 0}
    for edit in ({"activation": "topk", "n_active": 16}, {"activation": "jumprelu", "threshold": 0.1}):
        after = copy.deepcopy(config)
        after["bases"]["taken"] |= edit
        one, two = texts(config), texts(after)
        assert {job[0] for job in one if one[job] != two[job]} == {"fit"}


def test_another_network_changes_what_is_recorded():
    config = default()
    config["sources"]["other"] = {**copy.deepcopy(config["sources"]["scenes"])}
    config["sources"]["other"]["model"]["steps"] = 64
    jobs = changed(config, "sources/photos/model/source", "other")
    assert {job[1] for job in jobs} == {"photos"}
    assert {job[0] for job in jobs} == {"join_store"}  # the rest follows from the input of `record`


@pytest.mark.parametrize("layers", ["9-11", "last-3"])
def test_layers_may_be_a_range_or_an_end(layers):
    assert changed(with_pretrained(), "sources/ready/layers", layers) == set()
    assert plan_of(with_pretrained()).sources["ready"].layers == ["layer-09", "layer-10", "layer-11"]


def test_a_pretrained_network_is_pinned_and_not_trained():
    plan = plan_of(with_pretrained())
    assert plan.jobs("pin_model") == [{"source": "ready"}]
    assert plan.jobs("train") == [{"source": "scenes"}]
    source = plan.sources["ready"]
    assert (source.width, source.n_tokens, source.has_cls, source.family) == (96, 16, True, "dinov3")
    assert (source.origin, source.model_edges()) == ("data/dino", ["artifacts/ready/model/meta.json"])
    assert Specs(plan).pin_model({"source": "ready"}) == {
        "model": {
            "path": "data/dino", "revision": None, "blocks": None, "cls": None,
            "preprocess": {"resize": "grid", "n_patches": 16, "mean": None, "std": None},
            "shape": {"architecture": "dinov3_vit", "width": 96, "depth": 12, "patch": 16, "has_cls": True},
        },
    }  # fmt: skip
    assert Specs(plan).label({"source": "ready", "split": "probe_val"})["preprocess"] == {
        "resize": "grid", "n_patches": 16,
    }  # fmt: skip
    assert any("data/dino is absent" in line for line in plan.remarks())


def test_texts_have_rules_of_their_own():
    plan = plan_of(with_texts())
    source = plan.sources["words"]
    assert (source.width, source.n_tokens, source.has_cls, source.layers) == (96, 32, True, ["layer-11"])
    assert {rule: len(plan.jobs(rule, source="words")) for rule in ("list_texts", "record_texts", "label_texts")} == {
        "list_texts": 4, "record_texts": 4, "label_texts": 4,
    }  # fmt: skip
    assert plan.jobs("pin_text_model") == [{"source": "words"}]
    words = {"source": "words", "split": "probe_val"}
    assert Specs(plan).list_texts(words) == {
        "seed": 0, **words, "first": 90, "n_examples": 10, "texts": "data/corpus.jsonl", "classes": ["noun", "verb"],
        "n_tokens": 32, "bos": True,
    }  # fmt: skip
    assert any("data/bert is absent" in line for line in plan.remarks())
    assert any("data/corpus.jsonl is absent" in line for line in plan.remarks())


def test_swapped_values_are_seen():
    one, two = default(), default()
    one["bases"]["kmeans-256"] |= {"n_init": 3, "minibatch_iter": 7}
    two["bases"]["kmeans-256"] |= {"n_init": 7, "minibatch_iter": 3}
    assert texts(one) != texts(two)


def test_the_order_of_keys_means_nothing():
    config = default()
    assert texts({key: config[key] for key in reversed(config)}) == texts(config)


def test_default_numbers():
    plan = plan_of(yaml.safe_load((ROOT / "config.yaml").read_text()))
    source = plan.sources["scenes"]
    assert source.n_tokens == 64
    assert [source.n_shards(split) for split in source.splits] == [4, 1, 2, 2]
    assert source.n_rows("fit_train") == 128_000
    assert plan.topk("pca", "scenes") == [1, 4, 16, 64]
    large = ["topk-00256", "topk-01024"]
    assert plan.dropped("scenes") == {"pca": large}
    assert list(plan.sweep("kernel-pca", "scenes")) == ["matched-00016", "dense"]
    assert list(plan.sweep("pca", "scenes")) == ["topk-00001", "topk-00004", "topk-00016", "topk-00064", "dense"]
    stars = plan.sources["stars"]
    assert (stars.n_tokens, stars.width, stars.layers) == (1, 512, ["layer-00"])
    assert [stars.n_shards(split) for split in stars.splits] == [1, 1, 1, 1]
    assert [stars.first(split) for split in stars.splits] == [0, 1000, 1250, 1750]
    assert plan.topk("pca", "stars") == [1, 4, 16, 64, 256]
    assert plan.applied("kmeans-256") == plan.applied("kmeans-256-random") == ["scenes"]
    remarks = list(plan.remarks())
    assert "bases.pca: topk-00256, topk-01024 would keep all entries of scenes and are left out" in remarks
    assert "bases.pca: topk-01024 would keep all entries of stars and are left out" in remarks


def test_a_split_can_be_cut_into_a_number_of_shards():
    config = default()
    config["sources"]["scenes"]["splits"]["fit_train"]["n_shards"] = 64
    source = plan_of(config).sources["scenes"]
    assert source.max_tokens_per_shard("fit_train") == 32 * 65 * 2  # 2000 images in 64 shards: 32 each
    assert [source.n_shards(split) for split in source.splits] == [63, 1, 2, 2]


def test_tiny_numbers():
    plan = plan_of(yaml.safe_load((ROOT / "workflow/experiments/tiny/config.yaml").read_text()))
    scenes, stars = plan.sources.values()
    assert scenes.n_tokens == 16
    assert [scenes.n_shards(split) for split in scenes.splits] == [4, 1, 2, 1]
    assert [stars.n_shards(split) for split in stars.splits] == [2, 1, 1, 1]


def test_floors_are_fitted_evaluated_and_probed_but_neither_encoded_nor_scored():
    plan = plan_of(default())
    assert plan.bases["pca-random"] == {"kind": "random_directions"}
    assert plan.bases["kmeans-256-random"]["n_clusters"] == 256
    assert plan.bases["kmeans-256-random"]["max_iter"] == 0
    assert plan.bases["kernel-pca-random"]["directions"] == "random"
    assert plan.n_elements("kernel-pca-random", "scenes") == plan.n_elements("kernel-pca", "scenes") == 64

    def of(rule: str) -> set[str]:
        return {job["basis"] for job in plan.jobs(rule)}

    assert of("fit") == of("evaluate") == of("probe") == set(plan.bases)
    assert of("score") == of("join_codes") == set(plan.config["bases"])
    assert plan.viewed("scenes", "pca-random", "dense") is None


def test_layouts_follow_the_geometry():
    config = default()
    config["encode"]["materialize"] = ["label", "topk"]
    plan = plan_of(config)
    assert plan.layouts("kmeans-256", "scenes") == ["label"]
    assert plan.layouts("pca", "scenes") == ["topk"]
    views = {c: plan.viewed("scenes", "kmeans-064", c) for c in plan.sweep("kmeans-064", "scenes")}
    assert views == {
        "onehot": "label", "inverse-distance-nearest": "label", "inverse-distance": None, "similarity": None,
        "near": None, "few": None,
    }  # fmt: skip
    assert {plan.viewed("scenes", "pca", c) for c in ("topk-00001", "topk-00064")} == {"topk"}
    assert plan.viewed("scenes", "pca", "dense") is None
    config["encode"] = {"materialize": ["dense"]}
    dense = plan_of(config)
    assert {dense.viewed("scenes", "kmeans-064", c) for c in dense.sweep("kmeans-064", "scenes")} == {"dense"}
    config["encode"] = {"splits": ["fit_val", "probe_train"]}
    assert plan_of(config).viewed("scenes", "pca", "topk-00001") is None


def test_specifications_hold_what_scripts_read():
    plan = plan_of(default())
    specs = Specs(plan)
    scenes = {"source": "scenes"}
    assert specs.draw({**scenes, "split": "fit_val"}) == {
        "seed": 0, "source": "scenes", "split": "fit_val", "n_examples": 400, "first": 0,
        "images": {"kind": "scenes", "canvas": 64, "patch": 8, "digits": [2, 4], "zooms": [2, 3, 4]},
    }  # fmt: skip
    masked = specs.list_images({"source": "photos", "split": "probe_val"})
    assert masked["images"]["classes"] == [["sea", [1]], ["air", [2, 3]]]
    assert specs.record({**scenes, "split": "fit_train", "part": "00003"}) == {
        "source": "scenes", "split": "fit_train", "shard": 3, "layers": [1, 3], "n_examples": 2000,
        "max_tokens_per_shard": 65000, "batch_size": 100, "forward_dtype": "float32",
    }  # fmt: skip
    stars = {"source": "stars", "split": "fit_val"}
    assert specs.simulate({"source": "stars"})["style"]["n_pixels"] == 512
    assert specs.list_spectra(stars) == {
        "seed": 0, **stars, "first": 1000, "n_examples": 250, "n_pixels": 512, "bad_pixels": "refuse",
        "normalise": "median", "spectra": {"kind": "simulated"},
    }  # fmt: skip
    own = specs.list_spectra({"source": "own", "split": "fit_val"})["spectra"]
    keys = {"flux": "dataset/arrays/flux/value", "error": "auto", "wavelength": "auto", "labels": "dataset/params"}
    assert own == {"kind": "hdf5", "path": "data/own.h5", "keys": keys}
    assert specs.record_spectra({**stars, "part": "00000"}) == {
        **stars, "shard": 0, "layers": [0], "n_examples": 250, "max_tokens_per_shard": 100000,
    }  # fmt: skip
    assert specs.label_spectra(stars) == {**stars, "label": "T_eff", "bins": 8}
    at = {**scenes, "layer": "layer-03", "split": "fit_val", "part": "00000"}
    assert specs.encode_topk({**at, "basis": "pca"})["stored_k"] == 64
    assert specs.encode_dense({**at, "basis": "kmeans-256"})["values"] == "squared-distance"
    assert "values" not in specs.encode_dense({**at, "basis": "pca"})
    fit = specs.fit({**scenes, "layer": "layer-03", "basis": "pca"})
    assert fit["basis"] == {"kind": "pca", "whiten": False, "tol": 0.0}
    gentle, reseeded = (specs.train_run({**scenes, "run": run}) for run in ("gentle", "reseeded"))
    own = specs.train(scenes)
    assert (gentle["seed"], reseeded["seed"]) == (0, 1)
    assert gentle["model"]["optimizer"]["lr"] == 0.0005
    assert reseeded["model"] == {**own["model"], "steps": 100, "bar": {}}
    assert own["snapshots"] == 16
    decompose = specs.decompose({"collection": "pooled"})
    assert (decompose["held_out"], decompose["n_components"]) == ([2, 6, 10, 14], 8)
    probe = specs.probe({**scenes, "layer": "layer-03", "basis": "kmeans-064", "coding": "few"})
    assert probe["coding"] == {"kind": "nearest", "k": 8, "values": "inverse-distance", "eps": 1e-6}
    assert specs.evaluate({**scenes, "layer": "layer-03", "basis": "kmeans-064"})["topk"] == []


@pytest.mark.parametrize(("n", "size", "expected"), [(5, 2, [[0, 1], [2, 3], [4]]), (2, 8, [[0, 1]]), (1, 1, [[0]])])
def test_cuts(n, size, expected):
    assert cuts(n, size) == expected


@pytest.mark.parametrize(
    ("device", "fit", "probe"),
    [("cpu", "000", 0), ("mps", "000", 0), ("auto", "110", 1), ("cuda", "110", 1), ("cuda:1", "110", 1)],
)  # fmt: skip
def test_gpus_are_asked_for_where_the_device_may_be_one_and_the_kind_profits(device, fit, probe):
    plan = plan_of(default())
    bases = ("kmeans-256", "kernel-pca", "pca")
    assert "".join(str(plan.gpus("fit", device, {"basis": basis})) for basis in bases) == fit
    assert plan.gpus("probe", device, {"basis": "pca"}) == probe
    assert plan.gpus("join_store", "cpu", {}) == 0


def test_a_source_without_labels_is_neither_probed_nor_scored():
    config = default()
    del config["sources"]["photos"]["splits"]["probe_train"], config["sources"]["photos"]["splits"]["probe_val"]
    plan = plan_of(config)
    for rule, labelled in (("probe", {"scenes", "stars"}), ("score", {"scenes", "stars"}), ("label", {"scenes"})):
        assert {job["source"] for job in plan.jobs(rule)} == labelled
    assert {job["source"] for job in plan.jobs("evaluate")} == {"scenes", "stars", "photos", "own", "foreign"}


def test_each_kind_of_source_has_rules_of_its_own():
    plan = plan_of(default())
    of = {rule: {job["source"] for job in plan.jobs(rule)} for rule in FAMILIES["spectra"] + FAMILIES["stores"]}
    assert of == {
        "simulate": {"stars"}, "list_spectra": {"stars", "own"}, "draw": {"scenes"}, "list_images": {"photos"},
        "train": {"scenes"}, "pin_model": set(), **NO_TEXTS,
        "record": {"scenes", "photos"}, "label": {"scenes", "photos"},
        "record_spectra": {"stars", "own"}, "label_spectra": {"stars"},
        **{key: {"stars"} for key in ("denoise", "score_denoised", "fit_patches", "train_arms", "compare_arms")},
        "join_store": {"scenes", "photos", "stars", "own"}, "adopt": {"foreign"},
    }  # fmt: skip
    edges = {name: (source.examples_edge("fit_val"), source.model_edges()) for name, source in plan.sources.items()}
    assert edges["stars"] == ("artifacts/stars/spectra/fit_val/meta.json", [])
    assert edges["photos"] == ("artifacts/photos/images/fit_val/meta.json", ["artifacts/scenes/model/meta.json"])


def test_a_recording_says_itself_how_large_it_is():
    plan = plan_of(default())
    source = plan.sources["foreign"]
    assert (source.width, source.n_tokens, source.layers, source.origin) == (
        64,
        4,
        ["layer-00", "layer-02"],
        "dinov3_vits16",
    )
    assert [source.n_examples(split) for split in source.splits] == [1000, 100]
    assert [source.n_shards(split) for split in source.splits] == [10, 1]  # 1000 // (5 tokens * 2 layers) examples each
    assert source.n_rows("fit_train") == 4000
    assert [Path(path).name for path in source.files("fit_val")] == ["metadata.json", "shards.json", "acts000000.bin"]
    specs = Specs(plan)
    at = {"source": "foreign", "split": "fit_val"}
    assert specs.adopt(at) == {
        **at, "path": f"{recordings()[0]}/two", "checksums": True, "classes": 3, "void": None,
    }  # fmt: skip
    assert specs.measure({**at, "part": "00000"}) == {"part": 0, "shards": [0], "layers": [0, 2]}


def test_draw_and_list_share_the_splits_between_them():
    config = default()
    config["sources"]["photos"]["images"]["drawn"] = {"kind": "scenes"}
    config["sources"]["photos"]["splits"]["probe_val"] = {"images": "drawn", "n_examples": 5}
    plan = plan_of(config)
    drawn, listed = ({(j["source"], j["split"]) for j in plan.jobs(rule)} for rule in ("draw", "list_images"))
    assert ("photos", "probe_val") in drawn
    assert ("photos", "probe_train") in listed
    assert len(drawn | listed) == 8
    assert not drawn & listed


def test_a_collection_takes_the_sources_training_and_the_runs_it_names():
    plan = plan_of(default())
    trainings = [(rule, job.get("run", "")) for rule, job in plan.trainings("pooled")]
    assert trainings == [("train", ""), ("train_run", "reseeded"), ("train_run", "gentle")]
    assert list(plan.trainings("trajectory")) == [("train", {"source": "scenes"})]
    assert plan.snapshots[::15] == ["snapshot-01.safetensors", "snapshot-16.safetensors"]
    assert plan.jobs("train_run", run="gentle") == [{"source": "scenes", "run": "gentle"}]


def test_without_weights_nothing_is_kept():
    config = default()
    del config["weights"]
    plan = plan_of(config)
    assert plan.snapshots == []
    assert not any(plan.jobs(rule) for rule in FAMILIES["weights"])


@pytest.mark.parametrize(("n", "every", "expected"), [(16, 4, [2, 6, 10, 14]), (3, 4, [2]), (2, 4, []), (4, 2, [0, 2])])
def test_held_out_places(n, every, expected):
    assert held_out_places(n, every) == expected
