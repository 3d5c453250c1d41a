"""Small random vision transformers of the transformers library, saved to a folder as users have them."""

import json
from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
IMAGE = {"image_size": 64, "patch_size": 16}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {"mlp_ratio": 2}),
    "dinov2-registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "vit": ("ViTModel", "ViTConfig", {}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "beit": ("BeitModel", "BeitConfig", {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    "ijepa": ("IJepaModel", "IJepaConfig", {}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
}
"""Name -> class, its configuration, and what this differs in from ``SIZES`` and ``IMAGE``."""
SCALING = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}


def write_preprocessor(folder: Path, **changes: Any) -> None:
    """Write ``preprocessor_config.json`` as the library's image processors do."""
    stated = {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 255, **SCALING, **changes}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))


def save_tiny(folder: Path, kind: str = "dinov3", seed: int = 0, **changes: Any) -> Any:
    """Make a model with random weights, save it with its preprocessing, and return it in evaluation mode."""
    import transformers

    name, config, own = KINDS[kind]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, config)(**{**SIZES, **IMAGE, **own, **changes}))
    with torch.no_grad():  # what starts at zero (CLS, registers, biases) must be seen to be left out or kept
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_preprocessor(folder)
    return model.eval()


def save_two_towers(folder: Path, kind: str) -> Any:
    """Make a checkpoint of a text and a vision tower, as CLIP and SigLIP are distributed, and return the latter."""
    import transformers

    torch.manual_seed(0)
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**SIZES, "vocab_size": 50, "max_position_embeddings": 8}, vision_config={**SIZES, **IMAGE},
    )  # fmt: skip
    model = getattr(transformers, f"{prefix}Model")(config)
    model.save_pretrained(folder)
    write_preprocessor(folder)
    return model.vision_model.eval()
