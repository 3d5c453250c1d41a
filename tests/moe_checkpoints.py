"""Tiny checkpoints of mixture-of-experts models, by the classes of `transformers` or by hand, shared by tests."""

import json

import torch
from checkpoint_files import write, write_shards

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "num_experts_per_tok": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "qwen3_moe": ("Qwen3MoeConfig", {"intermediate_size": 48, "moe_intermediate_size": 12, "num_experts": 4,
                                     "head_dim": 16}),
    "deepseek_v2": ("DeepseekV2Config", {
        "intermediate_size": 48, "moe_intermediate_size": 12, "n_routed_experts": 4, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1}),
    "mixtral": ("MixtralConfig", {"intermediate_size": 48, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 12, "num_experts": 4}),
    "phimoe": ("PhimoeConfig", {"intermediate_size": 12, "num_local_experts": 4}),
    "granitemoe": ("GraniteMoeConfig", {"intermediate_size": 12, "num_local_experts": 4}),
    "gpt_oss": ("GptOssConfig", {"intermediate_size": 12, "num_local_experts": 4, "head_dim": 16}),
}  # fmt: skip
"""Model type -> class of its configuration, sizes of its own."""


def model(kind, **more):
    """A tiny random model, float32."""
    import transformers

    name, own = OWN[kind]
    config = getattr(transformers, name)(**{**COMMON, **own, **more})
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger weights than the default's, so that experts matter
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return made.eval()


def save(made, directory, original=True, **more):
    """Save a model; the two formats differ in how experts are laid out."""
    made.save_pretrained(directory, save_original_format=original, **more)
    return directory


def experts_of(made):
    """What the model's own parameters say: (layer, expert, family) -> [p, d]."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    found = {}
    for name, module in made.named_modules():
        if hasattr(module, "gate_up_proj") and module.gate_up_proj.ndim == 3:
            layer = int(name.split("layers.")[1].split(".")[0])
            for i, (both, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
                if isinstance(module, GptOssExperts):
                    cut = {"gate": both[:, ::2].T, "up": both[:, 1::2].T, "down": down.T}
                else:
                    gate, up = both.chunk(2)
                    cut = {"gate": gate, "up": up, "down": down}
                found |= {(layer, i, family): matrix.detach() for family, matrix in cut.items()}
    return found


def single(n=3, layers=(0, 1), p=3, d=5, seed=0, dtype=torch.float32):
    """State dict in the layout of Qwen: one tensor per expert, with a router, a shared expert and a dense layer."""
    source = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (p, d), "up_proj": (p, d), "down_proj": (d, p)}
    state = {"model.embed_tokens.weight": (7, d), "model.layers.9.mlp.gate_proj.weight": (p, d)}
    for layer in layers:
        at = f"model.layers.{layer}.mlp"
        state |= {f"{at}.gate.weight": (n, d), f"{at}.shared_expert.gate_proj.weight": (p, d)}
        state |= {f"{at}.experts.{i}.{role}.weight": shape for i in range(n) for role, shape in shapes.items()}
    return {name: torch.randn(shape, generator=source).to(dtype) for name, shape in state.items()}


def checkpoint(directory, state, config=None, shards=0):
    """Write a state dict as a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **(config or {})}))
    if shards:
        write_shards(directory, state, shards)
    else:
        write(directory / "model.safetensors", state, {"format": "pt"})
    return directory


def quantised(matrix, block=(2, 3)):
    """FP8 weights and the scales of their blocks, such that weights times scales are about the matrix."""
    rows, columns = (-(-side // size) for side, size in zip(matrix.shape, block, strict=True))
    scales = torch.empty(rows, columns)
    out = torch.empty_like(matrix)
    for i in range(rows):
        for j in range(columns):
            cut = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = matrix[cut].abs().max() / 448
            out[cut] = matrix[cut] / scales[i, j]
    return out.to(torch.float8_e4m3fn), scales
