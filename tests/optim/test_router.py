"""Router tables: what each parameter of common architectures is given to, before any backward pass."""

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from eigenloom import SpectraTEON
from eigenloom.errors import ConfigError
from eigenloom.nn.vit import SmallViT, ViTConfig
from eigenloom.optim.router import param_groups


def built(cls, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls.from_config(config)


def gpt2(**keys):
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=3, n_head=3, **keys)
    return built(AutoModelForCausalLM, config)


def llama():
    return built(
        AutoModelForCausalLM,
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        ),
    )  # fmt: skip


def bert():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48
    )
    return built(AutoModelForMaskedLM, config)


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, decoder_start_token_id=0
    )
    return built(AutoModelForSeq2SeqLM, config)


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48
    )
    return built(AutoModelForCausalLM, config)


def phi3():
    config = transformers.Phi3Config(
        vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return built(AutoModelForCausalLM, config)


def table(model, **keys):
    """Rule of each parameter by name, and the stacks as lists of names with their rows."""
    rules, stacks = {}, []
    for group in param_groups(model, **keys):
        names = [name for name, _ in group["params"]]
        rule = group["algorithm"] + ("" if group.get("weight_decay", 1) else "-plain")
        assert not rules.keys() & set(names)
        rules |= dict.fromkeys(names, rule)
        if group["algorithm"] in ("spectra_teon", "teon"):
            stacks += [[(names[i], first, n) for i, first, n in stack] for stack in group["stacks"]]
    assert set(rules) == {name for name, p in model.named_parameters() if p.requires_grad}
    SpectraTEON(param_groups(model, **keys)).summary()
    return rules, stacks


def of(rules, part):
    return {rule for name, rule in rules.items() if part in name}


def test_gpt_with_fused_columns_and_a_tied_head():
    rules, stacks = table(gpt2())
    assert of(rules, "c_attn.weight") == {"spectra_teon"}
    assert of(rules, "c_proj.weight") == of(rules, "c_fc.weight") == {"spectra"}
    assert of(rules, "wte") == of(rules, "wpe") == of(rules, "ln") == of(rules, "bias") == {"adamw-plain"}
    assert "lm_head.weight" not in rules
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)]
    assert stacks == [
        stack
        for first in (0, 24, 48)
        for stack in ([(names[0], first, 24), (names[1], first, 24)], [(names[2], first, 24)])
    ]
    groups = param_groups(gpt2())
    assert groups[0]["transposed"] == [0, 1, 2]


def test_gpt_with_cross_attention_keeps_it_apart():
    rules, stacks = table(gpt2(add_cross_attention=True))
    assert of(rules, "crossattention.c_attn.weight") == of(rules, "q_attn.weight") == {"spectra_teon"}
    for stack in stacks:
        assert len({("cross" in name, first) for name, first, _ in stack}) == 1
    cross = [stack for stack in stacks if "crossattention.c_attn" in stack[0][0]]
    assert {piece[1:] for stack in cross for piece in stack} == {(0, 24), (24, 24)}


def test_llama_with_grouped_queries():
    rules, stacks = table(llama())
    assert of(rules, "q_proj") == of(rules, "k_proj") == of(rules, "v_proj") == {"spectra_teon"}
    assert (
        of(rules, "o_proj") == of(rules, "up_proj") == of(rules, "down_proj") == of(rules, "gate_proj") == {"spectra"}
    )
    assert rules["lm_head.weight"] == "adamw"
    assert of(rules, "norm") == of(rules, "embed_tokens") == {"adamw-plain"}
    shapes = [{(name.split(".")[-2], n) for name, _, n in stack} for stack in stacks]
    assert shapes == [{("q_proj", 24)}] * 2 + [{("k_proj", 12)}] * 2 + [{("v_proj", 12)}] * 2
    assert [name.split(".")[2] for name, _, _ in stacks[1]] == ["2", "3"]


def test_bert():
    rules, stacks = table(bert())
    assert of(rules, "self.query.weight") == {"spectra_teon"}
    assert of(rules, "attention.output.dense.weight") == of(rules, "intermediate.dense.weight") == {"spectra"}
    assert of(rules, "embeddings.") == {"adamw-plain"}
    assert len(stacks) == 3
    assert all(len(stack) == 2 for stack in stacks)


