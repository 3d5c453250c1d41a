"""One label per patch from a mask of one label per pixel."""

import numpy as np

from eigenloom.errors import ConfigError, DataError

RULES = ("majority-prefer-nonvoid", "majority", "prefer-fg")
"""Ours; saev's ``majority`` (lowest id on ties, so void wins); saev's ``prefer-fg`` (void only if all is void)."""


def patch_labels(mask: np.ndarray, patch: int, void: int = 0, rule: str = RULES[0]) -> np.ndarray:
    """Label each patch by the commonest label of its pixels.

    Args:
        mask: uint8 ``[H, W]`` or ``[n, H, W]``; H and W multiples of ``patch``.
        patch: pixels per patch side.
        void: the label of no class.
        rule: what happens on ties and to void, see ``RULES``. With ours a tie goes to any label before void, and
            among those to the lowest.

    Returns:
        uint8 ``[P]`` or ``[n, P]``, patches row-major over the grid.

    Raises:
        ConfigError: unknown rule.
        DataError: the mask is not a whole number of patches.
    """
    if rule not in RULES:
        raise ConfigError(f"labels: rule {rule!r} is unknown; use one of {', '.join(RULES)}")
    *lead, height, width = mask.shape
    if height % patch or width % patch:
        raise DataError(f"a mask of {height} x {width} pixels is not a whole number of {patch} x {patch} patches")
    rows, columns = height // patch, width // patch
    cut = mask.reshape(-1, rows, patch, columns, patch).swapaxes(2, 3).reshape(-1, patch * patch)
    n_labels = max(int(cut.max(initial=0)), void) + 1
    counts = np.zeros((len(cut), n_labels), dtype=np.int64)
    np.add.at(counts, (np.arange(len(cut))[:, None], cut), 1)
    if rule == "majority-prefer-nonvoid":
        counts = 2 * counts + (np.arange(n_labels) != void)  # half a pixel more for every class
    elif rule == "prefer-fg":
        counts[:, void] = np.minimum(counts[:, void], 1) * (counts.sum(1) == counts[:, void])
    return counts.argmax(1).astype(np.uint8).reshape(*lead, rows * columns)


def patch_labels_reference(mask: np.ndarray, patch: int, void: int = 0) -> np.ndarray:
    """Label the patches of one mask pixel by pixel, with our rule."""
    labels = []
    for top in range(0, mask.shape[0], patch):
        for left in range(0, mask.shape[1], patch):
            counts: dict[int, int] = {}
            for pixel in mask[top : top + patch, left : left + patch].flat:
                counts[int(pixel)] = counts.get(int(pixel), 0) + 1
            labels.append(min(counts, key=lambda label: (-counts[label], label == void, label)))
    return np.array(labels, dtype=np.uint8)
