"""A basis of checkpoints: exact, streamed, resumable, and its files say what they hold."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import WIDTH, collection, state, vector, write

from eigenloom.bases.base import load_basis
from eigenloom.bases.weights import ERROR_KEYS, error_records, fit_weights
from eigenloom.errors import DataError, Interrupted, MismatchError
from eigenloom.sources.checkpoints import Checkpoints
from eigenloom.store.atomic import read_json

FILES = {"meta.json", "arrays.safetensors", "run.json", "components.npy", "mean.npy", "layout.json", "errors.json"}
WIDE = {"a.w": (70, 50), "b.w": (333,), "c.w": (64, 64)}


def fitted(paths, out, **more):
    return fit_weights(Checkpoints(paths), out, seed=0, **{"n_components": 3, "block_size": 1024, **more})


def test_the_artifact_is_complete_and_opens_without_us(tmp_path):
    paths, rows = collection(tmp_path / "c", shapes=WIDE)
    basis = fitted(paths, tmp_path / "w")
    assert {path.name for path in (tmp_path / "w").iterdir()} == FILES
    components = np.load(tmp_path / "w/components.npy", mmap_mode="r")
    mean = np.load(tmp_path / "w/mean.npy", mmap_mode="r")
    assert (components.shape, components.dtype, mean.shape) == ((rows.shape[1], 3), np.float32, (rows.shape[1],))
    assert np.abs(components.T @ components - np.eye(3)).max() < 1e-5
    assert np.abs(mean - rows.double().mean(0).numpy()).max() < 1e-6
    meta = read_json(tmp_path / "w/meta.json")
    origin = meta["parameters"]["origin"]
    assert (origin["n_rows"], origin["n_features"]) == rows.shape
    assert [sample["sample"] for sample in origin["samples"]] == [str(path) for path in paths]
    assert origin["layout_hash"] == read_json(tmp_path / "w/layout.json")["layout_hash"]
    assert meta["parameters"]["method"] == "dual"
    assert meta["parameters"]["orthonormality_error"] < 1e-5
    assert torch.equal(load_basis(tmp_path / "w").components, basis.components)


def test_eigenvalues_and_subspace_are_those_of_an_svd(tmp_path):
    paths, rows = collection(tmp_path / "c", n=8, shapes=WIDE)
    basis = fitted(paths, tmp_path / "w")
    centred = (rows.double() - rows.double().mean(0)).numpy()
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(basis.explained_variance, singular[:3] ** 2 / 7, rtol=1e-6)
    overlap = np.linalg.svd(right[:3] @ basis.components.double().numpy(), compute_uv=False)
    assert overlap.min() > 1 - 1e-6


def test_all_components_reconstruct_the_fitted_checkpoints(tmp_path):
    paths, rows = collection(tmp_path / "c", shapes=WIDE)
    basis = fitted(paths, tmp_path / "w", n_components=5)
    assert (basis.decode(basis.scores) - rows).norm() < 1e-6 * rows.norm()
    assert (basis.decode(basis.encode(rows)) - rows).norm() < 5e-6 * rows.norm()  # codes sum 7929 float32 products each


def test_error_records_are_direct_residuals(tmp_path):
    paths, rows = collection(tmp_path / "c", shapes=WIDE)
    basis = fitted(paths, tmp_path / "w")
    document = read_json(tmp_path / "w/errors.json")
    assert [tuple(record) for record in document["samples"]] == [ERROR_KEYS] * len(paths)
    left = (rows.double() - basis.decode(basis.encode(rows)).double()).norm(dim=1)
    norms, centred = rows.double().norm(dim=1), (rows.double() - rows.double().mean(0)).norm(dim=1)
    for i, record in enumerate(document["samples"]):
        assert record["sample"] == str(paths[i])
        assert record["L2"] == pytest.approx(left[i].item(), rel=1e-4)
        assert record["rel"] == pytest.approx((left[i] / norms[i]).item(), rel=1e-4)
        assert record["explained_variance"] == pytest.approx(1 - (left[i] / norms[i]).item() ** 2, rel=1e-4)
        assert record["rel_centred"] == pytest.approx((left[i] / centred[i]).item(), rel=1e-4)
        assert record["explained_variance_centred"] <= 1
    assert error_records(basis, [str(path) for path in paths]) == document["samples"]


def test_errors_are_tiny_and_not_cancelled_at_full_rank(tmp_path):
    paths, _ = collection(tmp_path / "c", shapes=WIDE)
    fitted(paths, tmp_path / "w", n_components=5)
    for record in read_json(tmp_path / "w/errors.json")["samples"]:
        assert 0 < record["rel_centred"] < 1e-6


def test_a_checkpoint_equal_to_the_mean_has_no_centred_error(tmp_path):
    one, two = state(0), state(1)
    middle = {name: (one[name] + two[name]) / 2 for name in one}
    paths = [write(tmp_path / f"c/{i}.safetensors", s) for i, s in enumerate((one, two, middle))]
    fitted(paths, tmp_path / "w", n_components=1)
    records = read_json(tmp_path / "w/errors.json")["samples"]
    assert records[2]["rel_centred"] is None
    assert records[2]["explained_variance_centred"] is None
    assert records[0]["rel_centred"] is not None


def test_a_millionth_of_variation_on_large_weights_is_found(tmp_path):
    base, rows, paths = state(0, shapes=WIDE), [], []
    for i in range(5):
        noise = state(10 + i, noise=4e-8, shapes=WIDE)
        tensors = {name: 0.04 * torch.sign(base[name]) + noise[name] for name in base}
        paths.append(write(tmp_path / f"c/{i}.safetensors", tensors))
        rows.append(vector(tensors))
    rows = torch.stack(rows).double()
    basis = fitted(paths, tmp_path / "w", n_components=4)
    centred = rows - rows.mean(0)
    exact = np.linalg.svd(centred.numpy(), compute_uv=False)[:4] ** 2 / 4
    assert np.allclose(
        basis.explained_variance, exact, rtol=1e-3
    )  # the mean is rounded to float32: 2^-24 of .04 is 2e-9


@pytest.mark.parametrize("change", [{"block_size": 4096}, {"block_size": 2048}])
def test_the_result_does_not_depend_on_the_size_of_blocks(tmp_path, change):
    paths, _ = collection(tmp_path / "c", shapes=WIDE)
    one, two = fitted(paths, tmp_path / "1"), fitted(paths, tmp_path / "2", **change)
    assert torch.allclose(one.components, two.components, atol=1e-6)
    assert torch.allclose(one.explained_variance, two.explained_variance, rtol=1e-6)


def test_the_order_of_checkpoints_only_reorders_the_scores(tmp_path):
    paths, _ = collection(tmp_path / "c", shapes=WIDE)
    one, two = fitted(paths, tmp_path / "1"), fitted(paths[::-1], tmp_path / "2")
    assert torch.allclose(one.components, two.components, atol=1e-5)
    assert torch.allclose(one.scores, two.scores.flip(0), atol=1e-5 * one.scores.abs().max())


def test_a_constant_added_to_all_moves_the_mean_alone(tmp_path):
    states = [state(i, shapes=WIDE) for i in range(5)]
    moved = [{name: tensor + 2.0 for name, tensor in s.items()} for s in states]
    one, two = (
        fitted([write(tmp_path / f"{at}/{i}.safetensors", s) for i, s in enumerate(group)], tmp_path / f"w{at}")
        for at, group in (("a", states), ("b", moved))
    )
    assert torch.allclose(one.explained_variance, two.explained_variance, rtol=1e-5)
    assert torch.allclose(two.mean - one.mean, torch.full_like(one.mean, 2.0), atol=1e-6)


def test_what_cannot_be_fitted(tmp_path):
    paths, _ = collection(tmp_path / "c", n=3)
    with pytest.raises(DataError, match=r"3 rows span at most 2 directions.*n_components: 3"):
        fitted(paths, tmp_path / "w", n_components=3)
    with pytest.raises(DataError):
        fitted(paths[:1], tmp_path / "w", n_components=1)
    with pytest.raises(DataError):
        fitted([paths[0]] * 3, tmp_path / "w", n_components=1)
    assert not (tmp_path / "w/meta.json").exists()
    assert fitted(paths[:2], tmp_path / "w", n_components=1).scores.shape == (2, 1)


class Interrupting(Checkpoints):
    """Checkpoints that send SIGTERM when a given block of all passes is handed over."""

    stop = -1

    def column_blocks(self, size):
        for block in super().column_blocks(size):
            type(self).stop -= 1
            if type(self).stop == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield block


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.name != "run.json"}


@pytest.mark.parametrize("stop", [1, 3, 9, 11])
def test_a_fit_that_is_stopped_and_resumed_ends_with_the_same_bytes(tmp_path, stop):
    paths, rows = collection(tmp_path / "c", shapes=WIDE)
    n_blocks = -(-rows.shape[1] // 1024)
    assert n_blocks == 8  # stops are in the first pass, and in the second
    whole = fitted(paths, tmp_path / "whole")
    Interrupting.stop = stop
    arguments = {"seed": 0, "n_components": 3, "block_size": 1024, "resume": tmp_path / "resume"}
    with pytest.raises(Interrupted):
        fit_weights(Interrupting(paths, ledger=tmp_path / "digests"), tmp_path / "w", **arguments)
    assert not (tmp_path / "w/meta.json").exists()
    again = fit_weights(Checkpoints(paths, ledger=tmp_path / "digests"), tmp_path / "w", **arguments)
    assert torch.equal(again.components, whole.components)
    assert contents(tmp_path / "w") == contents(tmp_path / "whole")
    assert not (tmp_path / "resume").exists()
    assert not (tmp_path / "digests").exists()


class Changing(Checkpoints):
    """Checkpoints one of which is written anew after the first pass."""

    def column_blocks(self, size):
        yield from super().column_blocks(size)
        path = Path(self.labels[0])
        write(path, state(99, shapes=WIDE))


def test_a_file_that_changes_between_the_passes_leaves_no_artifact(tmp_path):
    paths, _ = collection(tmp_path / "c", shapes=WIDE)
    with pytest.raises(MismatchError, match=r"step-00.safetensors: tensor 'a.w'.*has changed since the first pass"):
        fit_weights(Changing(paths), tmp_path / "w", seed=0, n_components=2, block_size=1024)
    assert not (tmp_path / "w/meta.json").exists()


class Counting(Checkpoints):
    """Checkpoints that count passes."""

    n_passes = 0

    def column_blocks(self, size):
        type(self).n_passes += 1
        return super().column_blocks(size)


def test_files_are_read_twice(tmp_path):
    paths, _ = collection(tmp_path / "c", shapes=WIDE)
    fit_weights(Counting(paths), tmp_path / "w", seed=0, n_components=3, block_size=1024)
    assert Counting.n_passes == 2


def test_the_description_of_a_large_model_stays_small(tmp_path):
    """As many tensors as DistilBERT has, and a hundred checkpoints: below a megabyte."""
    shapes = {f"distilbert.transformer.layer.{i}.attention.{n}.weight": (2, 2) for i in range(6) for n in range(17)}
    paths, _ = collection(tmp_path / "c", n=4, shapes=shapes)
    fitted(paths, tmp_path / "w", n_components=2)
    size = sum((tmp_path / "w" / name).stat().st_size for name in ("meta.json", "layout.json"))
    per_sample = len(json.dumps(read_json(tmp_path / "w/meta.json")["parameters"]["origin"]["samples"][0], indent=1))
    assert size + 96 * (per_sample + 40) < 1 << 20


def test_a_sketch_is_close_to_the_exact_fit(tmp_path):
    paths, rows = collection(tmp_path / "c", n=24, shapes=WIDE)
    exact = fitted(paths, tmp_path / "1", n_components=3)
    sketch = fitted(paths, tmp_path / "2", n_components=3, method="srht")
    left = [float(b.residuals.square().sum()) for b in (exact, sketch)]
    assert left[0] <= left[1] * (1 + 1e-6)
    assert left[1] < 1.05 * left[0]  # measured: flat spectra, which these are, lose most
    assert rows.shape[1] > WIDTH
