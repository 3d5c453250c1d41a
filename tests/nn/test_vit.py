"""The network is the one described: sizes, initial weights, positions, and what it refuses."""

import pytest
import torch
from torch import nn

from eigenloom.errors import ConfigError, DataError
from eigenloom.nn.vit import SmallViT, ViTConfig, patchify, sincos_positions

DEFAULT = ViTConfig((8, 8), 8, 96, 4, 4, 11)


def test_the_default_has_less_than_half_a_million_parameters():
    model = SmallViT(DEFAULT)
    assert sum(p.numel() for p in model.parameters()) == 473_387
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    assert [len(m) for m in lists] == [model.config.num_hidden_layers]


def test_initial_weights():
    model = SmallViT(DEFAULT, seed=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = 0.3 if name.endswith(("proj", "fc2")) else 1.0
            ratio = module.weight.std() * module.in_features**0.5 / scale
            assert abs(ratio - 1) < 4 / (2 * module.weight.numel()) ** 0.5, name  # four standard errors of a deviation
            assert not module.bias.any()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), SmallViT(DEFAULT, 1).parameters(), strict=True))
    assert not torch.equal(model.head.weight, SmallViT(DEFAULT, 2).head.weight)


def test_initial_weights_ignore_the_global_generator():
    torch.manual_seed(5)
    first = SmallViT(DEFAULT).cls_token
    torch.manual_seed(6)
    assert torch.equal(first, SmallViT(DEFAULT).cls_token)


def test_patches_are_row_major():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            block = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 3 * row + column], block.flatten())


def test_positions_tell_rows_from_columns():
    table = sincos_positions((2, 3), 8).view(2, 3, 8)
    assert torch.equal(table[0, :, :4], table[0, :1, :4].expand(3, -1))  # one row: its half is constant
    assert torch.equal(table[:, 2, 4:], table[:1, 2, 4:].expand(2, -1))
    assert len({tuple(p.tolist()) for p in table.view(6, 8)}) == 6
    expected = torch.tensor([torch.sin(torch.tensor(1.0)), torch.sin(torch.tensor(0.01))])
    assert torch.allclose(table[1, 0, :2], expected)


def test_one_logit_per_label_and_patch_and_images_do_not_mix():
    model = SmallViT(ViTConfig((2, 3), 4, 8, 2, 2, 5)).eval()
    images = torch.randn(3, 3, 8, 12)
    logits = model(images)
    assert logits.shape == (3, 6, 5)
    assert torch.allclose(model(images[1:2]), logits[1:2], atol=1e-6)
    changed = images.clone()
    changed[0] += 1
    assert torch.equal(model(changed)[1:], logits[1:])
    assert not torch.equal(model(changed)[0], logits[0])


def test_another_grid_is_refused():
    with pytest.raises(DataError, match="2 x 2 patches was given to a network trained on 2 x 3; set preprocess.resize"):
        SmallViT(ViTConfig((2, 3), 4, 8, 2, 2, 5))(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (((0, 3), 4, 8, 2, 2, 5), "sizes must be at least 1, not {'grid': 0}"),
        (((2, 3), 4, 8, 0, 2, 5), "not {'depth': 0}"),
        (((2, 3), 4, 8, 2, 3, 5), r"width 8 must be a multiple of heads \(3\) and of 4"),
        (((2, 3), 4, 6, 2, 2, 5), "width 6 must be a multiple"),
    ],
)
def test_sizes_that_cannot_be_built(sizes, words):
    with pytest.raises(ConfigError, match=words):
        ViTConfig(*sizes)
