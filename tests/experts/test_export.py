"""Dense export: `transformers` loads it, its logits move as the experts did, and all else keeps its bytes."""

import json

import pytest
import torch
from moe_checkpoints import OWN, checkpoint, experts_of, model, quantised, save, single
from safetensors import safe_open

from eigenloom.errors import ConfigError, MismatchError
from eigenloom.experts.bank import ExpertBank
from eigenloom.experts.checkpoint import ExpertCheckpoint
from eigenloom.experts.export import export_dense

IDS = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(5))


def svd_bank(source, rank, family="gate", noise=0.0):
    """One basis per expert, by its SVD: exact at full rank, or moved by ``noise`` in its adapters."""
    u, s, vt = torch.linalg.svd(torch.stack(list(source)), full_matrices=False)
    adapters = (u * s[:, None])[:, :, :rank].contiguous()
    adapters += noise * torch.randn(adapters.shape, generator=torch.Generator().manual_seed(1))
    bases = vt[:, :rank].contiguous()
    return ExpertBank(bases, torch.eye(len(bases)), adapters, "identity", False, family, source.names)


def banks(opened, rank, families=("gate", "up"), noise=0.0):
    return {f: svd_bank(s, rank, f, noise) for f, s in opened.sources(families).items()}


def logits(directory):
    from transformers import AutoModelForCausalLM

    loaded, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        return loaded.eval()(IDS).logits


