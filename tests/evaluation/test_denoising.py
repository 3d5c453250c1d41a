"""Scores of denoising against arithmetic by hand, rivals, injected hits, spectra for figures."""

import h5py
import numpy as np
import pytest

from eigenloom.evaluation.denoising import AMPLITUDES, Tally, examples, injected, judge, rivals
from eigenloom.sources.denoising import denoise_survey
from eigenloom.sources.pursuit import Pursuit
from eigenloom.sources.simulated_spectra import SurveyStyle, simulate_block, write_survey
from eigenloom.sources.survey import open_survey


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    write_survey(folder / "survey.h5", SurveyStyle(n_pixels=96, n_lines=20), 0, 300)
    denoise_survey(folder / "survey.h5", folder / "survey.pcp.h5")
    return folder / "survey.h5"


def test_scores_by_hand():
    clean, sigma = np.zeros((2, 4), np.float32), np.full((2, 4), 0.5, np.float32)
    flux = np.array([[2.0, 5, 0, 0.5], [30, 0.5, 0, 0]], np.float32)
    hits = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.uint8)
    found = np.array([[0, 1, 0, 0], [1, 1, 0, 0]], np.uint8)
    tally = Tally()
    for row in range(2):
        tally.add(*(array[row : row + 1] for array in (flux, sigma, clean, hits, flux / 10, found)))
    scores = tally.scores()
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall_strong"] == 1.0  # heights are 4, 10 and 60 sigma
    assert scores["planted"] == [0, 1, 0, 1, 0, 1]
    assert scores["recall"] == [None, 0.0, None, 1.0, None, 1.0]
    assert scores["snr_gain_db"] == pytest.approx(20.0)
    assert scores["snr_gain_unhit_db"] == pytest.approx(20.0)


def test_nothing_found_is_no_number():
    tally = Tally()
    zero = np.zeros((1, 3), np.float32)
    tally.add(zero, zero + 1, zero, zero, zero, zero)
    scores = tally.scores()
    assert scores["precision"] is scores["recall_strong"] is scores["snr_gain_db"] is None


def test_a_judgement_compares_on_equal_terms(survey):
    document = judge(open_survey(survey), survey.with_name("survey.pcp.h5"), Pursuit())
    methods = {method["method"]: method for method in document["methods"]}
    assert list(methods) == ["pcp", "pca", "pca, same rank", "plain pcp", "running median", "running-median clip"]
    assert document["n_compared"] == document["n_spectra"] == 300
    whole = document["whole"]
    for key, value in whole.items():
        assert methods["pcp"][key] == pytest.approx(value)
    assert whole["found"] == document["n_hits"]
    for rival in set(methods) - {"pcp"}:
        assert methods["pcp"]["snr_gain_db"] > methods[rival]["snr_gain_db"]
    assert document["pursuit"]["rank"] > 0
    shares = [place["share"] for place in document["pile_up"]]
    assert shares == sorted(shares, reverse=True)
    stars = simulate_block(SurveyStyle(n_pixels=96, n_lines=20), 0, 0, 300)
    power = np.square(stars.clean, dtype=np.float64).sum() / np.square(stars.flux - stars.clean, dtype=np.float64).sum()
    assert document["input_snr_db"] == pytest.approx(10 * np.log10(power), rel=1e-5)


def test_the_best_rank_is_the_best(survey):
    stars = simulate_block(SurveyStyle(n_pixels=96, n_lines=20), 0, 0, 300)
    rows = {"flux": stars.flux, "error": stars.error, "clean": stars.clean, "hits": stars.hits}
    found = {method["method"]: method for method in rivals(rows, Pursuit(), 7, 0)}
    median = np.median(stars.flux, axis=0)
    left, values, right = np.linalg.svd(stars.flux - median, full_matrices=False)
    for rank in (1, 2, 5, 10, 20):
        low = (left[:, :rank] * values[:rank]) @ right[:rank] + median
        gain = 10 * np.log10(np.square(stars.flux - stars.clean).sum() / np.square(low - stars.clean).sum())
        assert found["pca"]["snr_gain_db"] >= gain - 1e-3
    assert found["pca, same rank"]["detail"].startswith("rank 7,")


def test_without_truth_hits_are_injected(survey, tmp_path):
    with h5py.File(survey) as before, h5py.File(tmp_path / "real.h5", "w") as file:
        for key in ("dataset/arrays/flux/value", "dataset/arrays/error/value"):
            file[key] = before[key][:]
    denoise_survey(tmp_path / "real.h5", tmp_path / "real.pcp.h5")
    document = judge(open_survey(tmp_path / "real.h5"), tmp_path / "real.pcp.h5", Pursuit())
    assert "methods" not in document
    assert len(document["injected"]["recall"]) == len(AMPLITUDES)
    assert document["injected"]["recall_strong"] > 0.9
    assert sum(document["injected"]["planted"]) == pytest.approx(0.005 * 300 * 96, rel=0.2)


def test_injection_tells_a_blind_method_from_a_good_one():
    stars = simulate_block(SurveyStyle(n_pixels=96, n_lines=20), 0, 0, 300)
    blind = injected(stars.flux, stars.error, Pursuit(threshold=1e6), 0)
    assert blind["recall_strong"] == 0.0


def test_examples_are_spectra_of_the_file(survey):
    opened = open_survey(survey)
    shown = examples(opened, survey.with_name("survey.pcp.h5"), n=2, width=50)
    assert shown["unit"] == "Angstrom"
    assert len(shown["wavelength"]) == 50
    for star in shown["spectra"]:
        assert len(star["low"]) == len(star["flux"]) == len(star["clean"]) == 50
        with h5py.File(survey) as file:
            flux = file["dataset/arrays/flux/value"][star["row"], 23:73]
        assert star["flux"] == pytest.approx(flux, rel=1e-5)
    assert len({star["row"] for star in shown["spectra"]}) == 2