def test_an_encoder_decoder_never_mixes_its_attentions():
    rules, stacks = table(t5())
    assert of(rules, "SelfAttention.q.") == of(rules, "EncDecAttention.v.") == {"spectra_teon"}
    assert of(rules, "relative_attention_bias") == {"adamw-plain"}
    kinds = [
        {(name.split(".")[0], name.split(".")[-3], name.split(".")[-2]) for name, _, _ in stack} for stack in stacks
    ]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(stacks) == 9
    assert all(len(stack) == 2 for stack in stacks)


def test_an_interleaved_fusion_stays_whole_and_the_summary_says_why():
    model = neox()
    rules, stacks = table(model)
    assert of(rules, "query_key_value.weight") == {"spectra"}
    assert stacks == []
    assert "perhaps interleaved by head" in SpectraTEON.from_model(model).summary()
    rules, stacks = table(model, fused={"*.query_key_value": (24, 24, 24)})
    assert of(rules, "query_key_value.weight") == {"spectra_teon"}
    assert len(stacks) == 3


def test_a_fusion_with_grouped_queries_is_cut_by_the_module_s_heads():
    rules, stacks = table(phi3())
    assert of(rules, "qkv_proj.weight") == {"spectra_teon"}
    assert [stack[0][1:] for stack in stacks] == [(0, 24), (24, 8), (32, 8)]
    assert of(rules, "gate_up_proj") == {"spectra"}


class MultiheadNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 4, 32) for _ in range(2))
        self.odd = nn.MultiheadAttention(16, 4, kdim=8, vdim=8)
        self.out = nn.Linear(16, 3)


def test_multihead_attention():
    rules, stacks = table(MultiheadNet())
    assert of(rules, "in_proj_weight") == {"spectra_teon"}
    assert of(rules, "out_proj.weight") == of(rules, "linear1.weight") == {"spectra"}
    assert rules["out.weight"] == "adamw"
    assert of(rules, "bias") == {"adamw-plain"}
    assert [stack[0][1:] for stack in stacks[:3]] == [(0, 16), (16, 16), (32, 16)]
    assert {stack[0][0] for stack in stacks[3:]} == {f"odd.{role}_proj_weight" for role in "qkv"}


def test_vit_with_fused_qkv():
    rules, stacks = table(SmallViT(ViTConfig((2, 2), 4, 16, 4, 2, 3)))
    assert of(rules, "qkv.weight") == {"spectra_teon"}
    assert of(rules, "proj.weight") == of(rules, "fc1.weight") == {"spectra"}
    assert rules["patch_embed.weight"] == "spectra"
    assert rules["head.weight"] == "adamw"
    assert rules["cls_token"] == rules["positions"] == "adamw-plain"
    assert len(stacks) == 6


def test_a_conv_net_and_unknown_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv1d(8, 8, 2))
            self.mix = nn.Bilinear(4, 4, 5)
            self.rnn = nn.LSTM(4, 6)
            self.classifier = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))

    rules, stacks = table(Net())
    assert rules["features.0.weight"] == rules["features.2.weight"] == rules["classifier.0.weight"] == "spectra"
    assert rules["classifier.2.weight"] == rules["mix.weight"] == rules["rnn.weight_ih_l0"] == "adamw"
    assert rules["features.1.weight"] == "adamw-plain"
    assert stacks == []
    assert "unknown: Bilinear" in SpectraTEON.from_model(Net()).summary()
    net = Net()
    optimizer = SpectraTEON.from_model(net)
    for p in net.parameters():
        p.grad = torch.ones_like(p, memory_format=torch.preserve_format)
    optimizer.step()


def test_channels_last_convolutions_step():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = SpectraTEON.from_model(nn.Sequential(conv), lr=0.1, weight_decay=0.0)
    before = conv.weight.detach().clone()
    conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.ones(6)
    optimizer.step()
    assert float((conv.weight.detach() - before).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-4)


