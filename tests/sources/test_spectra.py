"""Surveys in HDF5: keys, bad pixels, normalisation, splits, classes, and the edge of a split."""

import h5py
import numpy as np
import pytest
import torch

from eigenloom.batches import Batches
from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
from eigenloom.sources.spectra import (
    NORMALISATIONS,
    SpectraReader,
    SpectraRows,
    count_bad_pixels,
    normalisation_digest,
    signature,
)
from eigenloom.sources.spectra_edge import KEYS, read_spectra_edge
from eigenloom.sources.spectra_set import open_spectra, prepare_spectra
from eigenloom.sources.survey import classes_of, open_survey
from eigenloom.sources.survey_keys import SurveyKeys
from eigenloom.store.atomic import read_json

FLUX, ERROR, WAVE = SurveyKeys().flux, SurveyKeys().error, SurveyKeys().wavelength


def written(path, flux, error=None, wave=None, **labels):
    with h5py.File(path, "w") as file:
        file[FLUX] = flux
        if error is not None:
            file[ERROR] = error
        if wave is not None:
            file[WAVE] = wave
            file[WAVE].attrs["units"] = "nm"
        for name, values in labels.items():
            file[f"dataset/params/{name}"] = values
    return path


def numbers(n=20, m=16, seed=0):
    rng = np.random.default_rng(seed)
    return (2 + rng.uniform(0, 1, (n, m))).astype(np.float32)


def joined(batches):
    return torch.cat(list(batches)).numpy()


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    path = tmp_path_factory.mktemp("stars") / "survey.h5"
    write_survey(path, SurveyStyle(n_pixels=64), 0, 300)
    return path


# --- keys


def test_the_common_layout_needs_no_keys(stars):
    survey = open_survey(stars)
    assert (survey.n_spectra, survey.n_pixels, survey.unit) == (300, 64, "Angstrom")
    assert survey.keys == SurveyKeys()
    assert survey.error is not None
    values, unit = survey.label("T_eff")
    assert (values.shape, values.dtype, unit) == ((300,), np.float64, "K")


def test_flux_alone_is_enough(tmp_path):
    survey = open_survey(written(tmp_path / "a.h5", numbers()))
    assert survey.error is None
    assert survey.unit == "pixel"
    assert np.array_equal(survey.wavelength, np.arange(16))
    assert (survey.keys.error, survey.keys.wavelength) == ("none", "none")


