"""Rows of one matrix in a file: the same from every format, and a sentence for whatever is no matrix."""

import h5py
import numpy as np
import pytest
import torch
from problems import decaying_rows

from eigenloom.batches import Batches, generator
from eigenloom.errors import DataError, StoreError
from eigenloom.sources.files import READERS, open_rows

ROWS = decaying_rows(300, 5).numpy()


def written(directory, suffix, array=ROWS, key="flux", **more):
    path = directory / f"rows{suffix}"
    arrays = {key: array, **more}
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".pt":
        torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    return path


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_every_format_gives_the_rows(tmp_path, suffix, dtype):
    array = (ROWS * 100).astype(dtype)
    rows = open_rows(written(tmp_path, suffix, array), "flux")
    assert isinstance(rows, Batches)
    assert (rows.n_rows, rows.n_features) == (300, 5)
    for _ in range(2):
        found = torch.cat(list(rows))
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), array.astype(np.float32))
    sample = rows.sample(40, generator(0, "test"))
    assert len({tuple(row) for row in sample.tolist()}) == 40 or dtype == np.int32
    with pytest.raises(DataError, match="301 distinct rows were asked for"):
        rows.sample(301, generator(0, "test"))


def test_other_layouts(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", flux=ROWS, other=np.zeros(3))
    np.savez(tmp_path / "f.npz", flux=np.asfortranarray(ROWS), z=np.zeros(1000))
    np.save(tmp_path / "f.npy", np.asfortranarray(ROWS))
    torch.save(torch.from_numpy(ROWS), tmp_path / "bare.pt")
    for name in ("c.npz", "f.npz", "f.npy", "bare.pt"):
        assert np.array_equal(torch.cat(list(open_rows(tmp_path / name))).numpy(), ROWS)


def test_nothing_is_written_to_a_mapped_file(tmp_path):
    path = written(tmp_path, ".npy")
    before = path.read_bytes()
    next(iter(open_rows(path))).zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [s for s in READERS if s != ".npy"])
def test_a_key_that_does_not_exist_is_answered_with_those_that_do(tmp_path, suffix):
    path = written(tmp_path, suffix, wave=np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"`flus`.*flux.*wave"):
        open_rows(path, "flus")
    assert open_rows(path).n_rows == 300  # the usual key
    if suffix in (".npz", ".pt"):
        assert open_rows(written(tmp_path, suffix, key="only")).n_rows == 300


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("shape", [(4, 5, 6), (7,)])
def test_anything_but_a_matrix_is_refused(tmp_path, suffix, shape):
    with pytest.raises(DataError, match=r"has (the )?shape"):
        open_rows(written(tmp_path, suffix, np.zeros(shape)), "flux")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_complex_numbers_are_refused(tmp_path, suffix):
    with pytest.raises(DataError, match="complex|c16"):
        open_rows(written(tmp_path, suffix, np.zeros((3, 2), complex)), "flux")


def test_pickles_and_damage_are_refused(tmp_path):
    objects = np.array([[1, "a"]], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", flux=objects)
    torch.save([torch.zeros(2, 2)], tmp_path / "l.pt")
    big_endian = tmp_path / "b.npy"
    np.save(big_endian, ROWS.astype(">f4"))
    for name, words in (
        ("o.npy", "is damaged or no .npy file of numbers"), ("o.npz", "holds Python objects"),
        ("l.pt", "holds a list"), ("b.npy", "native"),
    ):  # fmt: skip
        with pytest.raises((DataError, StoreError), match=words):
            open_rows(tmp_path / name)
    for suffix in READERS:
        path = written(tmp_path, suffix)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(StoreError, match="damaged|cannot be opened"):
            open_rows(path)
    with pytest.raises(StoreError, match=r"x\.csv: rows are read from \.h5"):
        open_rows(tmp_path / "x.csv")
    with pytest.raises(StoreError, match="no such file"):
        open_rows(tmp_path / "absent.npy")
