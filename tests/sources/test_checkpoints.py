"""Checkpoints are one matrix whatever wrote them; what is wrong with a file is one sentence that names it."""

import hashlib
import json
import os
import pickle
import struct

import h5py
import numpy as np
import pytest
import torch
from checkpoint_files import WIDTH, collection, state, vector, write, write_shards
from safetensors.torch import save_file, save_model

from eigenloom.batches import ColumnBlocks
from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.sources import checkpoint_ledger
from eigenloom.sources.checkpoint_layout import WeightLayout
from eigenloom.sources.checkpoints import Checkpoints, expanded, open_checkpoints


def rows(checkpoints, size=7):
    return torch.cat([block.clone() for block in checkpoints.column_blocks(size)], dim=1)


def test_names_in_byte_order_each_in_c_order(tmp_path):
    tensors = {
        "b": torch.arange(6.0).view(2, 3),
        "B": torch.tensor([10.0]),
        "ä": torch.tensor(11.0),
        "a.z": torch.ones(1),
    }
    found = Checkpoints([write(tmp_path / "x.safetensors", tensors)])
    assert [entry.name for entry in found.layout.entries] == ["B", "a.z", "b", "ä"]
    assert rows(found).tolist() == [[10, 1, 0, 1, 2, 3, 4, 5, 11]]
    assert isinstance(found, ColumnBlocks)


