"""Hooks record what a hand-written loop over the blocks computes, for any shape a library gives its networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from eigenloom.errors import ConfigError, DataError
from eigenloom.nn.vit import SmallViT, ViTConfig, patchify
from eigenloom.sources.extraction import BlockRecorder, VisionModel, count_prefix, extract, find_blocks, full_precision
from eigenloom.sources.preprocess import Preprocess

CPU = torch.device("cpu")
WIDTH = 6


class ToyBlock(nn.Module):
    """Puts out a tuple, as libraries do, and is called once per forward."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return None, x + torch.tanh(self.mix(x)), x.mean()


class ToyEmbeddings(nn.Module):
    def __init__(self, cls, registers):
        super().__init__()
        self.patches = nn.Linear(3 * 4 * 4, WIDTH)
        if cls:
            self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(1, registers, WIDTH))

    def forward(self, images):
        x = self.patches(patchify(images, 4))
        prefix = [p.reshape(1, -1, WIDTH).expand(len(x), -1, -1) for n, p in self.named_parameters(recurse=False)]
        return torch.cat([*prefix, x], dim=1)


class ToyModel(nn.Module):
    """Shaped like the vision towers of transformers: a config, embeddings, an encoder with a list of layers."""

    def __init__(self, depth=3, cls=True, registers=2, twin=False):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=depth)
        self.embeddings = ToyEmbeddings(cls, registers)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ToyBlock() for _ in range(depth))
        self.encoder.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.Identity(), nn.Identity()])  # not of one class
        if twin:
            self.encoder.others = nn.ModuleList(ToyBlock() for _ in range(depth))

    def forward(self, images):
        x = self.embeddings(images)
        for layer in self.encoder.layers:
            x = layer(x)[1]
            x += 1  # in place: what a hook kept must have been copied
        return x


class Pictures:
    """Images of given sizes."""

    classes, void, has_masks, image_classes = (), 0, False, ()

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


def vision(module, patch=4, **more):
    return VisionModel(module, Preprocess(patch), "toy", "0" * 64, **more)


def expected(model, images, layers, n_prefix, cls):
    """Embeddings, then one block after the other."""
    x, kept = model.embeddings(images), []
    for number, layer in enumerate(model.encoder.layers):
        x = layer(x)[1]
        if number in layers:
            kept.append(torch.cat([x[:, :cls], x[:, n_prefix:]], dim=1).clone())
        x = x + 1
    return torch.stack(kept, dim=1).detach().numpy()


@pytest.mark.parametrize(("cls", "registers"), [(True, 2), (True, 0), (False, 0), (False, 3)])
@pytest.mark.parametrize("layers", [[0, 1, 2], [2], [0, 2]])
def test_every_layer_equals_the_loop(cls, registers, layers):
    model, pictures = ToyModel(cls=cls, registers=registers), Pictures([(8, 12)] * 5)
    assert count_prefix(model) == (cls + registers, cls)
    recorder = BlockRecorder(vision(model), layers, CPU)
    got = np.concatenate(list(extract(recorder, pictures, range(5), 5, n_workers=2)))
    assert (got.shape, got.dtype) == ((5, len(layers), 6 + cls, WIDTH), np.float32)
    images = torch.stack([Preprocess(4).image(pictures.image(i)) for i in range(5)])
    assert np.array_equal(got, expected(model, images, layers, cls + registers, cls))
    assert recorder.grids == {(2, 3)}


def test_slices_and_batches():
    pictures = Pictures([(8, 12)] * 7)
    recorder = BlockRecorder(vision(ToyModel()), [1], CPU)
    whole = next(extract(recorder, pictures, range(7), 7))
    pieces = list(extract(recorder, pictures, range(2, 7), 2))
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    # other batch sizes may round differently, in the last place of numbers near one
    np.testing.assert_allclose(np.concatenate(pieces), whole[2:], atol=1e-6)
    again = list(extract(recorder, pictures, range(2, 7), 2, n_workers=3))
    assert np.array_equal(np.concatenate(again), np.concatenate(pieces))
    assert list(extract(recorder, pictures, range(0), 2)) == []


