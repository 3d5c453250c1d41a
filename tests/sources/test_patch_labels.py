"""Patch labels agree with a loop over pixels, and ties go where they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenloom.errors import ConfigError, DataError
from eigenloom.sources.patch_labels import patch_labels, patch_labels_reference


@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 3), columns=st.integers(1, 4),
    patch=st.integers(1, 4), n_labels=st.integers(1, 4), void=st.integers(0, 3),
)  # fmt: skip
def test_random_masks_on_any_grid(seed, rows, columns, patch, n_labels, void):
    mask = np.random.default_rng(seed).integers(0, n_labels, (rows * patch, columns * patch), dtype=np.uint8)
    assert np.array_equal(patch_labels(mask, patch, void), patch_labels_reference(mask, patch, void))
    assert np.array_equal(patch_labels(np.stack([mask, mask]), patch, void)[1], patch_labels(mask, patch, void))


@pytest.mark.parametrize(
    ("pixels", "ours", "majority", "prefer_fg"),
    [
        ([0, 0, 7, 7], 7, 0, 7),
        ([7, 3, 3, 7], 3, 3, 3),
        ([0, 0, 0, 7], 0, 0, 7),
        ([0, 5, 9, 9], 9, 9, 9),
        ([0, 0, 0, 0], 0, 0, 0),
        ([255, 255, 0, 0], 255, 0, 255),
    ],
)
def test_ties(pixels, ours, majority, prefer_fg):
    mask = np.array(pixels, dtype=np.uint8).reshape(2, 2)
    rules = {"majority-prefer-nonvoid": ours, "majority": majority, "prefer-fg": prefer_fg}
    assert {rule: int(patch_labels(mask, 2, rule=rule)[0]) for rule in rules} == rules


def test_three_way_tie_with_void_in_the_middle():
    mask = np.array([[4, 4], [1, 1], [9, 9]], dtype=np.uint8).repeat(2, 1).reshape(3, 4)
    assert patch_labels(np.vstack([mask, np.full((1, 4), 4)]).astype(np.uint8), 4, void=4)[0] == 4
    square = np.array([[4, 1, 9], [4, 1, 9], [4, 1, 9]], dtype=np.uint8)
    assert patch_labels(square, 3, void=1)[0] == 4


def test_refusals():
    with pytest.raises(ConfigError, match="rule 'vote' is unknown"):
        patch_labels(np.zeros((2, 2), np.uint8), 2, rule="vote")
    with pytest.raises(DataError, match="3 x 2 pixels is not a whole number of 2 x 2 patches"):
        patch_labels(np.zeros((3, 2), np.uint8), 2)
