"""Experts of checkpoints: every layout gives the model's own matrices; what cannot be read is one sentence."""

import json
import re

import pytest
import torch
from moe_checkpoints import OWN, checkpoint, experts_of, model, quantised, save, single

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.experts import checkpoint as module
from eigenloom.experts.checkpoint import ExpertCheckpoint
from eigenloom.experts.source import ExpertSource

FAMILIES = ("gate", "up", "down")


def place(name):
    """(layer, expert, family) of an expert's name."""
    match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.experts\.(\d+)\.(\w+)", name)
    return int(match[1]), int(match[2]), match[3]


def read(directory, **more):
    """Everything that a checkpoint's sources yield, by place."""
    sources = ExpertCheckpoint.open(directory).sources(FAMILIES, **more)
    found = {}
    for source in sources.values():
        assert isinstance(source, ExpertSource)
        for name, matrix in zip(source.names, source, strict=True):
            assert matrix.dtype == torch.float32
            assert tuple(matrix.shape) == source.shape
            assert matrix.is_contiguous()
            found[place(name)] = matrix
    return found


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("kind", OWN)
def test_both_formats_of_transformers_give_the_models_own_matrices(kind, tmp_path):
    made = model(kind)
    wanted = experts_of(made)
    assert len(wanted) == 3 * 4 * (1 if kind == "deepseek_v2" else 2)
    for original in (True, False):
        directory = save(made, tmp_path / f"{original}", original)
        same(read(directory), wanted)
    sharded = save(made, tmp_path / "shards", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    same(read(sharded), wanted)


def test_shared_experts_and_dense_layers_are_listed(tmp_path):
    opened = ExpertCheckpoint.open(save(model("deepseek_v2"), tmp_path))
    assert opened.layout.skipped["model.layers.0.mlp.gate_proj.weight"] == "dense layer"
    assert opened.layout.skipped["model.layers.1.mlp.shared_experts.up_proj.weight"] == "shared expert"
    assert len(opened.layout.skipped) == 6


def test_fused_and_transposed_tensors_by_the_hidden_size_or_the_type_of_the_model(tmp_path):
    """[E, d, 2p] as Qwen3-VL-MoE has them; where the sides are equal the type of the model decides."""
    for d in (5, 6):
        state = single(p=3, d=d)
        fused = {k: v for k, v in state.items() if ".experts." not in k}
        for layer in (0, 1):
            at = f"model.layers.{layer}.mlp.experts"
            rows = [[state[f"{at}.{i}.{role}_proj.weight"] for role in FAMILIES] for i in range(3)]
            fused[f"{at}.gate_up_proj"] = torch.stack([torch.cat([g, u]).T for g, u, _ in rows]).contiguous()
            fused[f"{at}.down_proj"] = torch.stack([down.T for _, _, down in rows]).contiguous()
        wanted = read(checkpoint(tmp_path / f"single-{d}", state))
        config = {"model_type": "qwen3_vl_moe", "text_config": {"hidden_size": d}}
        same(read(checkpoint(tmp_path / f"fused-{d}", fused, config)), wanted)


def test_families_over_all_layers_or_one_per_layer_and_their_first_experts(tmp_path):
    opened = ExpertCheckpoint.open(checkpoint(tmp_path, single()))
    assert list(opened.sources()) == ["gate", "up"]
    assert opened.sources()["gate"].n_experts == 6
    assert opened.sources(["down"])["down"].shape == (5, 3)
    split = opened.sources(["up"], scope="layer", layers=[1])
    assert list(split) == ["layer-01-up"]
    assert split["layer-01-up"].names == tuple(f"model.layers.1.experts.{i}.up" for i in range(3))
    few = opened.sources(["gate"], max_experts=4)["gate"]
    assert [place(name)[:2] for name in few.names] == [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("fused", [False, True])
def test_every_walk_opens_each_shard_once_and_reads_each_place_once(fused, tmp_path, monkeypatch):
    made = model("qwen3_moe")
    directory = save(made, tmp_path, not fused, max_shard_size="20KB")
    reads, opened = [], []

    class Counting:
        def __init__(self, path, framework):
            opened.append(path)
            self.file = real(path, framework)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_slice(self, key):
            part = self.file.get_slice(key)

            class Slice:
                def __getitem__(self, at):
                    reads.append((key, str(at)))
                    return part[at]

            return Slice()

    real = module.safe_open
    monkeypatch.setattr(module, "safe_open", Counting)
    source = ExpertCheckpoint.open(directory).sources(["gate"])["gate"]
    assert not reads
    for walk in (1, 2):
        assert len(list(source)) == 8
        assert len(reads) == 8 * walk
        assert len(set(reads)) == 8
        assert len(opened) == len(set(opened)) * walk
    keys = {key for key, _ in reads}
    assert len(keys) == (2 if fused else 8)


@pytest.mark.parametrize("shards", [0, 2])
def test_fp8_is_multiplied_by_the_scales_of_its_blocks(shards, tmp_path):
    state = single(p=4, d=7)
    wanted, stored = {}, {}
    for key, matrix in state.items():
        if ".experts." in key:
            weights, scales = quantised(matrix)
            blocks = scales.repeat_interleave(2, 0).repeat_interleave(3, 1)[: matrix.shape[0], : matrix.shape[1]]
            wanted[key] = weights.float() * blocks
            stored |= {key: weights, f"{key}_scale_inv": scales}
            assert torch.allclose(wanted[key], matrix, atol=0.15)
        else:
            stored[key] = matrix
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
    found = read(checkpoint(tmp_path, stored, config, shards))
    assert len(found) == 18
    for (layer, expert, family), matrix in found.items():
        assert torch.equal(matrix, wanted[f"model.layers.{layer}.mlp.experts.{expert}.{family}_proj.weight"])


def test_fp8_in_fused_tensors_where_a_block_holds_both_gate_and_up(tmp_path):
    both = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(3))  # p = 3, blocks of 2 rows
    pairs = [quantised(matrix) for matrix in both]
    key = "model.layers.0.mlp.experts.gate_up_proj"
    state = {key: torch.stack([w for w, _ in pairs]), f"{key}_scale_inv": torch.stack([s for _, s in pairs])}
    config = {"hidden_size": 7, "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
    sources = ExpertCheckpoint.open(checkpoint(tmp_path, state, config)).sources()
    for i, (gate, up) in enumerate(zip(*sources.values(), strict=True)):
        weights, scales = pairs[i]
        whole = weights.float() * scales.repeat_interleave(2, 0).repeat_interleave(3, 1)[:, :7]
        assert torch.equal(torch.cat([gate, up]), whole)


def refuse(directory, error, *words):
    """Opening the checkpoint and reading all of it raises one sentence with some words."""
    with pytest.raises(error) as caught:
        read(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(directory))
    for word in words:
        assert word in text, text


def test_what_is_refused(tmp_path):
    state = single()
    expert = "model.layers.1.mlp.experts.1.up_proj.weight"
    less = {k: v for k, v in state.items() if k != expert}
    refuse(checkpoint(tmp_path / "a", less), DataError, "model.layers.1.experts lacks the up of expert 1 of 3")
    refuse(checkpoint(tmp_path / "b", state, {"num_experts": 5}), DataError, "lacks the gate of expert 3, 4 of 5")
    refuse(checkpoint(tmp_path / "c", {**state, expert: torch.zeros(2, 5)}), DataError,
           "model.layers.1.experts.1.up is 2 x 5, but model.layers.0.experts.0.up is 3 x 5")  # fmt: skip
    bad = state[expert].clone()
    bad[1, 2] = torch.nan
    refuse(checkpoint(tmp_path / "d", {**state, expert: bad}), DataError, "model.safetensors", expert, "1 NaN")
    none = {k: v for k, v in state.items() if "expert" not in k}
    refuse(checkpoint(tmp_path / "e", none), DataError, "holds no experts")
    int8 = {**state, expert: torch.zeros(3, 5, dtype=torch.int8)}
    refuse(checkpoint(tmp_path / "f", int8), DataError, expert, "is I8", "dequantise")
    fp8 = {**state, expert: torch.zeros(3, 5).to(torch.float8_e4m3fn)}
    refuse(checkpoint(tmp_path / "g", fp8), DataError, expert, f"{expert}_scale_inv")
    blocks = {**none, "model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(2, 4, 1, 16, dtype=torch.uint8)}
    refuse(checkpoint(tmp_path / "h", blocks, {"model_type": "gpt_oss"}), DataError, "quantised", "gate_up_proj_blocks")
    refuse(checkpoint(tmp_path / "i", state, {"quantization_config": {"quant_method": "gptq"}}), DataError, "by gptq")
    odd = {**none, "model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 3, 5)}
    refuse(checkpoint(tmp_path / "j", odd, {"hidden_size": 5}), DataError, "3 rows")
    refuse(checkpoint(tmp_path / "k", {**state, expert: torch.zeros(5)}), DataError, "has shape (5,)")
    short = {**state, expert: torch.zeros(3, 5).to(torch.float8_e4m3fn), f"{expert}_scale_inv": torch.ones(1, 1)}
    block = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
    with pytest.raises(DataError, match="have scales of shape"):
        read(checkpoint(tmp_path / "l", short, block))


def test_files_that_are_absent(tmp_path):
    sharded = checkpoint(tmp_path / "a", single(), shards=3)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refuse(sharded, StoreError, "index.json: names the shard model-00002-of-00003.safetensors, which is absent")
    one = checkpoint(tmp_path / "b", single())
    (one / "model.safetensors").unlink()
    refuse(one, StoreError, "holds neither model.safetensors.index.json nor model.safetensors")
    two = checkpoint(tmp_path / "c", single())
    (two / "config.json").unlink()
    refuse(two, StoreError, "config.json: is missing")
    lying = checkpoint(tmp_path / "d", single(), shards=2)
    index = json.loads((lying / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.7.mlp.experts.0.up_proj.weight"] = "model-00001-of-00002.safetensors"
    (lying / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(lying, StoreError, "promises model.layers.7.mlp.experts.0.up_proj.weight", "lacks")


def test_what_cannot_be_chosen(tmp_path):
    state = single(layers=(0, 1, 2, 5))
    opened = ExpertCheckpoint.open(checkpoint(tmp_path, state))
    for error, more in (
        ("has no family 'gates'; choose from gate, up, down", {"families": ["gates"]}),
        ("layer 3 has no experts; layers that do: 0-2, 5", {"layers": [0, 3]}),
        ("scope 'model' cannot be fitted", {"scope": "model"}),
        ("0 experts cannot be fitted", {"max_experts": 0}),
        ("no family cannot be fitted", {"families": []}),
    ):
        with pytest.raises(ConfigError) as caught:
            opened.sources(**{"families": ["gate"], **more})
        assert error in str(caught.value)


def test_layers_that_differ_can_be_taken_apart(tmp_path):
    state = {**single(layers=(0,), p=3), **single(layers=(1,), p=4)}
    opened = ExpertCheckpoint.open(checkpoint(tmp_path, state))
    with pytest.raises(DataError, match="choose layers that agree"):
        opened.sources()
    assert opened.sources(layers=[1])["gate"].shape == (4, 5)
    assert {name: source.shape[0] for name, source in opened.sources(["gate"], scope="layer").items()} == {
        "layer-00-gate": 3, "layer-01-gate": 4,
    }  # fmt: skip
