"""Small random transformers of the transformers library, saved to a folder as users have them."""

import json
import random
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


VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "##s",
    "##ning",
    ".",
]


def save_tiny_bert(folder: Path, **changes: Any) -> Any:
    """Make a BERT with random weights and a WordPiece tokenizer of a dozen words, save both, and return the model."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 32, **changes}
    model = BertModel(BertConfig(**sizes))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    return model.eval()


def write_sentences(path: Path, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write random sentences with a kind for each word, null for articles, and some without labels; return them."""
    rng = random.Random(seed)
    kinds = {"cats": "noun", "dog": "noun", "sat": "verb", "running": "verb", "the": None, ".": "stop"}
    lines: list[dict[str, Any]] = []
    for i in range(n):
        words = rng.choices(list(kinds), k=rng.randrange(4, 9))
        labelled = {"tokens": words, "labels": [kinds[word] for word in words]}
        lines.append(labelled if i % 5 else {"text": " ".join(words)})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines
