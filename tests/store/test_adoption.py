"""Recordings of the saev project as sources: written by plain code after its protocol, adopted, left untouched."""

import base64
import hashlib
import json
import os
import pickle
import resource
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import edit_json, metadata_of, numbers, record, saev_record, write_shards

import adopt
import verify
from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.provenance import canonical_json, file_digest
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.adoption import adopt_recording
from eigenloom.store.atomic import read_json
from eigenloom.store.protocol import Layout, metadata_hash
from eigenloom.store.recording import link_as_hash, open_store, verify_store
from eigenloom.store.writer import write_labels, write_store
from job import Job

EDGE = Path("artifacts/theirs/saev/shards/fit_train/store.json")
LAYOUT = Layout(8, (0, 2, 5), 3, True, 2, 48)  # S = 4: two full shards


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    """Recordings are named relative to the repository, which is where everything runs."""
    monkeypatch.chdir(tmp_path)


def listing(directory):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(directory).rglob("*") if path.is_file()}


def adopted(directory="data/saev", **more):
    adopt_recording(EDGE, directory, source="theirs", split="fit_train", **more)
    return open_store(EDGE)


def plain_writer(directory, facts, acts, labels):
    """The protocol 2.1 once more, from its text alone: struct, json and open."""
    directory.mkdir(parents=True)
    keys = (
        "family", "ckpt", "layers", "content_tokens_per_example", "cls_token", "d_model", "n_examples",
        "max_tokens_per_shard", "data", "dataset", "pixel_agg", "dtype", "protocol",
    )  # fmt: skip
    text = json.dumps({key: facts[key] for key in keys}, indent=2, ensure_ascii=False)
    (directory / "metadata.json").write_bytes(text.encode("utf-8"))
    tokens = facts["content_tokens_per_example"] + (1 if facts["cls_token"] else 0)
    per_example = tokens * len(facts["layers"])
    in_shard = max(1, facts["max_tokens_per_shard"] // per_example)
    entries = []
    for number, first in enumerate(range(0, facts["n_examples"], in_shard)):
        some = acts[first : first + in_shard]
        with open(directory / f"acts{number:06d}.bin", "wb") as file:
            for example in some:
                for layer in example:
                    for token in layer:
                        file.write(struct.pack(f"<{facts['d_model']}f", *token))
            file.write(b"\0" * (4 * per_example * facts["d_model"] * (in_shard - len(some))))
        entries.append({"name": f"acts{number:06d}.bin", "n_examples": len(some)})
    (directory / "shards.json").write_bytes(json.dumps(entries, indent=2).encode())
    (directory / "labels.bin").write_bytes(bytes(int(label) for row in labels for label in row))
    compact = json.dumps({key: facts[key] for key in keys}, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(compact.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        Layout(11, (1, 3), 4, True, 3, 40),
        Layout(3, (7,), 5, False, 4, 2_400_000),
        Layout(5, (0, 1), 1, True, 1, 7),
    ],
)
def test_ours_and_a_plain_writer_write_the_same_bytes(layout):
    acts = numbers(layout)
    labels = np.arange(layout.n_examples * layout.content_tokens_per_example, dtype=np.uint8) % 3
    labels = labels.reshape(layout.n_examples, -1)
    metadata = metadata_of(layout, dataset="Bilder/ü")
    facts = {**vars(metadata), "layers": list(layout.layers)}
    theirs_hash = plain_writer(Path("theirs"), facts, acts.tolist(), labels)
    shards = write_shards(Path("ours"), layout, acts)
    write_labels(Path("ours"), labels)
    write_store(Path("ours"), metadata, source="s", split="t", shards=shards, signature={})
    names = {path.name for path in Path("theirs").iterdir()}
    assert names == {path.name for path in Path("ours").iterdir()} - {"store.json"}
    for name in names:
        assert Path("ours", name).read_bytes() == Path("theirs", name).read_bytes(), name
    assert metadata_hash(metadata) == theirs_hash
    # and back: what they wrote is read as what was meant
    store = open_store("theirs")
    for axis, layer in enumerate(layout.layers):
        rows = torch.cat(list(ActivationRows(store, layer)))
        meant = acts[:, axis, layout.cls_token :].reshape(-1, layout.d_model)
        assert torch.equal(rows, torch.from_numpy(meant))
    assert torch.equal(store.labels(), torch.from_numpy(labels.ravel()))


def test_an_adopted_recording_is_read_where_it_lies_and_never_touched():
    acts = numbers(LAYOUT)
    labels = (np.arange(24, dtype=np.uint8) % 4).reshape(8, 3)
    saev_record(Path("data/saev"), acts, (0, 2, 5), True, 48, labels=labels, phantom=True)
    before = listing("data")
    store = adopted(classes=["void", "sky", "sea", "sand"], void=0)
    assert store.directory == Path("data/saev")
    assert (store.signature, store.grid) == ({"family": "dinov3", "ckpt": "dinov3_vits16"}, None)
    assert (store.classes, store.void) == (("void", "sky", "sea", "sand"), 0)
    assert [shard.n_examples for shard in store.shards] == [4, 4]  # the phantom is none
    rows = torch.cat(list(ActivationRows(store, 2)))
    assert torch.equal(rows, torch.from_numpy(acts[:, 1, 1:].reshape(-1, 2)))
    assert store.labels().tolist() == labels.ravel().tolist()
    sidecar = read_json(EDGE)
    assert sidecar["directory"] == "data/saev"
    assert sidecar["labels"]["counts"] == [6, 6, 6, 6]
    assert sidecar["shards"][1]["sha256"] == file_digest("data/saev/acts000001.bin")
    assert sidecar["inputs"] == {}
    assert verify_store(store) == []
    with pytest.raises(StoreError, match="nothing is written beside it"):
        link_as_hash(store)
    assert listing("data") == before
    assert {path.name for path in EDGE.parent.iterdir()} == {"store.json"}


def test_it_is_found_from_anywhere(monkeypatch):
    saev_record(Path("data/saev"), numbers(LAYOUT), (0, 2, 5), True, 48)
    adopted()
    edge = EDGE.resolve()
    monkeypatch.chdir("/")
    assert open_store(edge).n_rows == open_store(edge.parent).n_rows == 24


def test_number_of_classes_and_labels_that_nobody_names():
    labels = np.zeros((8, 3), np.uint8)
    saev_record(Path("data/saev"), numbers(LAYOUT), (0, 2, 5), True, 48, labels=labels, pixel_agg="prefer-fg")
    store = adopted(classes=151)
    assert store.classes[::75] == ("0", "75", "150")
    assert read_json(EDGE)["labels"]["rule"] == "prefer-fg"
    assert adopted().labels() is None  # nobody says what they mean


def test_our_own_recordings_can_be_adopted():
    labels = np.arange(44, dtype=np.uint8).reshape(11, 4) % 3
    record(Path("elsewhere"), labels=labels)
    theirs = open_store("elsewhere")
    store = adopted("elsewhere")
    assert (store.signature, store.grid, store.classes) == (theirs.signature, theirs.grid, theirs.classes)
    EDGE.parent.mkdir(exist_ok=True)
    with pytest.raises(MismatchError, match="is itself a name for elsewhere; adopt that"):
        adopt_recording("artifacts/b/store.json", str(EDGE.parent), source="b", split="fit_train")


def test_the_script_and_what_verify_says(monkeypatch):
    saev_record(Path("data/saev"), numbers(LAYOUT), (0, 2, 5), True, 48)
    spec = {"source": "theirs", "split": "fit_train", "path": "data/saev", "classes": None, "void": None}

    def run(checksums):
        words = {
            "spec": canonical_json({**spec, "checksums": checksums}),
            "out": str(EDGE),
            "device": "cpu",
            "threads": 1,
        }
        adopt.main(Job(Namespace(**words), ()))
        return verify.edges_of(Path())

    edges = run(True)
    assert edges == [EDGE]
    assert verify.differences(Path()) == list(verify.not_recorded(edges)) == []
    file = Path("data/saev/acts000001.bin")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x01")
    assert verify.differences(Path()) == ["data/saev/acts000001.bin: its sha256 is not the one in store.json"]
    edges = run(False)
    assert verify.differences(Path()) == []
    (line,) = verify.not_recorded(edges)
    assert line.endswith("store.json: the sha256 of 2 shards in data/saev is not recorded")
    assert verify_store(open_store(EDGE))[0].endswith("acts000000.bin: sha256 not recorded")
    assert {p.name for p in EDGE.parent.iterdir()} == {"store.json", "run.json"}


def bomb(directory):
    class Bomb:
        def __reduce__(self):
            return Path("exploded").touch, ()

    return base64.b64encode(pickle.dumps(Bomb())).decode()


HOSTILE = {
    "path traversal": (
        lambda d: entry(d, 0, name="../acts000000.bin"), r"the shard name '\.\./acts000000\.bin' is refused"
    ),
    "absolute": (lambda d: entry(d, 1, name="/etc/shadow"), "the shard name '/etc/shadow' is refused"),
    "short": (lambda d: (d / "acts000000.bin").write_bytes(b"x"), r"acts000000\.bin: 1 bytes, \d+ expected"),
    "long": (lambda d: os.truncate(d / "acts000001.bin", 1 << 30), r"acts000001\.bin: 1073741824 bytes, \d+ expected"),
    "claims": (
        lambda d: edit_json(d / "metadata.json", n_examples=1 << 50, max_tokens_per_shard=1 << 51, d_model=1 << 40),
        "the shards hold 8 examples, metadata.json promises 1125899906842624",
    ),
    "shards": (lambda d: edit_json(d / "metadata.json", n_examples=1 << 50), "more than 1,000,000 shards would be"),
    "document": (lambda d: os.truncate(d / "metadata.json", 1 << 32), r"metadata\.json: 4294967296 bytes, more than"),
    "device": (
        lambda d: ((d / "labels.bin").unlink(), (d / "labels.bin").symlink_to("/dev/zero")), "not a regular file"
    ),
    "labels": (lambda d: os.truncate(d / "labels.bin", 1 << 33), r"labels\.bin: 8589934592 bytes, 24 expected"),
}  # fmt: skip


def entry(directory, number, **changes):
    shards = read_json(directory / "shards.json")
    shards[number].update(changes)
    (directory / "shards.json").write_text(json.dumps(shards))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_recordings_are_refused_and_nothing_is_run_or_allocated(case):
    change, words = HOSTILE[case]
    directory = Path("data/saev")
    labels = np.zeros((8, 3), np.uint8)
    saev_record(directory, numbers(LAYOUT), (0, 2, 5), True, 48, labels=labels, data=bomb(directory))
    change(directory)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), limits[1]))
    try:
        with pytest.raises(StoreError, match=words):
            adopted(classes=2)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not Path("exploded").exists()
    assert not EDGE.exists()


