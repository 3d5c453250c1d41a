"""Torch files of others: plain tensors come through, nothing that a pickle asks for is ever run."""

import os
import pickle

import numpy as np
import pytest
import torch

from eigenloom.errors import StoreError
from eigenloom.store.plain_tensors import load_plain_tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_numbers_and_texts(tmp_path, zipped):
    value = {"a": torch.arange(6).reshape(2, 3), "b": [1.5, None, "text"]}
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = load_plain_tensors(tmp_path / "x.pt")
    assert torch.equal(found["a"], value["a"])
    assert found["b"] == value["b"]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"landmarks": Malicious(tmp_path / "run")}, tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "run"), protocol=2))
    for name in ("x.pt", "y.pt"):
        with pytest.raises(
            StoreError, match=rf"{name}: is a pickle that is not plain tensors .*asks for .*; it was not run"
        ) as told:
            load_plain_tensors(tmp_path / name)
        assert "weights_only" not in str(told.value), "torch's text advises to load it all the same"
    assert not (tmp_path / "run").exists()


def test_a_pickled_array_is_refused(tmp_path):
    torch.save({"x": np.eye(2)}, tmp_path / "x.pt")
    with pytest.raises(StoreError, match="is a pickle that is not plain tensors and numbers .it asks for numpy"):
        load_plain_tensors(tmp_path / "x.pt")


def test_damage_is_named(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(StoreError, match="no such file"):
        load_plain_tensors(path)
    torch.save(torch.zeros(1000), path)
    whole = path.read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], b"hello"):
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"x\.pt: is (damaged or no torch file|a pickle that)"):
            load_plain_tensors(path)
