"""Artifacts come back as they were written; anything else is refused by a sentence."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenloom.errors import StoreError
from eigenloom.store.artifact import DTYPES, read_artifact, read_single, write_artifact, write_single

ARRAYS = {"b": torch.arange(6).reshape(2, 3), "a": torch.tensor([0.5, -1.0]), "scalar": torch.tensor(3.0)}


def write(directory, **changes):
    arguments = {"kind": "thing", "parameters": {"k": 2}, "arrays": ARRAYS, "spec": {"seed": 0}, "inputs": {"x": "ab"}}
    return write_artifact(directory, **{**arguments, **changes})


def test_round_trip(tmp_path):
    write(tmp_path / "art", run={"seconds": 1.0})
    for path in (tmp_path / "art", tmp_path / "art" / "meta.json"):
        artifact = read_artifact(path, kind="thing", verify=True)
        assert artifact.parameters == {"k": 2}
        assert artifact.run == {"seconds": 1.0}
        assert artifact.meta["spec"] == {"seed": 0}
        assert artifact.arrays.keys() == ARRAYS.keys()
        assert all(torch.equal(artifact.arrays[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_a_transposed_array(tmp_path, dtype):
    array = torch.eye(3, 4).to(dtype).T
    write(tmp_path, arrays={"x": array})
    assert torch.equal(read_artifact(tmp_path).arrays["x"], array)


def test_meta_is_a_function_of_spec_and_inputs_alone(tmp_path):
    digests = {write(tmp_path / str(i), run={"seconds": i}) for i in range(2)}
    digests.add(write(tmp_path / "c", arrays=dict(reversed(ARRAYS.items()))))
    assert len(digests) == 1
    assert write(tmp_path / "d", arrays={**ARRAYS, "a": torch.tensor([0.5, -1.5])}) not in digests


def test_meta_is_absent_while_the_arrays_change(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr("eigenloom.store.artifact.write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path)
    assert not (tmp_path / "meta.json").exists()
    with pytest.raises(StoreError, match=r"meta\.json: no such file"):
        read_artifact(tmp_path)


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def damage_truncate(directory):
    data = (directory / "arrays.safetensors").read_bytes()
    (directory / "arrays.safetensors").write_bytes(data[:-3])


def damage_flip(directory):
    data = bytearray((directory / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "arrays.safetensors").write_bytes(data)


def damage_pickle(directory):
    data = pickle.dumps({"a": 1})
    (directory / "arrays.safetensors").write_bytes(data)
    files = {"arrays.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    edit(directory / "meta.json", files=files)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "arrays.safetensors").unlink(), r"arrays\.safetensors: missing; delete them and run the rule"),
        (damage_truncate, r"arrays\.safetensors: \d+ bytes, expected \d+"),
        (damage_flip, "its sha256 is not the recorded"),
        (damage_pickle, "is not a safetensors file"),
        (lambda d: edit(d / "meta.json", version=2), "artifact version 2; this eigenloom reads version 1"),
        (lambda d: edit(d / "meta.json", format="other"), "is not an eigenloom artifact"),
        (lambda d: edit(d / "meta.json", kind="other"), "is a 'other', where a 'thing' is needed"),
        (lambda d: edit(d / "meta.json", arrays={}), "promises {}"),
        (lambda d: edit(d / "meta.json", files={"../x": {"bytes": 0, "sha256": ""}}), "leaves its directory"),
        (lambda d: edit(d / "meta.json", files={"/etc/passwd": {"bytes": 0, "sha256": ""}}), "leaves its directory"),
        (lambda d: (d / "meta.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "meta.json").write_text('{"format": "eigenloom.artifact", "version": 1}'), "lacks"),
    ],
)
def test_damage_is_named(tmp_path, damage, words):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(StoreError, match=words):
        read_artifact(tmp_path, kind="thing", verify=True)


def test_nan_is_refused(tmp_path):
    write(tmp_path, arrays={"a": torch.tensor([1.0, float("nan")])})
    with pytest.raises(StoreError, match="a holds NaN or Inf"):
        read_artifact(tmp_path)


def single(path, **changes):
    return write_single(path, **{"kind": "thing", "parameters": {"k": 2}, "arrays": ARRAYS, **changes})


def test_one_file_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    digest = single(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == single(tmp_path / "again.safetensors")
    artifact = read_single(path, kind="thing")
    assert artifact.parameters == {"k": 2}
    assert artifact.meta["files"] == artifact.run == {}
    assert all(torch.equal(artifact.arrays[name], ARRAYS[name]) for name in ARRAYS)


def test_a_damaged_or_foreign_single_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(StoreError, match=r"x\.safetensors: no such file"):
        read_single(path)
    single(path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=r"x\.safetensors: is damaged or not a safetensors file"):
            read_single(path)
    save_file(ARRAYS, path)
    with pytest.raises(StoreError, match="is not an eigenloom artifact"):
        read_single(path)
    single(path)
    with pytest.raises(StoreError, match="is a 'thing', where a 'other' is needed"):
        read_single(path, kind="other")
    single(path, arrays={"x": torch.tensor([torch.nan])})
    with pytest.raises(StoreError, match="x holds NaN or Inf"):
        read_single(path)
    save_file({"b": ARRAYS["b"]}, path, metadata={"meta": json.dumps(read_single_meta(tmp_path))})
    with pytest.raises(StoreError, match=r"holds .* promises"):
        read_single(path)


def read_single_meta(tmp_path):
    single(tmp_path / "y.safetensors")
    return read_single(tmp_path / "y.safetensors").meta