def test_frozen_parameters_are_not_routed_and_gradients_play_no_part():
    model = llama()
    before = table(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert table(model) == before
    model.model.layers[1].requires_grad_(False)
    rules, stacks = table(model)
    assert not of(rules, "layers.1.")
    assert [name.split(".")[2] for name, _, _ in stacks[0]] == ["0", "2"]


def test_rules_roles_exclusions_and_rates():
    model = llama()
    assert of(table(model, algorithm="teon")[0], "o_proj") == {"muon"}
    assert of(table(model, algorithm="teon")[0], "q_proj") == {"teon"}
    assert of(table(model, algorithm="muon")[0], "q_proj") == {"muon"}
    assert set(table(model, algorithm="adamw")[0].values()) == {"adamw", "adamw-plain"}
    rules, stacks = table(model, exclude=("*.mlp.*",), roles={"o_proj": "q"}, stack=3)
    assert of(rules, "mlp") == {"adamw"}
    assert of(rules, "o_proj") == {"spectra_teon"}
    assert sorted({len(stack) for stack in stacks}) == [1, 3]
    rates = {group["algorithm"]: group.get("lr") for group in param_groups(model, adamw_lr=0.5)}
    assert rates == {"spectra_teon": None, "spectra": None, "adamw": 0.5}
    order = [(group["algorithm"], group.get("weight_decay")) for group in param_groups(model)]
    assert order == [("spectra_teon", None), ("spectra", None), ("adamw", None), ("adamw", 0.0)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"algorithm": "lion"}, "'lion' is no algorithm"),
        ({"stack": 0}, "stack is 0, must be at least 1"),
        ({"roles": {"x": "w"}}, "'w' is no role; use q, k or v"),
        ({"exclude": ("*.router.*",)}, r"'\*.router.\*' matches no parameter; names look like"),
        (
            {"fused": {"*.q_proj": (1, 2, 3)}},
            r"fused sizes \(1, 2, 3\) of .*q_proj.weight are not three that add up to 24",
        ),
    ],
)
def test_refusals(keys, message):
    keys = {**keys, **({"roles": {"z": "q"}} if "fused" in keys else {})}
    model = llama()
    if "fused" in keys:
        for layer in model.model.layers:  # a name that carries no role of its own
            layer.self_attn.mixed = layer.self_attn.q_proj
            del layer.self_attn.q_proj
        keys = {"fused": {"*.mixed": (1, 2, 3)}}
        message = message.replace("q_proj", "mixed")
    with pytest.raises(ConfigError, match=message):
        param_groups(model, **keys)


class Fused(nn.Module):
    def __init__(self, width=12, blocks=3):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width)})}) for _ in range(blocks)
        )
        self.out = nn.Linear(width, 2)


class Separate(nn.Module):
    def __init__(self, width=12, blocks=3):
        super().__init__()
        parts = ("q_proj", "k_proj", "v_proj")
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.ModuleDict({part: nn.Linear(width, width) for part in parts})})
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, 2)


@pytest.mark.parametrize("algorithm", ["spectra_teon", "teon"])
def test_a_fused_update_has_the_bits_of_three_separate_ones(algorithm):
    fused, separate = Fused(), Separate()
    names = ("q_proj", "k_proj", "v_proj")
    for one, three in zip(fused.blocks, separate.blocks, strict=True):
        for name, rows in zip(names, one["attn"]["qkv"].weight.detach().chunk(3), strict=True):
            three["attn"][name].weight.data.copy_(rows)
    optimizers = [
        SpectraTEON.from_model(net, algorithm=algorithm, min_rank=2, oversample=2) for net in (fused, separate)
    ]
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        for one, three in zip(fused.blocks, separate.blocks, strict=True):
            weight = one["attn"]["qkv"].weight
            weight.grad = torch.randn(weight.shape, generator=draw)
            for name, rows in zip(names, weight.grad.chunk(3), strict=True):
                three["attn"][name].weight.grad = rows.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, three in zip(fused.blocks, separate.blocks, strict=True):
        assert torch.equal(one["attn"]["qkv"].weight, torch.cat([three["attn"][name].weight for name in names]))
