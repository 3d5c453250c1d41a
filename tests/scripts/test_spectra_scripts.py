"""Scripts from a survey to a recording: what they write, that shards add up, and what they refuse."""

import argparse
import json

import h5py
import numpy as np
import pytest
import torch

import join_store
import label_spectra
import list_spectra
import measure
import record_spectra
import simulate
from eigenloom.errors import DataError, MismatchError, StoreError
from eigenloom.provenance import file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.sources.spectra import SpectraRows
from eigenloom.sources.survey import open_survey
from eigenloom.sources.survey_keys import SurveyKeys
from eigenloom.store.listing import file_problems
from eigenloom.store.recording import check_signature, open_store
from job import Job

N, M = 120, 32
STYLE = {
    "n_pixels": M, "wavelength": [5000.0, 6000.0], "n_lines": 20, "line_seed": 0, "velocity": 150.0,
    "snr": [10.0, 100.0], "hit_rate": 0.005, "hit_amplitude": 1.0,
}  # fmt: skip
SPLITS = {"fit_train": 60, "fit_val": 30}


def job(out, spec, **edges):
    lists = {name: paths if isinstance(paths, list) else [paths] for name, paths in edges.items()}
    spec = json.dumps({**spec, "code": "0"})
    return Job(argparse.Namespace(spec=spec, out=out, device="cpu", threads=1, **lists), tuple(lists))


def listing(root, split, **changes):
    first = 0 if split == "fit_train" else 60
    spec = {"seed": 0, "source": "s", "split": split, "first": first, "n_examples": SPLITS[split], "n_pixels": M}
    spec |= {"bad_pixels": "refuse", "normalise": "median", "spectra": {"kind": "simulated"}} | changes
    edges = {"survey": root / "spectra/meta.json"} if spec["spectra"]["kind"] == "simulated" else {}
    return job(root / "spectra" / split / "meta.json", spec, **edges)


def recording(root, split="fit_train", shard=0, name="saev/shards", **changes):
    spec = {"source": "s", "split": split, "shard": shard, "layers": [0], "n_examples": SPLITS[split]}
    spec |= {"max_tokens_per_shard": 25} | changes
    out = root / name / split / f"shard-{shard:05d}.json"
    return job(out, spec, examples=root / "spectra" / split / "meta.json", survey=root / "spectra/meta.json")


def labelling(root, split, bins=4):
    out = root / "saev/shards" / split / "labels.json"
    spec = {"source": "s", "split": split, "label": "T_eff", "bins": bins}
    return job(out, spec, examples=root / "spectra" / split / "meta.json", survey=root / "spectra/meta.json")


