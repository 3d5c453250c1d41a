"""Simulated stars: what they are made of, and that a survey does not depend on how it is written."""

import sys

import h5py
import numpy as np
import pytest
from peak_memory import peak_mb

from eigenloom.errors import ConfigError, StoreError
from eigenloom.sources.hdf5 import Hdf5Rows
from eigenloom.sources.simulated_spectra import (
    BLOCK_ROWS,
    LIGHT_SPEED,
    RANGES,
    UNITS,
    SurveyStyle,
    simulate_block,
    write_survey,
)

STYLE = SurveyStyle(n_pixels=128)


@pytest.fixture(scope="module")
def stars():
    return simulate_block(STYLE, seed=0, block=0)


def test_flux_is_truth_and_noise_and_hits(stars):
    assert {array.shape for array in (stars.flux, stars.error, stars.clean, stars.hits)} == {(BLOCK_ROWS, 128)}
    residual = (stars.flux - stars.clean) / stars.error
    quiet = residual[stars.hits == 0]
    assert abs(quiet.mean()) < 0.02
    assert abs(quiet.std() - 1) < 0.02
    assert np.abs(quiet).max() < 6.5
    assert (residual[stars.hits == 1] > 5).mean() > 0.7
    assert (stars.error > 0).all()
    assert (stars.clean > 0).all()


def test_hits_are_as_many_and_as_wide_as_asked(stars):
    assert abs(stars.hits.mean() - STYLE.hit_rate) < 0.0006
    edges = np.diff(np.pad(stars.hits.astype(int), ((0, 0), (1, 1))), axis=1)
    widths = np.flatnonzero(edges.ravel() == -1) - np.flatnonzero(edges.ravel() == 1)
    assert set(widths[widths <= 3]) == {1, 2, 3}
    assert (widths <= 3).mean() > 0.97  # two hits may touch
    assert not simulate_block(SurveyStyle(n_pixels=64, hit_rate=0.0), 0, 0).hits.any()


def test_labels_fill_their_ranges(stars):
    assert set(stars.labels) == set(UNITS)
    ranges = {**RANGES, "rv": (-150, 150), "snr": (10, 100)}
    for name, (low, high) in ranges.items():
        values = stars.labels[name]
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.08 * (high - low) < values.max() <= high
    logs = np.log(stars.labels["snr"] / 10) / np.log(10)
    assert abs(np.median(logs) - 0.5) < 0.05
    median = np.median(stars.error / np.sqrt((stars.clean + 0.1) / 1.1), axis=1)
    assert np.allclose(1 / median, stars.labels["snr"], rtol=1e-5)


def test_lines_deepen_with_metals_and_move_with_velocity():
    style = SurveyStyle(n_pixels=2048, n_lines=40, hit_rate=0.0)
    stars = simulate_block(style, 0, 0)
    poor, rich = (stars.labels["M_H"] < -1.5), (stars.labels["M_H"] > 0.0)
    assert stars.clean[rich].min(1).mean() < 0.7 < stars.clean[poor].min(1).mean()
    still = simulate_block(SurveyStyle(n_pixels=2048, n_lines=40, velocity=1e-9), 0, 0)
    star = int(np.argmax(stars.labels["M_H"] + (np.abs(stars.labels["rv"]) > 100)))
    pixels = np.arange(-40, 41)
    slope = lambda flux: np.gradient(np.log(flux.astype(float)))  # noqa: E731
    moved, fixed = slope(stars.clean[star]), slope(still.clean[star])
    match = [np.corrcoef(np.roll(fixed, shift)[50:-50], moved[50:-50])[0, 1] for shift in pixels]
    found = pixels[int(np.argmax(match))] * style.pixel_velocity
    assert abs(found - stars.labels["rv"][star]) < style.pixel_velocity


def test_the_grid_is_even_in_the_logarithm():
    grid = STYLE.grid
    assert grid[0] == pytest.approx(5000)
    assert grid[-1] == pytest.approx(6000)
    steps = np.diff(np.log(grid))
    assert np.allclose(steps, steps[0])
    assert STYLE.pixel_velocity == pytest.approx(steps[0] * LIGHT_SPEED)


def test_a_block_is_a_function_of_seed_and_number(stars):
    again = simulate_block(STYLE, 0, 0, n_rows=10)
    assert np.array_equal(again.flux, stars.flux[:10])
    assert np.array_equal(again.labels["T_eff"], stars.labels["T_eff"][:10])
    assert not np.array_equal(simulate_block(STYLE, 0, 1, 10).flux, again.flux)
    assert not np.array_equal(simulate_block(STYLE, 1, 0, 10).flux, again.flux)
    other_lines = simulate_block(SurveyStyle(n_pixels=128, line_seed=1), 0, 0, 10)
    assert np.array_equal(other_lines.labels["T_eff"], again.labels["T_eff"])
    assert not np.allclose(other_lines.clean, again.clean)


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def test_the_file_has_the_survey_layout_and_no_dependence_on_how_it_is_written(tmp_path):
    style = SurveyStyle(n_pixels=32)
    write_survey(tmp_path / "a.h5", style, 5, 1500)
    write_survey(tmp_path / "same.h5", style, 5, 1500)
    write_survey(tmp_path / "chunked.h5", style, 5, 1500, chunks=(100, 32), compression="gzip")
    write_survey(tmp_path / "more.h5", style, 5, 2100)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "same.h5").read_bytes()
    plain, chunked, more = (datasets(tmp_path / f"{name}.h5") for name in ("a", "chunked", "more"))
    assert set(plain) == {
        "dataset/arrays/flux/value", "dataset/arrays/error/value", "spectrumdataset/wave", "truth/clean", "truth/hits",
        *(f"dataset/params/{name}" for name in UNITS),
    }  # fmt: skip
    for name, values in plain.items():
        assert np.array_equal(values, chunked[name]), name
        assert np.array_equal(values, more[name][: len(values)]), name
    assert plain["dataset/arrays/flux/value"].dtype == "<f4"
    assert plain["truth/hits"].dtype == "u1"
    second = simulate_block(style, 5, 1, 1500 - BLOCK_ROWS)
    assert np.array_equal(plain["dataset/arrays/flux/value"][BLOCK_ROWS:], second.flux)
    assert Hdf5Rows(tmp_path / "a.h5", "dataset/arrays/flux/value").n_rows == 1500
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["spectrumdataset/wave"].attrs["units"] == "Angstrom"
        assert file["dataset/params/T_eff"].attrs["units"] == "K"


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a parent of this path is a file"):
        write_survey(tmp_path / "file" / "a.h5", STYLE, 0, 10)
    with pytest.raises(ValueError, match="Chunk shape"):
        write_survey(tmp_path / "a.h5", STYLE, 0, 10, chunks=(20, 200))
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_pixels": 1}, "1 pixels and 100 lines; at least 2 and 0"),
        ({"wavelength": (6000, 5000)}, r"wavelength \[6000, 5000\] must be \[low, high\] with 0 < low < high"),
        ({"snr": (0, 10)}, r"snr \[0, 10\]"),
        ({"hit_rate": 0.9}, r"hit_rate must be in 0\.\.0\.5"),
    ],
)
def test_wrong_styles(changes, words):
    with pytest.raises(ConfigError, match=words):
        SurveyStyle(**changes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded_however_many_stars(tmp_path):
    """Four blocks of 4096 pixels, 67 MB per array: within 300 MB, imports included."""
    code = """
import sys
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
write_survey(sys.argv[1], SurveyStyle(n_pixels=4096), 0, 4096)
"""
    assert peak_mb(code, tmp_path / "a.h5") < 300