def tensors(directory):
    """key -> (bytes, dtype, shape, shard) of a checkpoint."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(key)
                facts = tensor.dtype, tuple(tensor.shape), path.name
                found[key] = (tensor.contiguous().view(torch.uint8).numpy().tobytes(), *facts)
    return found


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v2", "mixtral"])
def test_a_model_goes_in_and_comes_out_and_its_logits_move_as_its_experts_did(kind, original, tmp_path):
    made = model(kind, num_experts_per_tok=4)  # all of them: a choice among experts would not be smooth
    opened = ExpertCheckpoint.open(save(made, tmp_path / "in", original, max_shard_size="20KB"))
    full = min(opened.sources()["gate"].shape)
    with torch.no_grad():
        before = made(IDS).logits
    export_dense(opened, banks(opened, full), tmp_path / "exact")
    assert torch.allclose(logits(tmp_path / "exact"), before, atol=1e-4)
    moved = []
    for noise in (2e-3, 1e-3):
        export_dense(opened, banks(opened, full, noise=noise), tmp_path / f"{noise}")
        moved.append((logits(tmp_path / f"{noise}") - before).norm())
    assert moved[0] / moved[1] == pytest.approx(2, rel=0.05)  # to first order, the change of the experts
    low = banks(opened, full // 4)
    assert export_dense(opened, low, tmp_path / "low") == []
    after = logits(tmp_path / "low")
    with torch.no_grad():
        own = experts_of(made)
        for family, bank in low.items():
            for i, stored in enumerate(opened.layout.families[family]):
                own[stored.layer, stored.expert, family].copy_(bank.expert(i))
        expected = made(IDS).logits
    assert torch.allclose(after, expected, atol=1e-4)
    assert (after - before).norm() > 10 * moved[0]


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("kind", OWN)
def test_what_is_not_replaced_keeps_its_bytes_and_all_keeps_names_formats_and_shards(kind, original, tmp_path):
    made = model(kind).to(torch.bfloat16)
    source = save(made, tmp_path / "in", original, max_shard_size="20KB")
    (source / "tokenizer.json").write_text("{}")
    opened = ExpertCheckpoint.open(source)
    (bank,) = banks(opened, 3, ["up"]).values()
    export_dense(opened, {"up": bank}, tmp_path / "out")
    names = {path.name for path in source.iterdir()}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    for name in (name for name in names if name.endswith(".json")):
        assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    before, after = tensors(source), tensors(tmp_path / "out")
    touched = {stored.key for stored in opened.layout.families["up"]}
    assert list(before) == list(after)
    for key in before:
        assert before[key][1:] == after[key][1:]
        assert (before[key][0] == after[key][0]) == (key not in touched), key
    copied = ExpertCheckpoint.open(tmp_path / "out").sources(("gate", "up", "down"))
    for family, found in copied.items():
        wanted = bank.reconstruct().bfloat16().float() if family == "up" else opened.sources([family])[family]
        assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_only_the_experts_of_the_bank_are_replaced(tmp_path):
    opened = ExpertCheckpoint.open(checkpoint(tmp_path / "in", single()))
    few = opened.sources(["gate"], layers=[1], max_experts=2)["gate"]
    export_dense(opened, {"gate": svd_bank(few, 1)}, tmp_path / "out")
    before, after = tensors(tmp_path / "in"), tensors(tmp_path / "out")
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {f"model.layers.1.mlp.experts.{i}.gate_proj.weight" for i in (0, 1)}


def test_fp8_leaves_as_bfloat16_without_scales_and_says_so(tmp_path):
    stored, wanted = {}, {}
    for key, matrix in single(p=4, d=7).items():
        if "proj" in key:
            weights, scales = quantised(matrix)
            blocks = scales.repeat_interleave(2, 0).repeat_interleave(3, 1)[: matrix.shape[0], : matrix.shape[1]]
            stored |= {key: weights, f"{key}_scale_inv": scales}
            wanted[key] = (weights.float() * blocks).bfloat16()
        else:
            stored[key] = wanted[key] = matrix
    config = {"dtype": "float8_e4m3fn", "hidden_size": 7,
              "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}  # fmt: skip
    opened = ExpertCheckpoint.open(checkpoint(tmp_path / "in", stored, config, shards=2))
    (bank,) = banks(opened, 2, ["gate"]).values()
    (sentence,) = export_dense(opened, {"gate": bank}, tmp_path / "out")
    assert "bfloat16" in sentence
    assert "quantization_config" in sentence
    for number, place in enumerate(opened.layout.families["gate"]):
        wanted[place.key] = bank.expert(number).bfloat16()
    after = tensors(tmp_path / "out")
    assert after.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert after[key][:3] == (tensor.view(torch.uint8).numpy().tobytes(), tensor.dtype, tuple(tensor.shape)), key
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == {"model_type": "qwen3_moe", "dtype": "bfloat16", "hidden_size": 7}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == {key: after[key][3] for key in after}
    assert index["metadata"]["total_size"] == sum(len(entry[0]) for entry in after.values())
    assert ExpertCheckpoint.open(tmp_path / "out").sources()["gate"].n_experts == 6


def test_fused_fp8(tmp_path):
    both = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(3))
    pairs = [quantised(matrix) for matrix in both]
    key = "model.layers.0.mlp.experts.gate_up_proj"
    state = {key: torch.stack([w for w, _ in pairs]), f"{key}_scale_inv": torch.stack([s for _, s in pairs])}
    config = {"hidden_size": 7, "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
    opened = ExpertCheckpoint.open(checkpoint(tmp_path / "in", state, config))
    (bank,) = banks(opened, 1, ["up"]).values()
    export_dense(opened, {"up": bank}, tmp_path / "out")
    found = ExpertCheckpoint.open(tmp_path / "out").sources()
    assert torch.equal(torch.stack(list(found["up"])), bank.reconstruct().bfloat16().float())
    gates = torch.stack(list(opened.sources()["gate"])).bfloat16().float()
    assert torch.equal(torch.stack(list(found["gate"])), gates)


def test_what_is_refused(tmp_path):
    opened = ExpertCheckpoint.open(checkpoint(tmp_path / "in", single()))
    fitted = banks(opened, 2)
    for out in (tmp_path / "in", checkpoint(tmp_path / "other", single(p=4))):
        with pytest.raises(ConfigError, match="holds a checkpoint already"):
            export_dense(opened, fitted, out)
    wider = ExpertCheckpoint.open(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"has model\.layers\.0\.experts\.0\.gate of 4 x 5, where .* 3 x 5"):
        export_dense(wider, fitted, tmp_path / "out")
    fewer = ExpertCheckpoint.open(checkpoint(tmp_path / "fewer", single(n=2)))
    with pytest.raises(MismatchError, match=r"has no expert model\.layers\.0\.experts\.2\.gate"):
        export_dense(fewer, fitted, tmp_path / "out")
    assert not (tmp_path / "out").exists()