def test_a_pickle_in_data_stays_text():
    directory = Path("data/saev")
    saev_record(directory, numbers(LAYOUT), (0, 2, 5), True, 48, data=bomb(directory))
    store = adopted()
    next(iter(ActivationRows(store, 0)))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("named", ["/etc", "~/x", "", 7, "a\0b"])
def test_a_store_json_may_name_only_places_of_the_repository(named):
    saev_record(Path("data/saev"), numbers(LAYOUT), (0, 2, 5), True, 48)
    adopted()
    edit_json(EDGE, directory=named)
    with pytest.raises(StoreError, match="is not relative to the repository; adopt it again"):
        open_store(EDGE)


def test_labels_that_do_not_fit_their_classes():
    labels = np.zeros((8, 3), np.uint8)
    labels[5, 1] = 9
    saev_record(Path("data/saev"), numbers(LAYOUT), (0, 2, 5), True, 48, labels=labels)
    with pytest.raises(DataError, match=r"labels\.bin: label 9 at example 5, token 1, but 3 classes are configured"):
        adopted(classes=3)
    with pytest.raises(ConfigError, match="void: 12, but there are 10 classes"):
        adopted(classes=10, void=12)
    Path("data/saev/labels.bin").unlink()
    with pytest.raises(MismatchError, match=r"has no labels\.bin, but 3 classes are configured"):
        adopted(classes=3)
    with pytest.raises(StoreError, match="gone: no such directory; correct the path"):
        adopted("gone")
