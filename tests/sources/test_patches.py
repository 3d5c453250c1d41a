"""Windows of spectra as rows: places by seed and row, equal however they are read, and refusals."""

import numpy as np
import pytest
import torch

from eigenloom.batches import Batches, generator
from eigenloom.errors import ConfigError
from eigenloom.sources.patches import PatchRows
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
from eigenloom.sources.spectra import SpectraRows


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    path = tmp_path_factory.mktemp("stars") / "survey.h5"
    write_survey(path, SurveyStyle(n_pixels=64), 0, 200)
    return path


def windows(path, rows=None, **options):
    return PatchRows(path, rows, **{"patch_size": 10, "patches_per_spectrum": 3, "seed": 0, **options})


def joined(batches):
    return torch.cat([batch.clone() for batch in batches])


def test_rows_are_windows_of_normalised_spectra(stars):
    rows = windows(stars)
    assert isinstance(rows, Batches)
    assert (rows.n_rows, rows.n_features) == (600, 10)
    flux, found, starts = joined(SpectraRows(stars)), joined(rows), set()
    for number in range(600):
        cuts = flux[number // 3].unfold(0, 10, 1)
        (start,) = (cuts == found[number]).all(1).nonzero().flatten().tolist()
        starts.add(start)
    assert {0, 54} <= starts  # the first window and the last


def test_places_belong_to_the_row_of_the_file(stars):
    whole = joined(windows(stars)).reshape(200, 3, 10)
    some = joined(windows(stars, np.array([5, 50, 150]))).reshape(3, 3, 10)
    assert torch.equal(some, whole[[5, 50, 150]])
    assert not torch.equal(joined(windows(stars, seed=1)), joined(windows(stars)))


def test_every_order_delivers_each_window_once(stars):
    rows, stored = windows(stars, block_bytes=400, pool_bytes=4000), joined(windows(stars))
    shuffled = joined(rows.shuffled(generator(0, "shuffle")))
    assert not torch.equal(shuffled, stored)
    assert torch.equal(torch.sort(shuffled.sum(1)).values, torch.sort(stored.sum(1)).values)
    sample = rows.sample(50, generator(0, "sample"))
    assert ((sample[:, None] == stored[None]).all(2).sum(1) >= 1).all()


def test_a_place_is_named_as_the_file_counts(stars):
    rows = windows(stars, np.array([7]))
    place = rows.locate(2, 4)
    pixel = int(place.rpartition(" ")[2])
    assert "row 7" in place
    assert float(joined(rows)[2, 4]) == float(joined(SpectraRows(stars, np.array([7])))[0, pixel])


@pytest.mark.parametrize("wrong", [{"patch_size": 65}, {"patch_size": 0}, {"patches_per_spectrum": 0}])
def test_sizes_that_do_not_fit(stars, wrong):
    with pytest.raises(ConfigError, match="a patch no longer than the spectra"):
        windows(stars, **wrong)
