"""Denoising of a survey: planted parts recovered, the file, bad pixels, out of core, resumption, full disks."""

import os
import subprocess
import sys
import textwrap
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from peak_memory import peak_mb

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.sources import denoising
from eigenloom.sources.denoising import HITS, MEDIAN, SPARSE, denoise_survey
from eigenloom.sources.pursuit import Pursuit, decompose_spectra
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
from eigenloom.sources.spectra import SpectraRows
from eigenloom.sources.survey import open_survey
from eigenloom.sources.survey_keys import SurveyKeys

FLUX, ERROR, WAVE = SurveyKeys().flux, SurveyKeys().error, SurveyKeys().wavelength


def planted(n=200, m=60, rank=3, seed=0, noise=0.02):
    """Spectra of low rank, their noise, and hits of 20 sigma in 1 % of the pixels."""
    rng = np.random.default_rng(seed)
    clean = 1 + 0.2 * rng.standard_normal((n, rank)) @ rng.standard_normal((rank, m)) / np.sqrt(rank)
    sigma = noise * np.exp(rng.uniform(-1, 1, (n, 1))) * np.ones((1, m))
    hits = rng.random((n, m)) < 0.01
    flux = clean + sigma * rng.standard_normal((n, m)) + 20 * sigma * hits
    return [array.astype(np.float32) for array in (flux, sigma, clean)] + [hits]


def written(path, flux, error=None, **labels):
    with h5py.File(path, "w") as file:
        file[FLUX] = flux
        if error is not None:
            file[ERROR] = error
        file[WAVE] = np.linspace(400.0, 500.0, flux.shape[1])
        file[WAVE].attrs["units"] = "nm"
        for name, values in labels.items():
            file[f"dataset/params/{name}"] = values
    return path


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    flux, sigma, _, _ = planted()
    return written(tmp_path_factory.mktemp("survey") / "survey.h5", flux, sigma, T_eff=np.arange(200.0))


def test_planted_rank_and_hits_are_recovered(tmp_path):
    flux, sigma, clean, hits = planted()
    facts = denoise_survey(written(tmp_path / "s.h5", flux, sigma), tmp_path / "s.pcp.h5")
    with h5py.File(tmp_path / "s.pcp.h5") as file:
        low, found = file[FLUX][:], file[HITS][:].astype(bool)
    assert facts["status"] == "converged"
    assert 3 <= facts["rank"] <= 8  # one more is the median over errors; noise adds a few
    assert (found == hits).mean() > 0.9995
    assert facts["hits"] == found.sum()
    assert np.square(low - clean).sum() < 0.05 * np.square(flux - clean).sum()


def test_the_file_is_a_survey_again(survey, tmp_path):
    out = tmp_path / "s.pcp.h5"
    facts = denoise_survey(survey, out, seed=4)
    opened = open_survey(out)
    assert opened.unit == "nm"
    np.testing.assert_array_equal(opened.wavelength, open_survey(survey).wavelength)
    np.testing.assert_array_equal(opened.label("T_eff")[0], np.arange(200.0))
    with h5py.File(out) as file:
        assert SpectraRows(out, normalise="none").sample(200, torch.Generator()).shape == (200, 60)
        assert file.attrs["input_sha256"] == file_digest(survey)
        assert (file.attrs["status"], file.attrs["rank"], file.attrs["seed"]) == ("converged", facts["rank"], 4)
        assert file.attrs["lambda"] == pytest.approx(2 / np.sqrt(200))
        indptr, indices, data = (file[f"{SPARSE}/{name}"][:] for name in ("indptr", "indices", "data"))
        flux = open_survey(survey)
        with h5py.File(survey) as before:
            residual = before[FLUX][:] - file[FLUX][:]
            limit = 5 * before[ERROR][:]
        assert np.array_equal(file[HITS][:].astype(bool), residual > limit)
        assert file[MEDIAN].shape == (60,)
    sparse = np.zeros(flux.flux.shape, np.float32)
    for row, (first, stop) in enumerate(pairwise(indptr)):
        sparse[row, indices[first:stop]] = data[first:stop]
    assert len(indptr) == 201
    assert indptr[-1] == len(data) > 0
    strong = residual > 2 * limit
    assert (sparse[strong] > 0).all()  # the sparse part holds the hits, in units of the flux
    assert np.abs(sparse[strong] - residual[strong]).max() < limit.max()


