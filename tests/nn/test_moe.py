"""The small mixture of experts: routing, training, its files under the names of real checkpoints, its judgement."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from eigenloom.errors import ConfigError, StoreError
from eigenloom.experts.checkpoint import ExpertCheckpoint
from eigenloom.nn.digits import Digits
from eigenloom.nn.moe import MoEConfig, SmallMoE
from eigenloom.nn.moe_checkpoint import named_tensors, open_moe, replace_experts, write_moe
from eigenloom.nn.moe_training import MoETraining, judge_logits, train_moe

CONFIG = MoEConfig(hidden_size=12, moe_intermediate_size=5, num_experts=4, num_experts_per_tok=2, num_hidden_layers=2)
X = torch.rand(9, 64, generator=torch.Generator().manual_seed(1))


def slow_forward(model, x):
    """One example and one chosen expert at a time."""
    rows = []
    for row in model.embed(x):
        for block in model.blocks:
            normed, experts = block.norm(row), block.experts
            chances = (experts.router @ normed).softmax(0)
            best = chances.argsort(descending=True)[: experts.top_k]
            out = 0
            for i in best:
                hidden = functional.silu(experts.gate[i] @ normed) * (experts.up[i] @ normed)
                out = out + chances[i] / chances[best].sum() * (experts.down[i] @ hidden)
            row = row + out
        rows.append(model.head(model.norm(row)))
    return torch.stack(rows)


def test_each_example_goes_through_its_best_experts_alone():
    model = SmallMoE(CONFIG, seed=3)
    assert torch.allclose(model(X), slow_forward(model, X), atol=1e-5)


def test_the_balance_loss_is_one_where_all_work_alike_and_more_where_they_do_not():
    model = SmallMoE(CONFIG, seed=3)
    with torch.no_grad():
        for block in model.blocks:
            block.experts.router.zero_()
    assert model.balanced(X)[1].item() == pytest.approx(1.0)
    with torch.no_grad():  # every example prefers the first experts by far
        for block in model.blocks:
            block.experts.router.copy_(torch.tensor([[9.0], [6.0], [0.0], [0.0]]).expand(4, 12))
            block.norm.weight.fill_(1.0)
    normed = torch.ones(3, 12)
    _, balance = model.blocks[0].experts(normed)
    assert balance.item() == pytest.approx(4 * 0.5 * 1, rel=1e-3)


def test_training_lowers_the_loss_and_is_a_function_of_its_seed():
    digits = Digits.split(500, 0)
    training = MoETraining(steps=60, batch_size=64, warmup=10)
    losses, networks = [], []
    for seed in (0, 0, 1):
        model = SmallMoE(CONFIG, seed)
        losses.append(train_moe(model, digits.train_x, digits.train_y, training, seed=seed))
        networks.append(torch.cat([tensor.flatten() for _, tensor in named_tensors(model)]))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])
    assert losses[0][-10:].mean() < 0.6 * losses[0][:10].mean()
    with pytest.raises(ConfigError, match="at least 1"):
        MoETraining(steps=0)


def test_digits_are_split_by_the_seed():
    one, two = Digits.split(500, 0), Digits.split(500, 1)
    assert len(one.train_x) == 1297
    assert one.train_x.min() == 0
    assert one.train_x.max() == 1
    assert torch.equal(one.test_x, Digits.split(500, 0).test_x)
    assert not torch.equal(one.test_y, two.test_y)
    rows = {tuple(row.tolist()) for row in torch.cat([one.train_x, one.test_x])}
    assert rows == {tuple(row.tolist()) for row in torch.cat([two.train_x, two.test_x])}
    with pytest.raises(ConfigError, match="n_test: 1797 of 1797 digits"):
        Digits.split(1797, 0)


def test_the_loader_of_real_checkpoints_reads_its_files(tmp_path):
    model = SmallMoE(CONFIG, seed=3)
    write_moe(tmp_path, model)
    sources = ExpertCheckpoint.open(tmp_path).sources(("gate", "up", "down"))
    for family, source in sources.items():
        own = torch.cat([getattr(block.experts, family) for block in model.blocks])
        assert torch.equal(torch.stack(list(source)), own)
        assert source.names[5] == f"model.layers.1.experts.1.{family}"
    again = open_moe(tmp_path)
    assert torch.equal(again(X), model(X))
    assert all(
        tensor.shape == load_file(tmp_path / "model.safetensors")[name].shape for name, tensor in named_tensors(again)
    )


def test_experts_are_replaced_family_by_family():
    model, other = SmallMoE(CONFIG, seed=3), SmallMoE(CONFIG, seed=4)
    before = model(X).detach()
    rows = {f: torch.cat([getattr(block.experts, f) for block in other.blocks]) for f in ("gate", "up")}
    replace_experts(model, rows)
    assert torch.equal(model.blocks[1].experts.up, other.blocks[1].experts.up)
    assert not torch.equal(model.blocks[1].experts.down, other.blocks[1].experts.down)
    assert not torch.allclose(model(X), before)


def test_files_of_another_network_are_refused(tmp_path):
    write_moe(tmp_path, SmallMoE(CONFIG))
    text = json.loads((tmp_path / "config.json").read_text())
    for key, value, words in (
        ("hidden_size", 13, "does not hold this network"),
        ("num_experts", 5, "does not hold this network"),
        ("num_hidden_layers", 1, "holds 'model.layers.1.input_layernorm.weight', which this network lacks"),
        ("model_type", "qwen3_moe", "is not of model_type 'eigenloom_moe'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**text, key: value}))
        with pytest.raises(StoreError, match=words):
            open_moe(tmp_path)
    with pytest.raises(ConfigError, match="top_k 5 of 4 experts"):
        MoEConfig(12, 5, 4, 5, 1)
    with pytest.raises(ConfigError, match="sizes must be at least 1"):
        MoEConfig(0, 5, 4, 2, 1)


def test_judgement_by_hand():
    original = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    own = judge_logits(original, labels, original)
    assert own.accuracy == 0.5
    assert own.kl == 0
    assert own.nll == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2)
    flat = judge_logits(torch.zeros(2, 2), labels, original)
    assert flat.nll == pytest.approx(math.log(2))
    p = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))]
    assert flat.kl == pytest.approx(sum(q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q)) for q in p) / 2)
