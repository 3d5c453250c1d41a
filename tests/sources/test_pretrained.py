"""Pretrained vision transformers: recorded is what the library's own model computes, and only safetensors are read."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from tiny_transformers import KINDS, save_tiny, save_two_towers, write_preprocessor

from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.sources import model_files, pretrained
from eigenloom.sources.extraction import BlockRecorder, count_prefix, extract
from eigenloom.sources.model_files import is_hub_id, locate, read_facts, weight_files, weights_digest
from eigenloom.sources.pretrained import open_pretrained, pin_model

CPU = torch.device("cpu")
PREFIX = {"dinov3": 5, "dinov2-registers": 4, "deit": 2, "ijepa": 0, "siglip": 0}
"""Tokens before the patches; one, a CLS token, where a kind is not named."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Pictures:
    """Images of random sizes."""

    classes, void, has_masks, image_classes = (), 0, False, ()

    def __init__(self, n=4, seed=0):
        rng = np.random.default_rng(seed)
        self.pixels = [rng.integers(0, 256, (*rng.integers(40, 90, 2), 3), dtype=np.uint8) for _ in range(n)]

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


def planned(folder, revision=None, **changes):
    """What a plan passes to the job."""
    keys = {"blocks": None, "cls": None, **{k: v for k, v in changes.items() if k in ("blocks", "cls")}}
    facts = read_facts(locate(str(folder), revision)[0], keys["cls"])
    own = {"resize": "square", "n_patches": facts.n_patches, "mean": None, "std": None, **changes.get("preprocess", {})}
    return {"path": str(folder), "revision": revision, **keys, "preprocess": own, "shape": facts.shape()}