def test_out_of_core_gives_the_same_bytes(survey, tmp_path):
    for name, in_memory in (("a", True), ("b", False)):
        denoise_survey(survey, tmp_path / name, in_memory=in_memory)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no unfinished work is left


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(survey, tmp_path, in_memory, caplog):
    denoise_survey(survey, tmp_path / "whole", in_memory=in_memory)
    code = """
        import os, sys
        from eigenloom.linalg import pcp_store
        from eigenloom.sources.denoising import denoise_survey
        tick, done = pcp_store.OnDisk.tick, []
        def killed(self, *arguments):
            tick(self, *arguments)
            done.append(1)
            if len(done) == 10:
                os._exit(9)
        pcp_store.OnDisk.tick = killed
        denoise_survey(sys.argv[1], sys.argv[2], in_memory=sys.argv[3] == "True")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(survey), str(tmp_path / "part"), str(in_memory)]
    assert subprocess.run(command, check=False).returncode == 9
    assert not (tmp_path / "part").exists()
    caplog.set_level("INFO")
    denoise_survey(survey, tmp_path / "part", in_memory=in_memory)
    assert "resuming" in caplog.text
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_masked_pixel_changes_nothing(tmp_path):
    flux, sigma, _, _ = planted()
    sigma[7, 11], results = 0, []
    for value in (0.5, 1e6, np.nan):
        flux[7, 11] = value
        denoise_survey(written(tmp_path / "s.h5", flux, sigma), tmp_path / "o.h5", bad_pixels="mask")
        with h5py.File(tmp_path / "o.h5") as file:
            results.append((file[FLUX][:], file[HITS][:], file[f"{SPARSE}/data"][:], file.attrs["bad_pixels"]))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    assert results[0][3] == 1
    assert np.isfinite(results[0][0]).all()
    assert results[0][1][7, 11] == 0


def test_a_bad_pixel_is_refused_by_its_place(tmp_path):
    flux, sigma, _, _ = planted()
    flux[3, 5] = np.nan
    with pytest.raises(DataError, match="row 3, pixel 5 is bad"):
        denoise_survey(written(tmp_path / "s.h5", flux, sigma), tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


def test_without_errors_the_noise_is_measured(tmp_path):
    flux, _, clean, hits = planted(noise=0.02)
    rng = np.random.default_rng(9)
    flux = (clean + 0.02 * rng.standard_normal(clean.shape) + 0.4 * hits).astype(np.float32)
    facts = denoise_survey(written(tmp_path / "s.h5", flux), tmp_path / "o.h5", Pursuit(rank_guess=8))
    assert facts["noise_std"] == pytest.approx(0.02, rel=0.1)
    with h5py.File(tmp_path / "o.h5") as file:
        assert (file[HITS][:].astype(bool) == hits).mean() > 0.999


def test_more_pixels_than_spectra(tmp_path):
    flux, sigma, clean, hits = planted(n=50, m=160)
    denoise_survey(written(tmp_path / "s.h5", flux, sigma), tmp_path / "o.h5", in_memory=False)
    with h5py.File(tmp_path / "o.h5") as file:
        assert (file[HITS][:].astype(bool) == hits).mean() > 0.999
        assert np.square(file[FLUX][:] - clean).sum() < 0.05 * np.square(flux - clean).sum()


def test_negative_hits_count_where_asked(tmp_path):
    flux, sigma, _, hits = planted()
    low, _, _ = decompose_spectra(flux, sigma, Pursuit())
    dips = flux - 40 * sigma * hits
    low, _, _ = decompose_spectra(dips, sigma, Pursuit())
    residual = (dips - low) / sigma
    assert Pursuit().is_hit(residual).sum() < 5
    assert (Pursuit(positive=False).is_hit(residual) == hits).mean() > 0.999


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"lambda_scale": -1}, {"lambda_scale": float("nan")}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ConfigError, match="is not a positive number"):
        Pursuit(**wrong)


def test_the_median_does_not_depend_on_the_pieces(survey, tmp_path, monkeypatch):
    denoise_survey(survey, tmp_path / "a")
    monkeypatch.setattr(denoising, "PIECE_BYTES", 60 * 4 * 7)
    denoise_survey(survey, tmp_path / "b")
    with h5py.File(tmp_path / "a") as one, h5py.File(tmp_path / "b") as two:
        for key in (FLUX, HITS, MEDIAN, f"{SPARSE}/data", f"{SPARSE}/indptr"):
            np.testing.assert_array_equal(one[key][:], two[key][:])


def test_a_disk_that_is_full_while_iterating(survey, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="No space left on device"):
        denoise_survey(survey, tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


def test_memory_does_not_grow_with_the_survey(tmp_path):
    """Out of core: 41 MB more of flux, and as much of every other array, add less than half of one."""
    code = """
        import sys
        import torch
        from eigenloom.sources.denoising import Pursuit, denoise_survey
        torch.set_num_threads(1)
        denoise_survey(sys.argv[1], sys.argv[1] + ".out", Pursuit(max_iter=3, rank_guess=4), in_memory=False)
    """
    peaks = []
    for n in (5000, 25000):
        with h5py.File(tmp_path / f"{n}.h5", "w") as file:
            rng = np.random.default_rng(0)
            low = 1 + 0.1 * rng.standard_normal((n, 2)).astype(np.float32) @ rng.standard_normal(
                (2, 512), dtype=np.float32
            )
            file[FLUX] = low + 0.01 * rng.standard_normal(low.shape, dtype=np.float32)
            file[ERROR] = np.full(low.shape, 0.01, np.float32)
        peaks.append(peak_mb(textwrap.dedent(code), tmp_path / f"{n}.h5"))
    assert peaks[1] - peaks[0] < 20


def test_the_default_style_is_denoised_to_its_targets(tmp_path):
    """The figures that the documentation promises, on a survey of another seed and half the size."""
    write_survey(tmp_path / "s.h5", SurveyStyle(), 7, 1000)
    denoise_survey(tmp_path / "s.h5", tmp_path / "o.h5")
    with h5py.File(tmp_path / "s.h5") as truth, h5py.File(tmp_path / "o.h5") as file:
        flux, clean, hits = truth[FLUX][:], truth["truth/clean"][:], truth["truth/hits"][:].astype(bool)
        found, low, strong = file[HITS][:].astype(bool), file[FLUX][:], hits & (flux - clean > 5 * truth[ERROR][:])
    assert (found & hits).sum() >= 0.98 * found.sum()
    assert (found & strong).sum() >= 0.95 * strong.sum()
    assert 10 * np.log10(np.square(flux - clean).sum() / np.square(low - clean).sum()) >= 15