def test_images_of_one_batch_may_differ_in_shape_but_not_in_number_of_patches():
    recorder = BlockRecorder(vision(ToyModel()), [0, 2], CPU)
    pictures = Pictures([(8, 12), (12, 8), (8, 12), (4, 24)])
    got = next(extract(recorder, pictures, range(4), 4))
    assert recorder.grids == {(2, 3), (3, 2), (1, 6)}
    for i in range(4):
        np.testing.assert_allclose(got[i], next(extract(recorder, pictures, range(i, i + 1), 1))[0], atol=1e-6)
    with pytest.raises(DataError, match=r"differ in their number of patches \(4, 6\)"):
        next(extract(recorder, Pictures([(8, 12), (8, 8)]), range(2), 2))


def test_hooks_are_gone_also_after_an_exception():
    model = ToyModel()
    recorder = BlockRecorder(vision(model), [0, 1], CPU)
    recorder.record(torch.zeros(1, 3, 8, 12))
    assert not any(block._forward_hooks for block in model.encoder.layers)
    model.encoder.layers[1].mix = nn.Linear(WIDTH + 1, WIDTH)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorder.record(torch.zeros(1, 3, 8, 12))
    assert not any(block._forward_hooks for block in model.encoder.layers)


def test_precision_settings_are_put_back():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_two_lists_of_blocks_need_the_key():
    model = ToyModel(twin=True)
    with pytest.raises(ConfigError, match=r"2 lists of 3 equal blocks .* set model.blocks .*encoder.others \(3 x Toy"):
        find_blocks(model)
    assert find_blocks(model, "encoder.layers")[2] is model.encoder.layers[2]
    with pytest.raises(ConfigError, match=r"there is no 'encoder.layer'; lists of modules: encoder.layers \(3 x"):
        find_blocks(model, "encoder.layer")
    with pytest.raises(ConfigError, match="no lists of None equal blocks were found in Linear"):
        find_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("layers", [[4], [-1], [0, 4]])
def test_layers_that_do_not_exist(layers):
    with pytest.raises(ConfigError, match=r"not in the model, which has 4 blocks \(0-based: the last of 4 is 3\)"):
        BlockRecorder(vision(ToyModel(depth=4)), layers, CPU)


def test_other_refusals():
    with pytest.raises(ConfigError, match="'int8' is unknown; use one of float32, bfloat16, float16"):
        BlockRecorder(vision(ToyModel()), [0], CPU, "int8")
    recorder = BlockRecorder(vision(ToyModel(), patch=2), [0], CPU)
    with pytest.raises(
        ConfigError, match=r"block 0 puts out \[1, 9, 6\], where 3 prefix tokens and 24 patches are due"
    ):
        recorder.record(torch.zeros(1, 3, 8, 12))


def test_half_precision_is_stored_as_float32():
    pictures = Pictures([(8, 12)] * 2)
    full = next(extract(BlockRecorder(vision(ToyModel()), [1], CPU), pictures, range(2), 2))
    half = next(extract(BlockRecorder(vision(ToyModel()), [1], CPU, "bfloat16"), pictures, range(2), 2))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.2  # bf16 keeps 8 bits of numbers up to about 8, over three sums


def test_the_small_vit_is_recorded_like_any_other():
    module = SmallViT(ViTConfig((2, 3), 4, 8, 2, 2, 5))
    model = vision(module)
    recorder = BlockRecorder(model, [0, 1], CPU)
    assert recorder.has_cls
    images = torch.randn(3, 3, 8, 12)
    got = recorder.record(images)
    assert got.shape == (3, 2, 7, 8)
    x = torch.cat([module.cls_token.expand(3, -1, -1), module.patch_embed(patchify(images, 4)) + module.positions], 1)
    for layer, block in enumerate(module.blocks):
        x = block(x)
        assert torch.equal(got[:, layer], x.detach())
    assert model.signature()["preprocess"] == {
        "patch": 4, "resize": "none", "n_patches": None, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
