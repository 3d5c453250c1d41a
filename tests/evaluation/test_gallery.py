"""The gallery's choices against loops, and its sheets pixel by pixel."""

import numpy as np
import pytest
import torch

from eigenloom.codes.stream import CodeBatch
from eigenloom.errors import DataError
from eigenloom.evaluation.gallery import COLUMNS, HEAT, best_images, heat_sheet, picture_sheet, scores_of


def test_scores_are_columns_turned_by_their_signs():
    codes = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    stream = [CodeBatch.dense(codes[:7]), CodeBatch.dense(codes[7:])]
    assert torch.equal(scores_of(stream, [4, 1], [1.0, -1.0]), torch.stack([codes[:, 4], -codes[:, 1]], 1))
    sparse = [CodeBatch.sparse(torch.tensor([[2.0]]), torch.tensor([[5]]), 6), CodeBatch.label(torch.tensor([1]), 6)]
    assert scores_of(sparse, [5, 1], [-1.0, 1.0]).tolist() == [[-2.0, 0.0], [0.0, 1.0]]


def test_the_best_images_are_those_of_a_loop():
    scores = torch.randn(60, generator=torch.Generator().manual_seed(1))
    found = best_images(scores, 6, 4)
    by_image = {i: max((float(scores[i * 6 + t]), -t) for t in range(6)) for i in range(10)}
    expected = sorted(by_image, key=lambda i: -by_image[i][0])[:4]
    assert [shown.example for shown in found] == expected
    assert [(shown.score, shown.token) for shown in found] == [(by_image[i][0], -by_image[i][1]) for i in expected]
    low, high = scores.min(), scores.max()
    for shown in found:
        exact = (scores[shown.example * 6 : shown.example * 6 + 6] - low) / (high - low) * 255
        assert np.abs(shown.heat - exact.numpy()).max() <= 0.5 + 1e-4


def test_ties_keep_the_stored_order_and_constants_are_dark():
    found = best_images(torch.zeros(12), 3, 9)
    assert [shown.example for shown in found] == [0, 1, 2, 3]
    assert all(not shown.heat.any() for shown in found)


def test_rows_that_are_no_whole_images_are_refused():
    with pytest.raises(DataError, match="10 rows are no whole images of 3 patches"):
        best_images(torch.zeros(10), 3, 1)


def test_pictures_are_shrunk_or_enlarged_and_centred():
    small, wide = np.full((16, 8, 3), 200, np.uint8), np.full((40, 80, 3), 10, np.uint8)
    sheet = np.asarray(picture_sheet([small] * COLUMNS + [wide], 32))
    assert sheet.shape == (64, 32 * COLUMNS, 3)
    assert (sheet[:32, 8:24] == 200).all()  # 8 x 16 pixels doubled, 8 pixels of grey at each side
    assert (sheet[:32, :8] == 128).all()
    assert (sheet[32 + 8 : 32 + 24, :32] == 10).all()  # the 17th tile begins the second row
    assert (sheet[32 : 32 + 8, :32] == 128).all()


def test_maps_are_the_opacity_of_one_colour():
    tall = np.arange(8, dtype=np.uint8).reshape(4, 2) * 30
    sheet, side = heat_sheet([np.full((4, 4), 9, np.uint8), tall])
    assert side == 8
    pixels = np.asarray(sheet)
    assert (pixels[..., :3] == HEAT).all()
    assert (pixels[:8, :8, 3] == 9).all()
    assert (pixels[:8, 10:14, 3] == tall.repeat(2, 0).repeat(2, 1)).all()
    assert not pixels[:8, 8:10, 3].any()