def joining(root, split):
    directory = root / "saev/shards" / split
    spec = {"source": "s", "split": split, "layers": [0], "n_examples": SPLITS[split], "max_tokens_per_shard": 25}
    spec |= {"ckpt": "s", "family": "fake-clip"}
    return job(
        directory / "store.json", spec, examples=root / "spectra" / split / "meta.json",
        shards=sorted(directory.glob("shard-?????.json")), labels=directory / "labels.json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("survey")
    simulate.main(job(root / "spectra/meta.json", {"seed": 0, "n_spectra": N, "style": STYLE}))
    for split, n in SPLITS.items():
        list_spectra.main(listing(root, split))
        for shard in range(-(-n // 25)):
            record_spectra.main(recording(root, split, shard))
        label_spectra.main(labelling(root, split))
        join_store.main(joining(root, split))
    return root


def test_the_survey_edge(root):
    edge = json.loads((root / "spectra/meta.json").read_text())
    assert (edge["format"], edge["n_spectra"], edge["n_pixels"]) == ("eigenloom.survey", N, M)
    assert file_problems(root / "spectra", edge["files"], verify=True) == []
    assert open_survey(root / "spectra/survey.h5").n_spectra == N


def test_a_spectrum_is_one_token_of_one_layer(root):
    store = open_store(root / "saev/shards/fit_train/store.json")
    assert (store.n_examples, store.tokens_per_example, store.d_model, store.layers) == (60, 1, M, (0,))
    assert [shard.n_examples for shard in store.shards] == [25, 25, 10]
    assert store.grid == (1, 1)
    assert store.metadata.dataset == "simulated"
    assert store.sidecar["files"]["sha256"] == file_digest(root / "spectra/fit_train/rows.npy")
    survey = open_survey(root / "spectra/survey.h5")
    rows = survey.split(0, 0, 60)
    expected = torch.cat(list(SpectraRows(survey, rows)))
    assert torch.equal(torch.cat(list(ActivationRows(store, 0))), expected)
    with h5py.File(root / "spectra/survey.h5") as file:
        flux = file[SurveyKeys().flux][:][rows]
    assert np.allclose(expected, flux / np.median(flux, axis=1, keepdims=True), rtol=1e-6)


def test_labels_are_those_of_the_stars(root):
    stores = {split: open_store(root / "saev/shards" / split) for split in SPLITS}
    survey = open_survey(root / "spectra/survey.h5")
    temperature, _ = survey.label("T_eff")
    edges = np.quantile(temperature, np.linspace(0, 1, 5))
    for split, store in stores.items():
        rows = np.load(root / "spectra" / split / "rows.npy")
        labels = store.labels().numpy()
        assert store.void == 0
        assert store.classes[1].startswith(f"T_eff {edges[0]:.4g} to {edges[1]:.4g} K")
        assert len(store.classes) == 5
        for label, value in zip(labels, temperature[rows], strict=True):
            assert edges[label - 1] <= value <= edges[label]
    assert stores["fit_train"].classes == stores["fit_val"].classes
    check_signature(stores["fit_train"].signature, stores["fit_val"])
    assert (
        json.loads((root / "saev/shards/fit_val/labels.json").read_text())["rule"] == "T_eff in 4 classes of equal size"
    )


def test_shards_of_another_size_hold_the_same_rows(root):
    for shard in range(2):
        record_spectra.main(recording(root, "fit_val", shard, "other", max_tokens_per_shard=17))
    read = [np.fromfile(path, "<f4").reshape(-1, M) for path in sorted((root / "other/fit_val").glob("*.bin"))]
    whole = [np.fromfile(p, "<f4").reshape(-1, M) for p in sorted((root / "saev/shards/fit_val").glob("acts*.bin"))]
    assert np.array_equal(np.concatenate(read)[:30], np.concatenate(whole)[:30])


def test_moments_are_measured_as_those_of_any_recording(root):
    out = root / "moments/fit_train/part-00000.json"
    spec = {"part": 0, "shards": [0, 1, 2]}
    measure.main(job(out, spec, store=root / "saev/shards/fit_train/store.json"))
    assert json.loads(out.read_text())["n_rows"] == 60


def test_a_file_of_ones_own_takes_the_place_of_the_simulation(root, tmp_path):
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file["flux"] = np.random.default_rng(0).uniform(1, 2, (40, 8)).astype(">f8")
    options = {"kind": "hdf5", "path": str(path), "keys": {"flux": "flux"}}
    changes = {"spectra": options, "n_pixels": None, "n_examples": 25, "first": 0}
    list_spectra.main(listing(tmp_path, "fit_train", **changes))
    edge = json.loads((tmp_path / "spectra/fit_train/meta.json").read_text())
    assert (edge["dataset"], edge["survey"], edge["n_pixels"]) == (str(path), str(path), 8)
    work = recording(tmp_path, n_examples=25)
    del work.lists["survey"]
    record_spectra.main(work)
    assert (tmp_path / "saev/shards/fit_train/acts000000.bin").stat().st_size == 25 * 8 * 4


def test_what_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="holds 60 spectra, but n_examples is 61"):
        record_spectra.main(recording(root, n_examples=61))
    with pytest.raises(DataError, match="`dataset/params/teff` does not exist; did you mean `dataset/params/T_eff`"):
        work = labelling(root, "fit_val")
        work.spec["label"] = "teff"
        label_spectra.main(work)
    options = {"kind": "hdf5", "path": "data/absent.h5", "keys": {}}
    with pytest.raises(StoreError, match=r"data/absent\.h5: no such file"):
        list_spectra.main(listing(tmp_path, "fit_val", spectra=options))


def test_a_basis_does_not_move_to_spectra_divided_otherwise(root, tmp_path):
    store = open_store(root / "saev/shards/fit_train")
    signature = {**store.signature, "normalise": "none"}
    with pytest.raises(MismatchError, match="normalise"):
        check_signature(signature, store)