def opened(folder, **changes):
    edge = pin_model(planned(folder, **changes))
    assert json.loads(json.dumps(edge)) == edge
    return open_pretrained("meta.json", edge)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder per kind of model, and the models. Do not change them."""
    root = tmp_path_factory.mktemp("models")
    return {kind: (root / kind, save_tiny(root / kind, kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_block_outputs_are_the_models_own(checkpoints, kind):
    folder, model = checkpoints[kind]
    vision = opened(folder)
    n_prefix = PREFIX.get(kind, 1)
    has_cls = kind not in ("ijepa", "siglip")
    assert count_prefix(vision.module) == (n_prefix, has_cls)
    pictures = Pictures()
    recorder = BlockRecorder(vision, [0, 1, 2], CPU)
    got = next(extract(recorder, pictures, range(4), 4))
    assert (got.shape, got.dtype, recorder.grids) == ((4, 3, 16 + has_cls, 32), np.float32, {(4, 4)})
    images = torch.stack([vision.preprocess.image(pictures.image(i)) for i in range(4)])
    with torch.inference_mode():
        own = model(images, output_hidden_states=True)
    assert len(own.hidden_states) == 4  # the embeddings, then every block's output; the last is not normed either
    for layer, tokens in enumerate(own.hidden_states[1:]):
        rows = torch.cat([tokens[:, :has_cls], tokens[:, n_prefix:]], dim=1).numpy()
        np.testing.assert_allclose(got[:, layer], rows, rtol=0, atol=1e-5, err_msg=f"{kind} layer {layer}")
    normed = not np.allclose(got[:, 2, has_cls:], own.last_hidden_state[:, n_prefix:], atol=1e-3)
    assert normed == (kind not in ("beit", "clip"))  # these norm only what they pool


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_two_towers_only_the_one_for_images_is_loaded(tmp_path, kind):
    tower = save_two_towers(tmp_path / "model", kind)
    vision = opened(tmp_path / "model")
    assert type(vision.module).__name__ == KINDS[kind][0]
    assert not any("text" in name for name, _ in vision.module.named_parameters())
    images = torch.randn(2, 3, 64, 64)
    got = BlockRecorder(vision, [2], CPU).record(images)
    seen = []
    pretrained.find_blocks(tower, "encoder.layers")[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.inference_mode():
        tower(images)
    own = seen[0] if torch.is_tensor(seen[0]) else seen[0][0]
    torch.testing.assert_close(got[:, 0], own, rtol=0, atol=1e-5)


def test_dinov3_takes_any_grid(checkpoints):
    folder, _ = checkpoints["dinov3"]
    vision = opened(folder, preprocess={"resize": "grid", "n_patches": 16})
    recorder = BlockRecorder(vision, [2], CPU)
    wide = np.zeros((30, 120, 3), np.uint8)
    assert recorder.record(vision.preprocess.image(wide)[None]).shape == (1, 1, 17, 32)
    assert recorder.grids == {(2, 8)}


def test_half_precision_is_stored_as_float32(checkpoints):
    folder, _ = checkpoints["dinov3"]
    images = torch.randn(2, 3, 64, 64)
    full = BlockRecorder(opened(folder), [2], CPU).record(images)
    half = BlockRecorder(opened(folder), [2], CPU, "bfloat16").record(images)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()  # 8 bits, over three blocks


def test_the_edge_says_which_network_it_is_and_copies_nothing(checkpoints):
    folder, _ = checkpoints["dinov3"]
    edge = pin_model(planned(folder))
    assert (edge["architecture"], edge["family"], edge["commit"]) == ("transformers.DINOv3ViTModel", "dinov3", None)
    assert edge["path"] == str(folder)
    assert edge["shape"] == {"architecture": "dinov3_vit", "width": 32, "depth": 3, "patch": 16, "has_cls": True}
    assert set(edge["sources"]) == {"config.json", "model.safetensors"}
    assert edge["weights_sha256"] == edge["sources"]["model.safetensors"]["sha256"]
    assert edge["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    signature = open_pretrained("meta.json", edge).signature("bfloat16")
    assert signature["weights_sha256"] == edge["weights_sha256"]
    assert signature["architecture"] == "transformers.DINOv3ViTModel"


def test_families_are_the_protocols_words(checkpoints):
    families = {kind: read_facts(folder).family for kind, (folder, _) in checkpoints.items()}
    assert families == {
        "dinov3": "dinov3", "dinov2": "dinov2", "dinov2-registers": "dinov2", "clip": "clip", "siglip": "siglip",
        **dict.fromkeys(("vit", "deit", "beit", "ijepa"), "fake-clip"),
    }  # fmt: skip


@pytest.fixture
def folder(checkpoints, tmp_path):
    """A copy of the DINOv3 checkpoint, to be changed."""
    return shutil.copytree(checkpoints["dinov3"][0], tmp_path / "model")


def edit(path, **changes):
    stated = json.loads(path.read_text())
    stated.update(changes)
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not ...}))


def test_other_weights_than_the_pinned_ones_are_refused(folder):
    edge = pin_model(planned(folder))
    save_tiny(folder, seed=1)
    with pytest.raises(MismatchError, match="model.safetensors changed since meta.json was made; restore the files"):
        open_pretrained("meta.json", edge)


def test_sharded_weights(folder, tmp_path):
    model = save_tiny(tmp_path / "sharded")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    (tmp_path / "sharded/model.safetensors").unlink(missing_ok=True)
    names = weight_files(tmp_path / "sharded")
    assert len(names) > 1
    images = torch.randn(1, 3, 64, 64)
    one, two = (BlockRecorder(opened(at), [2], CPU).record(images) for at in (folder, tmp_path / "sharded"))
    assert torch.equal(one, two)
    edge = pin_model(planned(tmp_path / "sharded"))
    assert edge["weights_sha256"] == weights_digest(edge["sources"])
    edit(tmp_path / "sharded/model.safetensors.index.json", weight_map={"a": "../other.safetensors"})
    with pytest.raises(StoreError, match="lists no safetensors files of this folder"):
        weight_files(tmp_path / "sharded")


def test_pickles_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StoreError, match=r"holds no model.safetensors, but config.json, .*pytorch_model.bin; pickled"):
        pin_model(planned(folder))


def test_adapters_are_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match="holds an adapter; merge it into its model"):
        pin_model(planned(folder))


def test_weights_that_are_missing_or_damaged_are_named(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(tensors) if "attention" in name or "attn" in name)
    save_file({n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match=r"weights lack 1 tensors of this network \(.*; download it again"):
        opened(folder)
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(StoreError, match="does not hold this network"):
        opened(folder)


def test_a_head_may_be_missing(checkpoints, tmp_path):
    import transformers

    model = transformers.ViTForImageClassification.from_pretrained(checkpoints["vit"][0], num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    write_preprocessor(tmp_path / "classifier")
    images = torch.randn(1, 3, 64, 64)
    one, two = (
        BlockRecorder(opened(at), [2], CPU).record(images) for at in (checkpoints["vit"][0], tmp_path / "classifier")
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "vit_mae"}, "vit_mae cannot be recorded: its forward pass shuffles patches"),
        ({"model_type": "siglip2"}, "siglip2 cannot be recorded: it takes lists of patches"),
        ({"model_type": ...}, "names no model_type"),
        ({"patch_size": ...}, "dinov3_vit states no patch_size, so it is no vision transformer"),
        ({"patch_size": ..., "auto_map": {}}, "it needs code of its own, which is never run"),
    ],
)
def test_models_that_cannot_be_recorded(folder, changes, words):
    edit(folder / "config.json", **changes)
    with pytest.raises(ConfigError, match=words):
        read_facts(folder)


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "modeling.C", "AutoModel": "modeling.M"})
    with pytest.raises(ConfigError, match="does not know this model .*code that comes with a model is never run"):
        pin_model(planned(folder))
    assert not mark.exists()


def test_what_the_plan_assumed_is_compared(folder):
    model = planned(folder)
    model["shape"] = {**model["shape"], "width": 1024, "depth": 24}
    with pytest.raises(ConfigError, match="width 32, not 1024; depth 3, not 24; correct or remove model.shape"):
        pin_model(model)


def test_a_cls_token_that_the_plan_assumed_must_be_there(checkpoints, monkeypatch):
    monkeypatch.setattr(model_files, "WITHOUT_CLS", ())
    with pytest.raises(ConfigError, match="IJepaModel has no CLS token; set model.cls: false"):
        pin_model(planned(checkpoints["ijepa"][0]))
    pin_model(planned(checkpoints["ijepa"][0], cls=False))


def test_a_cls_token_can_be_left_out(folder):
    recorder = BlockRecorder(opened(folder, cls=False), [2], CPU)
    assert recorder.record(torch.randn(1, 3, 64, 64)).shape == (1, 1, 16, 32)


def test_blocks_can_be_named(folder):
    assert pin_model(planned(folder, blocks="model.layer"))["blocks"] == "model.layer"
    with pytest.raises(ConfigError, match=r"there is no 'encoder.layer'; lists of modules: model.layer \(3 x"):
        pin_model(planned(folder, blocks="encoder.layer"))


@pytest.mark.parametrize(
    ("changes", "side", "mean"),
    [
        ({"size": 48}, 48, 0.485),
        ({"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 32, 0.485),
        ({"do_normalize": False}, 64, 0.0),
    ],
)
def test_preprocessing_is_the_models_own(folder, changes, side, mean):
    write_preprocessor(folder, **changes)
    facts = read_facts(folder)
    assert facts.n_patches == (side // 16) ** 2
    assert facts.mean[0] == mean
    assert pin_model(planned(folder))["preprocess"]["mean"][0] == mean
    assert pin_model(planned(folder, preprocess={"mean": [0.1, 0.2, 0.3]}))["preprocess"]["mean"] == [0.1, 0.2, 0.3]


def test_without_a_preprocessor_the_scaling_must_be_stated(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="states image_mean and image_std; set mean and std"):
        pin_model(planned(folder))
    pin_model(planned(folder, preprocess={"mean": [0.5] * 3, "std": [0.5] * 3}))
    write_preprocessor(folder, rescale_factor=1.0)
    with pytest.raises(ConfigError, match="rescale_factor 1.0 is not 1/255"):
        read_facts(folder)


def test_learned_positions_fix_the_number_of_patches(checkpoints):
    facts = read_facts(checkpoints["vit"][0])
    assert (facts.n_patches, facts.takes_any_grid) == (16, False)
    assert read_facts(checkpoints["dinov3"][0]).takes_any_grid


@pytest.fixture
def cache(checkpoints, tmp_path, monkeypatch):
    """A Hugging Face cache that holds one model, as downloads leave it; the network is out of reach."""
    import huggingface_hub

    root = tmp_path / "hub/models--acme--tiny"
    shutil.copytree(checkpoints["dinov3"][0], root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_a_hub_id_is_looked_up_in_the_cache(cache):
    assert locate("acme/tiny") == locate("acme/tiny", "main") == locate("acme/tiny", COMMIT)
    edge = pin_model(planned("acme/tiny"))
    assert (edge["path"], edge["commit"]) == ("acme/tiny", COMMIT)
    images = torch.randn(1, 3, 64, 64)
    assert BlockRecorder(open_pretrained("meta.json", edge), [0], CPU).record(images).shape == (1, 1, 17, 32)


@pytest.mark.parametrize(
    ("path", "revision", "download", "words"),
    [
        (
            "acme/other",
            None,
            False,
            "acme/other is not in the Hugging Face cache .*`hf download acme/other`, set `down",
        ),
        ("acme/tiny", "v2", False, "acme/tiny at revision v2 is not in the Hugging Face cache"),
        (
            "acme/other",
            None,
            True,
            "acme/other: could not be downloaded .*`path` may be a local folder with config.json",
        ),
        (
            "facebook/dinov3-vits16",
            None,
            True,
            "behind a licence .*accept it on the model's page and run `hf auth login`",
        ),
        ("data/dinov3", None, True, "data/dinov3: no such folder; link it there, or give a hub id"),
        ("gone", None, False, "gone: no such folder"),
    ],
)
def test_models_that_are_not_there(cache, path, revision, download, words):
    with pytest.raises(StoreError, match=words):
        locate(path, revision, download=download)


def test_what_a_hub_id_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/model").mkdir(parents=True)
    assert is_hub_id("facebook/dinov2-base")
    assert not any(map(is_hub_id, ("own/model", "data/dinov3", "one", "a/b/c", "./a/b")))


@pytest.mark.parametrize(
    ("module", "call"),
    [("transformers", pretrained._library), ("huggingface_hub", lambda: locate("acme/tiny"))],
)
def test_a_sentence_says_how_to_install_what_is_missing(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs .*{module}; install it with `make models`, or `pip install"):
        call()


def test_facts_are_read_without_torch():
    import subprocess

    code = "import sys; import eigenloom.sources.model_files; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=model_files.Path(model_files.__file__).parents[2])