def test_other_keys_flat_or_nested(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["flux"], file["deep/sigma"], file["lambda"] = numbers(), numbers(), np.linspace(4, 5, 16)
        table = np.zeros(20, [("teff", ">f4"), ("name", "S3")])
        table["teff"] = np.arange(20)
        file["catalogue"] = table
    keys = {"flux": "flux", "error": "deep/sigma", "wavelength": "lambda", "labels": "catalogue"}
    survey = open_survey(tmp_path / "a.h5", keys)
    assert survey.wavelength[-1] == 5
    assert np.array_equal(survey.label("teff")[0], np.arange(20))
    with pytest.raises(DataError, match="`catalogue/name` is .S3 of shape .20., where 20 numbers are needed"):
        survey.label("name")
    with pytest.raises(DataError, match="`catalogue/logg` does not exist"):
        survey.label("logg")
    assert open_survey(tmp_path / "a.h5", {**keys, "error": "none"}).error is None


@pytest.mark.parametrize(
    ("content", "keys", "words"),
    [
        ({}, {"error": "dataset/arrays/eror"}, "`dataset/arrays/eror` does not exist; .*the file holds"),
        ({"error": numbers(20, 15)}, {}, "error/value` is 20 x 15, but `.*flux/value` is 20 x 16"),
        ({"wave": np.arange(15.0)}, {}, r"wave` is float64 of shape \[15\], where 16 numbers are needed"),
        ({"wave": np.r_[0:15, 14.0]}, {}, "wave` must ascend, but pixel 14 has 14 and the next 14"),
        ({"wave": np.full(16, np.nan)}, {}, "must ascend, but pixel 0 has nan"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, content, keys, words):
    with pytest.raises(DataError, match=words):
        open_survey(written(tmp_path / "a.h5", numbers(), **content), keys)


# --- bad pixels


def spoiled(path, with_error=True):
    flux, error = numbers(), np.full((20, 16), 0.1, np.float32)
    flux[3, 5], flux[7, 0], flux[7, 15] = np.nan, np.inf, -np.inf
    if with_error:
        error[4, 2], error[4, 3], error[9, 9] = 0, -1, np.nan
    return written(path, flux, error if with_error else None, np.geomspace(4000, 5000, 16))


def test_a_bad_pixel_is_refused_with_its_place(tmp_path):
    path = spoiled(tmp_path / "a.h5")
    with pytest.raises(
        DataError, match=r"row 3, pixel 5 is bad \(flux nan, error 0\.1\), one of 6 .*`bad_pixels: mask`"
    ):
        list(SpectraRows(path))
    with pytest.raises(DataError, match=r"row 4, pixel 2 is bad \(flux [\d.]+, error 0\), one of 2 in 1 spectra"):
        list(SpectraRows(path, [4]))
    with pytest.raises(DataError, match=r"row 7, pixel 0 is bad \(flux inf\), one of 2"):
        list(SpectraRows(spoiled(tmp_path / "b.h5", with_error=False), slice(4, None)))


def test_masked_pixels_are_interpolated_over_the_wavelength_and_counted(tmp_path):
    path = spoiled(tmp_path / "a.h5")
    rows = SpectraRows(path, bad_pixels="mask", normalise="none")
    found, wave = joined(rows), rows.survey.wavelength
    flux = h5py.File(path)[FLUX][:]
    between = np.interp(wave[5], wave[[4, 6]], flux[3, [4, 6]])
    assert found[3, 5] == pytest.approx(between, rel=1e-6)
    assert between != pytest.approx(flux[3, [4, 6]].mean(), rel=1e-5)
    assert (found[7, 0], found[7, 15]) == (flux[7, 1], flux[7, 14])
    line = np.interp(wave[[2, 3]], wave[[1, 4]], flux[4, [1, 4]])
    assert np.allclose(found[4, [2, 3]], line, rtol=1e-6)
    untouched = np.isfinite(flux)
    untouched[4, [2, 3]] = untouched[9, 9] = False
    assert np.array_equal(found[untouched], flux[untouched])
    survey = open_survey(path)
    assert count_bad_pixels(survey, np.arange(20), "mask", "none") == {"pixels": 6, "spectra": 4}
    with SpectraReader(survey, np.arange(20), "mask", "none") as reader:
        block = reader.block(2, 10)
    assert (~block.good).sum() == 6
    assert np.isinf(block.error[~block.good]).all()
    assert (block.error[block.good] == np.float32(0.1)).all()


def test_changing_a_masked_pixel_changes_nothing(tmp_path):
    path = spoiled(tmp_path / "a.h5")
    before = {n: joined(SpectraRows(path, bad_pixels="mask", normalise=n)) for n in NORMALISATIONS}
    with h5py.File(path, "r+") as file:
        file[FLUX][4, 2] = 1e6
    for name, expected in before.items():
        assert np.array_equal(joined(SpectraRows(path, bad_pixels="mask", normalise=name)), expected)


def test_a_spectrum_without_a_good_pixel_is_refused(tmp_path):
    flux = numbers()
    flux[11] = np.nan
    path = written(tmp_path / "a.h5", flux)
    with pytest.raises(DataError, match="row 11 has no good pixel; leave the spectrum out"):
        list(SpectraRows(path, bad_pixels="mask"))


# --- normalisation


def test_flux_and_error_are_divided_alike(tmp_path):
    flux, error = numbers() * 40, numbers(seed=1)
    path = written(tmp_path / "a.h5", flux, error)
    for name, divisor in NORMALISATIONS.items():
        with SpectraReader(open_survey(path), np.arange(20), normalise=name) as reader:
            block = reader.block(0, 20)
        scale = divisor(flux, np.ones_like(flux, bool))
        assert np.allclose(block.flux, flux / scale, rtol=1e-6)
        assert np.allclose(block.error, error / scale, rtol=1e-6)
    medians = np.median(joined(SpectraRows(path)), axis=1)
    assert np.allclose(medians, 1, rtol=1e-6)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_spectrum_does_not_depend_on_its_neighbours(tmp_path, normalise):
    path = spoiled(tmp_path / "a.h5")
    with SpectraReader(open_survey(path), np.arange(20), "mask", normalise) as reader:
        whole = reader.block(0, 20).flux
        single = [reader.block(i, 1).flux[0] for i in range(20)]
        pairs = np.concatenate([reader.block(i, min(3, 20 - i)).flux for i in range(0, 20, 3)])
    assert np.array_equal(whole, single)
    assert np.array_equal(whole, pairs)


def test_the_continuum_runs_along_the_top():
    x = np.linspace(-1, 1, 400)
    slope = 3 + 0.5 * x - 0.3 * x**2
    rng = np.random.default_rng(0)
    lines = np.ones((5, 400))
    for row in lines:
        for centre in rng.integers(10, 390, 12):
            row[centre - 3 : centre + 4] -= 0.4
    flux = slope * lines + 0.005 * rng.standard_normal((5, 400))
    found = NORMALISATIONS["continuum"](flux, np.ones_like(flux, bool))
    assert np.abs(found / slope - 1).max() < 0.03
    straight = NORMALISATIONS["continuum"](slope[None], np.ones((1, 400), bool))
    assert np.allclose(straight, slope, rtol=1e-6)


def test_a_spectrum_that_cannot_be_divided_is_refused(tmp_path):
    flux = numbers()
    flux[6] -= 4
    with pytest.raises(DataError, match="row 6 cannot be divided by its median, which is not above 0 everywhere"):
        list(SpectraRows(written(tmp_path / "a.h5", flux)))


def test_digests_tell_normalisations_and_grids_apart(stars, tmp_path):
    assert len({normalisation_digest(name) for name in NORMALISATIONS}) == 3
    survey = open_survey(stars)
    signatures = [signature(survey, p, n) for p in ("mask", "refuse") for n in NORMALISATIONS]
    other = open_survey(written(tmp_path / "a.h5", numbers(4, 64), wave=np.arange(64.0) + 1))
    signatures.append(signature(other, "mask", "median"))
    assert len({str(s) for s in signatures}) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bad_pixels": "clip"}, "bad_pixels: 'clip' is unknown; use one of refuse, mask"),
        ({"normalise": "mean"}, "normalise: 'mean' is unknown; use one of none, median, continuum"),
        ({"rows": [300]}, r"rows: 300 to 300 leave 0\.\.299"),
    ],
)
def test_wrong_words(stars, words, message):
    with pytest.raises(ConfigError, match=message):
        SpectraRows(stars, **words)


# --- rows


def test_spectra_are_batches_in_every_order(stars):
    flux = h5py.File(stars)[FLUX][:]
    expected = flux / np.median(flux, axis=1, keepdims=True)
    rows = SpectraRows(stars, slice(10, 290), batch_size=33, block_bytes=8 * 64 * 4, pool_bytes=64 * 64 * 4)
    assert isinstance(rows, Batches)
    assert np.allclose(joined(rows), expected[10:290], rtol=1e-6)
    order = joined(rows.shuffled(torch.Generator().manual_seed(0)))
    assert np.array_equal(np.sort(order, axis=0), np.sort(joined(rows), axis=0))
    assert rows.sample(7, torch.Generator().manual_seed(0)).shape == (7, 64)
    assert rows.locate(1, 2) == f"{stars}: `{FLUX}`, row 11, pixel 2"


# --- splits


def test_a_star_is_in_one_split_only(stars):
    survey = open_survey(stars)
    sizes = (100, 50, 90, 60)
    splits = [survey.split(0, sum(sizes[:i]), n) for i, n in enumerate(sizes)]
    together = np.concatenate(splits)
    assert np.array_equal(np.sort(together), np.arange(300))
    assert all((np.diff(split) > 0).all() for split in splits)
    assert np.array_equal(survey.split(0, 0, 100), splits[0])
    assert not np.array_equal(survey.split(1, 0, 100), splits[0])
    assert abs(splits[0].mean() - 149.5) < 40
    with pytest.raises(DataError, match="holds 300 spectra, but the splits ask for 301; lower n_examples"):
        survey.split(0, 300, 1)


# --- classes


def test_classes_of_equal_size():
    values = np.random.default_rng(0).permutation(np.arange(100.0))
    names, numbers_ = classes_of(values, 4, "T_eff", "K")
    assert names == [
        "void",
        "T_eff 0 to 24.75 K",
        "T_eff 24.75 to 49.5 K",
        "T_eff 49.5 to 74.25 K",
        "T_eff 74.25 to 99 K",
    ]
    assert np.bincount(numbers_).tolist() == [0, 25, 25, 25, 25]
    order = np.argsort(values)
    assert (np.diff(numbers_[order].astype(int)) >= 0).all()


def test_classes_between_edges_and_the_unknown():
    values = np.array([np.nan, -1, 0, 0.5, 1, 2, 3, np.inf])
    names, numbers_ = classes_of(values, [0, 1, 2], "M_H")
    assert names == ["void", "M_H 0 to 1", "M_H 1 to 2"]
    assert numbers_.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert numbers_.dtype == np.uint8


def test_labels_that_cannot_be_cut():
    with pytest.raises(DataError, match="x: 2 different values cannot make 3 classes"):
        classes_of(np.array([0.0, 1.0, 1.0]), 3, "x")
    with pytest.raises(DataError, match="one value is so common that 2 equal classes cannot be cut; give edges"):
        classes_of(np.array([0.0, 0.0, 0.0, 0.0, 1.0]), 2, "x")


# --- the edge of a split


def prepared(path, survey, **changes):
    arguments = {"seed": 0, "first": 10, "n_examples": 20, "spec": {"a": 1}, "inputs": {"b": "c"}}
    return prepare_spectra(path, survey, **{**arguments, **changes})


def test_the_edge_says_which_spectra_and_how(stars, tmp_path):
    path = tmp_path / "fit_val" / "meta.json"
    document = prepared(path, stars, n_pixels=64, normalise="continuum", dataset="simulated")
    assert read_json(path) == document
    assert tuple(document) == KEYS
    assert (document["n_examples"], document["n_spectra"], document["n_pixels"]) == (20, 300, 64)
    assert document["wavelength"] == {"first": 5000.0, "last": pytest.approx(6000), "unit": "Angstrom"}
    assert document["bad_pixels"] == {"treatment": "refuse", "pixels": 0, "spectra": 0}
    spectra = open_spectra(path)
    assert np.array_equal(spectra.rows, open_survey(stars).split(0, 10, 20))
    expected = joined(SpectraRows(stars, spectra.rows[5:9], normalise="continuum"))
    assert np.array_equal(joined(spectra.batches(5, 9)), expected)
    assert np.array_equal(np.load(path.with_name("wavelength.npy")), open_survey(stars).wavelength)


def test_everything_wrong_is_found_when_the_split_is_fixed(stars, tmp_path):
    path = tmp_path / "meta.json"
    with pytest.raises(DataError, match="spectra have 64 pixels, but n_pixels is 65; correct it"):
        prepared(path, stars, n_pixels=65)
    bad = spoiled(tmp_path / "bad.h5")
    with pytest.raises(DataError, match="is bad"):
        prepared(path, bad, first=0)
    assert not path.exists()
    assert prepared(path, bad, first=0, bad_pixels="mask")["bad_pixels"]["pixels"] == 6


def test_another_file_or_a_lost_sibling_is_refused(stars, tmp_path):
    survey = written(tmp_path / "a.h5", numbers(30, 16))
    path = tmp_path / "s" / "fit_val" / "meta.json"
    prepared(path, survey)
    written(survey, numbers(40, 16))
    with pytest.raises(DataError, match="holds 40 spectra of 16 pixels, but .*meta.json was made from 30 of 16"):
        open_spectra(path)
    path.with_name("rows.npy").unlink()
    with pytest.raises(StoreError, match=r"rows\.npy"):
        open_spectra(path)
    path.write_text('{"format": "eigenloom.spectra", "version": 1}')
    with pytest.raises(StoreError, match="lacks dataset, survey"):
        read_spectra_edge(path)
    path.write_text("{}")
    with pytest.raises(StoreError, match=r"is not an edge of format 'eigenloom\.spectra' version 1"):
        read_spectra_edge(path)