@pytest.mark.parametrize("size", [1, 7, 18, WIDTH, 1000])
def test_any_block_size_gives_the_same_numbers(tmp_path, size):
    paths, expected = collection(tmp_path)
    found = Checkpoints(paths)
    blocks = [block.clone() for block in found.column_blocks(size)]
    assert {block.dtype for block in blocks} == {torch.float32}
    assert [block.shape[1] for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert torch.equal(torch.cat(blocks, dim=1), expected)
    assert torch.equal(rows(found, size), expected)
    assert (found.n_rows, found.n_features) == (6, WIDTH)


def test_a_block_that_is_kept_is_not_written_over(tmp_path):
    paths, expected = collection(tmp_path)
    kept = list(Checkpoints(paths).column_blocks(4))
    assert torch.equal(torch.cat(kept, dim=1), expected)


def test_the_memory_of_a_pass_does_not_grow_with_the_rows(tmp_path):
    paths, _ = collection(tmp_path, 3, shapes={"w": (4000,)})
    found = Checkpoints(paths)
    seen = {block.data_ptr() for _ in range(2) for block in found.column_blocks(8)}
    assert len(seen) <= 4  # of 1000 blocks: one in use, two read ahead, one that is being let go


def test_every_format_holds_the_same_matrix(tmp_path):
    states = [state(seed) for seed in range(3)]
    expected = torch.stack([vector(tensors) for tensors in states])
    named = {
        "safetensors": [write(tmp_path / f"{i}.safetensors", s) for i, s in enumerate(states)],
        "shards": [write_shards(tmp_path / f"shards-{i}", s) for i, s in enumerate(states)],
        "directories": [tmp_path / f"shards-{i}" for i in range(3)],
        "torch": [write(tmp_path / f"{i}.pt", s) for i, s in enumerate(states)],
        "groups": [write(tmp_path / "groups.h5", {f"s{i}/{n}": t for i, s in enumerate(states) for n, t in s.items()})],
    }
    layouts = set()
    for name, paths in named.items():
        found = Checkpoints(paths)
        assert torch.equal(rows(found), expected), name
        layouts.add(found.layout.digest)
    assert len(layouts) == 1
    bare = {
        "vectors": [write(tmp_path / f"{i}.npy", row.numpy()) for i, row in enumerate(expected)],
        "matrix": [write(tmp_path / "matrix.npy", expected.numpy())],
        "dataset": [write(tmp_path / "dataset.h5", {"weights": expected})],
    }
    assert all(torch.equal(rows(Checkpoints(paths)), expected) for paths in bare.values())
    assert Checkpoints(bare["matrix"]).labels[2] == f"{tmp_path}/matrix.npy[2]"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_copy_in_half_precision_shares_the_layout(tmp_path, suffix):
    tensors = state()
    paths = [
        write(tmp_path / f"{dtype}.{suffix}", {n: t.to(dtype) for n, t in tensors.items()})
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    ]
    found = Checkpoints(paths)
    expected = [vector({n: t.to(dtype) for n, t in tensors.items()}) for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(rows(found)[:2], torch.stack(expected))
    assert len({Checkpoints([path]).layout.digest for path in paths}) == 1
    assert Checkpoints(paths[1:2]).layout.entries[0].dtype == "BF16"


def test_integers_and_booleans_are_listed_and_skipped(tmp_path):
    tensors = {
        **state(),
        "bn.num_batches": torch.tensor(7),
        "mask": torch.ones(4, dtype=torch.bool),
        "none": torch.zeros(0),
    }
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        layout = Checkpoints([write(path, tensors)]).layout
        assert layout.n_features == WIDTH
        assert layout.skipped == {
            "bn.num_batches": "I64 is not floating-point", "mask": "BOOL is not floating-point",
            "none": "has no numbers",
        }  # fmt: skip


def test_include_and_exclude_narrow_the_layout(tmp_path):
    path = write(tmp_path / "x.safetensors", state())
    layout = Checkpoints([path], include=["*.weight", "a.*"], exclude=["a.s*"]).layout
    assert [entry.name for entry in layout.entries] == ["a.bias", "b.weight", "c.weight"]
    assert layout.skipped == {"a.scale": "excluded by a.s*"}
    assert Checkpoints([path], include=["b.*"]).layout.skipped["a.bias"] == "not included"
    with pytest.raises(ConfigError, match="no floating-point tensor is left; there are"):
        Checkpoints([path], include=["x*"])


class Tied(torch.nn.Module):
    """A network whose two layers share their weights."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights_enter_once(tmp_path):
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    save_model(model, str(tmp_path / "x.safetensors"))
    twice = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(tmp_path / "twice.safetensors", twice)
    found = [
        Checkpoints([tmp_path / "x.pt"]),
        Checkpoints([tmp_path / "x.safetensors"]),
        Checkpoints([tmp_path / "twice.safetensors"], tied=[["second.weight", "first.weight"]]),
    ]
    assert {frozenset(c.layout.aliases.items()) for c in found} == {frozenset({("second.weight", "first.weight")})}
    assert len({c.layout.digest for c in found}) == 1
    assert found[0].n_features == 15
    assert torch.equal(rows(found[0]), rows(found[1]))
    assert torch.equal(rows(found[0]), rows(found[2]))
    assert Checkpoints([tmp_path / "twice.safetensors"]).n_features == 24


def test_weights_that_are_not_equal_are_not_tied(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": torch.zeros(4), "b": torch.tensor([0.0, 0, 1, 0])})
    with pytest.raises(DataError, match="'b' and 'a' are to be tied, but differ at number 2"):
        Checkpoints([path], tied=[["a", "b"]])
    with pytest.raises(ConfigError, match="tied tensor 'z' does not exist; there are a, b"):
        Checkpoints([path], tied=[["a", "z"]])


def test_the_layouts_hash_does_not_move(tmp_path):
    """Bases of weights are tied to it: a change of rule would orphan them."""
    path = write(tmp_path / "x.safetensors", state())
    text = b'[["a.bias",[5],0],["a.scale",[],5],["b.weight",[3,4],6],["c.weight",[2,3,2],18]]'
    assert Checkpoints([path]).layout.digest == hashlib.sha256(text).hexdigest()


def test_a_layout_survives_its_document(tmp_path):
    path = write(tmp_path / "x.safetensors", {**state(), "n": torch.tensor(1)})
    layout = Checkpoints([path], exclude=["c.*"]).layout
    (tmp_path / "layout.json").write_text(json.dumps(layout.document()))
    assert WeightLayout.read(tmp_path / "layout.json") == layout
    document = layout.document()
    document["tensors"][0]["shape"] = [6]
    (tmp_path / "layout.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not those of its layout_hash"):
        WeightLayout.read(tmp_path / "layout.json")


def test_another_model_is_refused_with_the_first_three_differences(tmp_path):
    first = write(tmp_path / "a.safetensors", {**{f"l{i}": torch.zeros(2) for i in range(5)}, "w": torch.zeros(2, 3)})
    other = write(tmp_path / "b.safetensors", {"w": torch.zeros(3, 2), "x": torch.zeros(1)})
    with pytest.raises(MismatchError) as caught:
        Checkpoints([first, other])
    text = str(caught.value)
    assert "b.safetensors: is of another model than" in text
    assert "lacks l0, l1, l2 and 2 more; adds x; has another shape of w (3, 2) for (2, 3)" in text


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_that_is_none_is_named_by_file_tensor_and_index(tmp_path, value):
    paths, _ = collection(tmp_path, 3)
    tensors = state(1)
    tensors["c.weight"][1, 2, 0] = value
    write(paths[1], tensors)
    words = rf"step-01.safetensors: tensor 'c.weight', index \(1, 2, 0\) is {value}"
    with pytest.raises(DataError, match=words):
        rows(Checkpoints(paths))


def test_a_file_that_changes_between_passes_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_ledger, "PIECE", 8)
    paths, _ = collection(tmp_path, 3)
    found = Checkpoints(paths)
    rows(found)
    assert rows(found).shape == (3, WIDTH)
    facts = os.stat(paths[1])
    tensors = state(1)
    tensors["b.weight"][0, 1] += 1
    write(paths[1], tensors)
    os.utime(paths[1], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(
        MismatchError, match=r"step-01.safetensors: tensor 'a.bias', index \(0,\) or one.*has changed since"
    ):
        rows(found)


def test_the_next_process_compares_with_the_first_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_ledger, "PIECE", 8)
    paths, _ = collection(tmp_path / "c", 3)
    ledger = tmp_path / "resume" / "digests"
    one = Checkpoints(paths, ledger=ledger)
    walk = one.column_blocks(10)
    next(walk), next(walk)
    walk.close()  # stopped in the first pass
    two = Checkpoints(paths, ledger=ledger)
    rows(two)
    assert ledger.exists()
    write(paths[2], state(9))
    with pytest.raises(MismatchError, match="step-02"):
        rows(Checkpoints(paths, ledger=ledger))
    two.forget()
    assert not ledger.exists()
    assert rows(Checkpoints(paths, ledger=ledger)).shape == (3, WIDTH)


def test_digests_are_of_contents_and_not_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_ledger, "PIECE", 8)
    paths, _ = collection(tmp_path, 3)
    found = [Checkpoints(paths) for _ in range(3)]
    for checkpoints, size in zip(found, (3, 8, 100), strict=True):
        rows(checkpoints, size)
    assert found[0].samples() == found[1].samples() == found[2].samples() == Checkpoints(paths).samples()
    digests = [sample["sha256"] for sample in found[0].samples()]
    assert len(set(digests)) == 3
    torch.save(state(0), tmp_path / "same.pt")
    assert Checkpoints([tmp_path / "same.pt"]).samples()[0]["sha256"] == digests[0]


def test_patterns_are_sorted_and_a_pattern_without_match_is_an_error(tmp_path):
    paths, _ = collection(tmp_path)
    assert expanded([tmp_path / "step-*.safetensors"]) == paths
    assert expanded([paths[3], tmp_path / "step-0[12].safetensors"]) == [paths[3], paths[1], paths[2]]
    with pytest.raises(ConfigError, match=r"\*\.pt: matches no file"):
        Checkpoints([tmp_path / "*.pt"])
    with pytest.raises(ConfigError, match="no checkpoint was given"):
        Checkpoints([])


# Files that are refused: what is written, the error, the words.
def truncated(path):
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-9])


def long_header(path):
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def gap(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def wrong_size(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


class Hostile:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (os.system, ("touch HOSTILE",))


def hostile(path):
    torch.save({"w": Hostile()}, path)


def bare_pickle(path):
    path.write_bytes(pickle.dumps({"w": Hostile()}))


BAD = [
    ("x.safetensors", truncated, StoreError, r"bytes, but its header promises \d+; it is truncated or damaged"),
    ("x.safetensors", lambda p: p.write_bytes(b"abc"), StoreError, "not a safetensors file, or is truncated: 3 bytes"),
    ("x.safetensors", long_header, StoreError, "is not a safetensors file, or is truncated"),
    ("x.safetensors", lambda p: p.write_bytes(struct.pack("<Q", 4) + b"nope"), StoreError, "its header is not JSON"),
    ("x.safetensors", gap, StoreError, "tensor 'a' begins at byte 4, 0 expected"),
    ("x.safetensors", wrong_size, StoreError, r"tensor 'a' is F32 \(2,\) but has 4 bytes"),
    ("x.safetensors", lambda p: None, StoreError, "no such file"),
    ("x.safetensors", lambda p: save_file({"q": torch.zeros(2, dtype=torch.float8_e4m3fn)}, p), DataError,
     "tensor 'q' is F8_E4M3; quantised and unknown formats are refused"),
    ("x.pt", hostile, StoreError, "is refused, for it pickles more than plain tensors"),
    ("x.pt", bare_pickle, StoreError, "is not a file of torch.save's zip format"),
    ("x.pt", lambda p: torch.save(torch.zeros(3), p), StoreError, "holds a Tensor, where a state dict is needed"),
    ("x.pt", lambda p: torch.save({"model": state()}, p), StoreError, "entry 'model' is a dict, where a state dict"),
    ("x.pt", lambda p: torch.save(state(), p, _use_new_zipfile_serialization=False), StoreError, "zip format"),
    ("x.pt", lambda p: p.write_bytes(b""), StoreError, "zip format"),
    ("x.npy", lambda p: np.save(p, np.zeros((2, 3, 4))), DataError, r"shape \(2, 3, 4\); weights are one vector"),
    ("x.npy", lambda p: np.save(p, np.zeros(3, int)), DataError, "holds int64; weights are little-endian float16"),
    ("x.npy", lambda p: np.save(p, np.array([{}], object), allow_pickle=True), StoreError, "plain numbers"),
    ("x.npy", lambda p: p.write_bytes(b"not numpy"), StoreError, "is not a .npy file"),
    ("x.h5", lambda p: p.write_bytes(b"not hdf5"), StoreError, "is not an HDF5 file, or is truncated"),
    ("x.txt", lambda p: p.write_text("a"), StoreError, "no checkpoint is read from such a file; endings that are"),
    ("model.safetensors.index.json", lambda p: p.write_text('{"weight_map": {"a": "../b.safetensors"}}'), StoreError,
     "names the shard '../b.safetensors', which leaves its directory"),
    ("model.safetensors.index.json", lambda p: p.write_text("[]"), StoreError, "`weight_map` must map tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "error", "words"), BAD, ids=[words[-40:] for *_, words in BAD])
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch, name, spoil, error, words):
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(error, match=words) as caught:
        Checkpoints([tmp_path / name])
    assert str(caught.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "HOSTILE").exists()


def test_a_shard_that_lacks_what_the_index_promises(tmp_path):
    index = write_shards(tmp_path, state())
    document = json.loads(index.read_text())
    document["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="promises ghost in model-00001-of-00002.safetensors, which the shard lacks"):
        Checkpoints([index])


def test_a_directory_without_a_checkpoint(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(
        StoreError, match=r"holds config.json, but no model.safetensors.index.json or model.safetensors"
    ):
        Checkpoints([tmp_path])


def test_keys_of_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    matrix = np.arange(12, dtype="<f4").reshape(3, 4)
    with h5py.File(path, "w") as file:
        file["runs/weights"], file["runs/other"] = matrix, matrix + 1
        file["cube"] = np.zeros((2, 2, 2))
    assert rows(Checkpoints([path], key="runs/weights")).tolist() == matrix.tolist()
    with pytest.raises(ConfigError, match=r"has no key 'weigths'; there are cube \(2, 2, 2\), runs \(group\)"):
        Checkpoints([path], key="weigths")
    with pytest.raises(ConfigError, match="name the matrix, or the group of samples, by its key"):
        Checkpoints([path], key="runs")
    with pytest.raises(DataError, match=r"/cube has shape \(2, 2, 2\); weights are the rows of a matrix"):
        Checkpoints([path], key="cube")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    (path,), _ = collection(tmp_path, 1)
    found = Checkpoints([path])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="it was cut short while it was read"):
        rows(found)


def test_each_byte_is_read_once_a_pass(tmp_path, monkeypatch):
    paths, _ = collection(tmp_path, 3)
    found, n_read, preadv = Checkpoints(paths), [], os.preadv

    def counted(file, buffers, offset):
        n_read.append(sum(len(buffer) for buffer in buffers))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    rows(found)
    assert sum(n_read) == 3 * 4 * WIDTH


def test_files_are_closed(tmp_path):
    paths, _ = collection(tmp_path, 40)
    found = Checkpoints(paths)
    before = len(os.listdir("/proc/self/fd"))
    walk = found.column_blocks(7)
    next(walk)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    walk.close()
    rows(found)
    assert len(os.listdir("/proc/self/fd")) == before


def test_raw_bytes_are_those_of_the_file(tmp_path):
    tensors = {**state(dtype=torch.bfloat16), "n": torch.arange(5)}
    for name in ("x.safetensors", "x.pt"):
        (file,) = open_checkpoints(write(tmp_path / name, tensors))
        for key, tensor in tensors.items():
            found = b"".join(bytes(piece) for piece in file.raw(key))
            assert found == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert len(found) == file.stored_bytes(key)


def test_an_hdf5_tensor_is_read_by_slices(tmp_path):
    path = write(tmp_path / "x.h5", {"s0/w": torch.arange(24.0).view(4, 3, 2), "s0/x": torch.tensor(5.0)})
    (file,) = open_checkpoints(path)
    assert file.read("w", 5, 17).tolist() == list(map(float, range(5, 17)))
    assert file.read("x").tolist() == [5.0]
    assert b"".join(file.raw("w")) == np.arange(24, dtype="<f4").tobytes()
