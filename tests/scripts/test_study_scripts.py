"""Scripts of denoising and of the study of attention, from a survey to the table, and the same bytes again."""

import argparse
import json

import h5py
import pytest

import compare_arms
import denoise
import fit_patches
import score_denoised
import simulate
import train_arms
from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.errors import ConfigError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.listing import file_problems
from job import Job

STYLE = {
    "n_pixels": 48, "wavelength": [5000.0, 6000.0], "n_lines": 20, "line_seed": 0, "velocity": 150.0,
    "snr": [10.0, 100.0], "hit_rate": 0.005, "hit_amplitude": 1.0,
}  # fmt: skip
SURVEY = {"seed": 0, "source": "s", "spectra": {"kind": "simulated"}, "bad_pixels": "refuse"}
PATCHES = {"n_train": 40, "patch": 12, "patches_per_spectrum": 4, "dim": 8, "n_landmarks": 32, "normalise": "median"}
STUDY = {
    "n_most": 40, "n_val": 20, "n_test": 30, "labels": ["T_eff", "M_H"], "stride": 6, "depth": 2, "heads": 2,
    "epochs": 2, "freeze_qk_epochs": 1, "batch_size": 16, "lr": 0.002, "weight_decay": 0.05, "target_logit_std": 0.1,
    "noise": [1, 3],
    "arms": ["cold", "small", "linear-pca", "random-features", "kpca-warm"],
}  # fmt: skip


def job(out, spec, **edges):
    lists = {name: paths if isinstance(paths, list) else [paths] for name, paths in edges.items()}
    text = json.dumps({**spec, "code": "0"})
    return Job(argparse.Namespace(spec=text, out=out, device="cpu", threads=1, **lists), tuple(lists))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate.main(job(tmp_path / "artifacts/s/spectra/meta.json", {"seed": 0, "n_spectra": 120, "style": STYLE}))
    return tmp_path


def test_a_survey_is_denoised_and_scored(root):
    survey, out = root / "artifacts/s/spectra/meta.json", root / "artifacts/s/denoised/meta.json"
    spec = {**SURVEY, "denoise": {"lambda_scale": 2.0, "threshold": 5.0, "rank_guess": 10}}
    denoise.main(job(out, spec, survey=survey))
    edge = json.loads(out.read_text())
    assert (edge["format"], edge["version"]) == ("eigenloom.denoised", 1)
    assert file_problems(out.parent, edge["files"], verify=True) == []
    assert edge["inputs"] == {str(survey): file_digest(survey)}
    with h5py.File(out.with_name("survey.pcp.h5")) as file:
        assert file["pcp/hits"][:].sum() == edge["hits"]
        assert file.attrs["input_sha256"] == file_digest(survey.with_name("survey.h5"))
    before = out.read_bytes()
    denoise.main(job(out, spec, survey=survey))
    assert out.read_bytes() == before
    assert not [path for path in (root / "artifacts/.resume").rglob("*") if path.is_file()]

    metrics = root / "results/s/denoised/metrics.json"
    score_denoised.main(job(metrics, spec, denoised=out, survey=survey))
    document = json.loads(metrics.read_text())
    assert document["format"] == "eigenloom.denoising"
    assert document["whole"]["found"] == edge["hits"]
    assert file_problems(metrics.parent, document["files"], verify=True) == []


def trained(root):
    survey, basis = root / "artifacts/s/spectra/meta.json", root / "artifacts/s/attention/n-00040/meta.json"
    fit_patches.main(job(basis, {**SURVEY, **PATCHES}, survey=survey))
    for seed in range(2):
        out = root / f"results/s/attention/n-00040/seed-{seed}/cold.json"
        spec = {**SURVEY, **PATCHES, **STUDY, "repeat": seed}
        train_arms.main(job(out, spec, survey=survey, basis=basis))
    return sorted((root / "results/s/attention").rglob("*.json"))


def test_a_study_from_patches_to_its_table(root):
    paths = trained(root)
    assert len(paths) == 2 * len(STUDY["arms"])
    basis = KernelPCA.load(root / "artifacts/s/attention/n-00040")
    assert (basis.n_elements, basis.n_features) == (8, 12)
    for path in paths:
        result = json.loads(path.read_text())
        assert path.stem == result["arm"]
        assert len(result["val_nmse"]) == 2
        assert set(result["test"]) == {"1", "3"}
        assert "seconds" not in path.read_text()
    table = root / "results/s/attention/table.json"
    compare_arms.main(job(table, {"source": "s", "arms": STUDY["arms"]}, arms=paths))
    document = json.loads(table.read_text())
    assert document["arms"] == STUDY["arms"]
    assert document["seeds"] == [0, 1]
    assert all("nothing is claimed from 2 seeds" in claim for claim in document["claims"])
    assert file_problems(table.parent, document["files"], verify=True) == []
    first = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in trained(root) if path.name != "table.json"} == first


def test_a_basis_of_another_width_is_refused(root):
    survey, basis = root / "artifacts/s/spectra/meta.json", root / "artifacts/s/attention/n-00040/meta.json"
    fit_patches.main(job(basis, {**SURVEY, **PATCHES, "dim": 6}, survey=survey))
    out = root / "results/s/attention/n-00040/seed-0/cold.json"
    with pytest.raises(ConfigError, match="6 components and the network a width of 8"):
        train_arms.main(job(out, {**SURVEY, **PATCHES, **STUDY, "repeat": 0}, survey=survey, basis=basis))
    assert not out.exists()


def test_a_foreign_result_is_refused(root):
    path = root / "x.json"
    path.write_text("{}")
    with pytest.raises(StoreError, match="holds no result of an arm"):
        compare_arms.main(job(root / "table.json", {"arms": ["cold"]}, arms=[path]))
