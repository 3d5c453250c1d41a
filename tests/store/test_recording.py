"""Opening recordings: what is tolerated, what is refused and in which words; joining what jobs wrote."""

import base64
import json
import logging
import os
import pickle
import re
import resource
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import SIGNATURE, edit_json, metadata_of, numbers, record, saev_record, sha256, write_shards

from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.provenance import canonical_json
from eigenloom.sources.activations import ActivationRows
from eigenloom.store.atomic import read_json, write_json
from eigenloom.store.joining import LABELS_KEYS, SHARD_KEYS, join_store
from eigenloom.store.protocol import Layout, encode_data, metadata_hash
from eigenloom.store.recording import check_signature, link_as_hash, open_store, verify_store
from eigenloom.store.sidecar import KEYS
from eigenloom.store.writer import write_labels, write_store

LAYOUT = Layout(11, (1, 3), 4, True, 3, 40)  # S = 4, three shards, the last with 3 examples


def test_ours_opens_by_directory_and_by_edge(tmp_path):
    labels = np.arange(44, dtype=np.uint8).reshape(11, 4) % 3
    record(tmp_path, labels=labels)
    for path in (tmp_path, tmp_path / "store.json", str(tmp_path)):
        store = open_store(path)
        assert (store.n_examples, store.tokens_per_example, store.d_model, store.n_rows) == (11, 4, 3, 44)
        assert (store.layers, store.examples_per_shard, store.grid) == ((1, 3), 4, (2, 2))
        assert [(s.name[-5], s.n_examples, s.first_example) for s in store.shards] == [
            ("0", 4, 0), ("1", 4, 4), ("2", 3, 8)
        ]  # fmt: skip
        assert (store.classes, store.void, store.signature) == (("void", "a", "b"), 0, SIGNATURE)
        assert torch.equal(store.labels(), torch.from_numpy(labels.ravel()))
        assert verify_store(store) == []
    sidecar = read_json(tmp_path / "store.json")
    assert tuple(sidecar) == KEYS
    assert sidecar["shards"][2]["sha256"] == sha256(tmp_path / "acts000002.bin")
    assert sidecar["saev_hash"] == metadata_hash(store.metadata)


def test_plain_saev_directory(tmp_path, caplog):
    layout = Layout(9, (0, 2, 5), 3, False, 2, 27)
    acts = numbers(layout)
    labels = np.arange(27, dtype=np.uint8)
    saev_record(tmp_path / "any" / "name", acts, (0, 2, 5), False, 27, labels=labels)
    store = open_store(tmp_path / "any" / "name")
    assert store.signature == {"family": "dinov3", "ckpt": "dinov3_vits16"}
    assert (store.classes, store.void, store.grid, store.sidecar) == (None, None, None, None)
    assert store.labels().tolist() == labels.tolist()
    assert "not recorded" in verify_store(store)[0]
    check_signature(store.signature, store)
    assert "nothing but family and ckpt could be checked" in caplog.text
    rows = torch.cat(list(ActivationRows(store, 5)))
    assert torch.equal(rows, torch.from_numpy(acts[:, 2].reshape(-1, 2)))


@st.composite
def layouts(draw):
    tokens, cls, n_layers = draw(st.integers(1, 5)), draw(st.booleans()), draw(st.integers(1, 3))
    layers = sorted(draw(st.sets(st.integers(0, 40), min_size=n_layers, max_size=n_layers)))
    vectors = (tokens + cls) * n_layers
    budget = draw(st.integers(vectors, 4 * vectors + 3))
    return Layout(draw(st.integers(1, 14)), tuple(layers), tokens, cls, draw(st.integers(1, 5)), budget)


@given(layout=layouts(), data=st.data())
def test_written_is_read(tmp_path_factory, layout, data):
    directory = tmp_path_factory.mktemp("store")
    acts = numbers(layout) + 10  # no zeros: the tail never appears
    foreign = data.draw(st.booleans())
    if foreign:
        phantom = data.draw(st.booleans()) and layout.n_examples % layout.examples_per_shard == 0
        saev_record(directory, acts, layout.layers, layout.cls_token, layout.max_tokens_per_shard, phantom=phantom)
        assert len(read_json(directory / "shards.json")) == layout.n_shards + phantom
    else:
        shards = write_shards(directory, layout, acts)
        write_store(directory, metadata_of(layout), source="s", split="t", shards=shards, signature={})
    store = open_store(directory)
    assert [shard.n_examples for shard in store.shards] == [
        stop - first for first, stop in map(layout.shard_range, range(layout.n_shards))
    ]
    axis = data.draw(st.integers(0, layout.n_layers - 1))
    batch_size = data.draw(st.integers(1, 20))
    rows = ActivationRows(store, layout.layers[axis], batch_size=batch_size, block_bytes=1, pool_bytes=100)
    expected = torch.from_numpy(acts[:, axis, layout.cls_token :].reshape(-1, layout.d_model))
    assert torch.equal(torch.cat(list(rows)), expected)
    shuffled = torch.cat(list(rows.shuffled(torch.Generator().manual_seed(0))))
    assert torch.equal(shuffled.sort(0).values, expected.sort(0).values)


def test_tolerances_are_logged(tmp_path, caplog):
    acts = numbers(LAYOUT)
    saev_record(tmp_path, acts, (1, 3), True, 40)
    edit_json(tmp_path / "metadata.json", pixel_agg=..., vendor=1, zeta=2)
    (tmp_path / "acts000002.bin").write_bytes(acts[8:].tobytes())
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert store.metadata.pixel_agg == "majority"
    assert "unknown keys are ignored: vendor, zeta" in caplog.text
    assert "acts000002.bin: shorter than a full shard; read here, but saev would refuse it" in caplog.text
    rows = torch.cat(list(ActivationRows(store, 1)))
    assert torch.equal(rows, torch.from_numpy(acts[:, 0, 1:].reshape(-1, 3)))


def test_links_to_regular_files_are_read(tmp_path):
    acts = record(tmp_path / "a")
    cache = tmp_path / "cache"
    (tmp_path / "a" / "acts000001.bin").rename(cache)
    (tmp_path / "a" / "acts000001.bin").symlink_to(cache)
    rows = torch.cat(list(ActivationRows(open_store(tmp_path / "a"), 3)))
    assert torch.equal(rows, torch.from_numpy(acts[:, 1, 1:].reshape(-1, 3)))


def edit_shards(change):
    def damage(directory):
        document = read_json(directory / "shards.json")
        changed = change(document)
        (directory / "shards.json").write_text(json.dumps(document if changed is None else changed))

    return damage


def edit_metadata(**changes):
    return lambda directory: edit_json(directory / "metadata.json", **changes)


def edit_store(**changes):
    return lambda directory: edit_json(directory / "store.json", **changes)


def replace(name, content):
    def damage(directory):
        (directory / name).unlink()
        if content is None:
            (directory / name).mkdir()
        elif isinstance(content, Path):
            (directory / name).symlink_to(content)
        else:
            (directory / name).write_bytes(content)

    return damage


def entry(number, **changes):
    return edit_shards(lambda shards: shards[number].update(changes))


MALFORMED = {
    "metadata absent": (lambda d: (d / "metadata.json").unlink(), r"metadata\.json absent; there are 3 acts\*\.bin"),
    "shards absent": (lambda d: (d / "shards.json").unlink(), r"shards\.json absent; .*acts000000\.bin, .*incomplete"),
    "sidecar absent": (
        lambda d: ((d / "store.json").unlink(), (d / "shard-00000.json").write_text("{}")),
        r"store\.json absent; .*recording incomplete: run `snakemake .*/store\.json`",
    ),
    "shard missing": (lambda d: (d / "acts000001.bin").unlink(), r"acts000001\.bin: missing, 480 bytes expected"),
    "shard empty": (replace("acts000001.bin", b""), r"acts000001\.bin: 0 bytes, 480 expected"),
    "shard short": (replace("acts000001.bin", bytes(479)), r"acts000001\.bin: 479 bytes, 480 expected"),
    "shard long": (replace("acts000002.bin", bytes(484)), r"acts000002\.bin: 484 bytes, 480 expected"),
    "last shard too short": (replace("acts000002.bin", bytes(359)), r"acts000002\.bin: 359 bytes, 480 expected"),
    "shard a directory": (replace("acts000001.bin", None), r"acts000001\.bin: is not a regular file"),
    "shard a device": (replace("acts000001.bin", Path("/dev/zero")), r"acts000001\.bin: is not a regular file"),
    "dangling link": (replace("acts000001.bin", Path("gone")), r"acts000001\.bin: missing \(a link to gone\)"),
    "metadata a device": (replace("metadata.json", Path("/dev/zero")), r"metadata\.json: is not a regular file"),
    "metadata not JSON": (replace("metadata.json", b"{"), r"metadata\.json: is not JSON"),
    "metadata deep": (replace("metadata.json", b"[" * 200_000), r"metadata\.json: is not JSON"),
    "metadata a list": (replace("metadata.json", b"[]"), r"metadata\.json: is not a JSON object"),
    "metadata huge": (replace("metadata.json", bytes((1 << 20) + 1)), r"metadata\.json: 1048577 bytes, more than"),
    "key missing": (edit_metadata(d_model=..., data=...), r"metadata\.json: lacks d_model, data"),
    "protocol 1.1": (edit_metadata(protocol="1.1"), r"protocol 1\.1 is refused; record the activations again"),
    "protocol 1.0.0": (edit_metadata(protocol="1.0.0"), r"protocol 1\.0\.0 is refused"),
    "protocol 3": (edit_metadata(protocol="3"), r"protocol '3' is refused"),
    "old keys": (
        edit_metadata(protocol=..., n_examples=..., n_ex=11), r"the key 'n_ex' of an older protocol is refused"
    ),
    "dtype": (edit_metadata(dtype="float16"), r"dtype 'float16' is refused; known: float32"),
    "family": (edit_metadata(family="vit"), r"family 'vit' is refused"),
    "bool count": (edit_metadata(n_examples=True), "n_examples must be an integer .*not True"),
    "float count": (edit_metadata(d_model=3.0), "d_model must be an integer"),
    "negative count": (edit_metadata(max_tokens_per_shard=-1), "max_tokens_per_shard must be an integer"),
    "huge count": (edit_metadata(n_examples=10**400), "n_examples must be an integer from 1"),
    "layers unsorted": (edit_metadata(layers=[3, 1]), "layers must be 0-based, strictly increasing"),
    "data not text": (edit_metadata(data=[1]), r"data must be text, not \[1\]"),
    "not Unicode": (edit_metadata(dataset="\ud800"), "dataset is not valid Unicode"),
    "examples differ": (
        edit_metadata(n_examples=15),
        "the shards hold 11 examples, metadata.json promises 15 in 4 shards; recording stopped at shard 2",
    ),
    "shard not full": (entry(1, n_examples=2), "shard 1 has 2 examples, but every shard before the last has 4"),
    "last overfull": (
        lambda d: (entry(2, n_examples=7)(d), edit_shards(lambda s: s.pop(1) and None)(d)), "its position calls for"
    ),
    "count zero inside": (entry(0, n_examples=0), "entry 0: n_examples must be a positive integer, not 0"),
    "count a bool": (entry(0, n_examples=True), "entry 0: n_examples must be a positive integer, not True"),
    "list empty": (edit_shards(lambda s: []), "is not a JSON list with at least one shard"),
    "entry of protocol 1.1": (edit_shards(lambda s: [{"name": "acts000000.bin", "n_ex": 4}]), "key 'n_ex' is of an"),
    "name escapes": (entry(1, name="../acts000001.bin"), r"the shard name '\.\./acts000001\.bin' is refused"),
    "name absolute": (entry(1, name="/etc/passwd"), "the shard name '/etc/passwd' is refused"),
    "name with a newline": (entry(1, name="acts000001.bin\n"), "is refused; it must be acts000001.bin"),
    "name twice": (entry(1, name="acts000000.bin"), "entry 1 is called acts000000.bin, but its position calls for"),
    "name not text": (entry(1, name=7), "the shard name 7 is refused"),
    "labels of wrong size": (replace("labels.bin", bytes(43)), r"labels\.bin: 43 bytes, 44 expected"),
    "labels missing": (lambda d: (d / "labels.bin").unlink(), r"labels\.bin: missing, 44 bytes expected"),
    "foreign labels of wrong size": (
        lambda d: ((d / "store.json").unlink(), (d / "labels.bin").write_bytes(b"1")), r"labels\.bin: 1 bytes, 44"
    ),
    "sidecar foreign": (edit_store(format="x"), r"store\.json: is not the sidecar of an activation store"),
    "sidecar version": (edit_store(version=2), r"store\.json: version 2; this eigenloom reads version 1"),
    "sidecar lacks": (edit_store(grid=...), r"store\.json: lacks grid"),
    "sidecar contradicts": (edit_store(d_model=4), r"store\.json: d_model is 4, but metadata\.json says 3"),
    "sidecar hash": (edit_store(saev_hash="00000000"), r"saev_hash is '00000000', but"),
    "sidecar grid": (edit_store(grid=[2, True]), "grid must be null or two positive integers"),
    "sidecar signature": (edit_store(signature=None), "signature must be an object"),
    "sidecar shards": (edit_store(shards=[]), "shards has 0 entries, where metadata.json calls for 3"),
    "sidecar shards differ": (edit_store(shards=[{}] * 3), r"shard 0 is \{\}, expected acts000000\.bin with 4"),
    "sidecar labels": (edit_store(labels={"void": 0}), "labels must have sha256, classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_stores_are_refused_by_a_sentence(tmp_path, case):
    damage, words = MALFORMED[case]
    record(tmp_path, labels=np.zeros((11, 4), np.uint8))
    open_store(tmp_path)
    damage(tmp_path)
    with pytest.raises(StoreError, match=words) as caught:
        open_store(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_all_problems_come_at_once(tmp_path):
    record(tmp_path)
    (tmp_path / "acts000000.bin").write_bytes(b"x")
    (tmp_path / "acts000002.bin").unlink()
    edit_json(tmp_path / "store.json", d_model=9, n_rows=1)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("acts000000.bin", "acts000002.bin", "store.json", "store.json"), strict=True):
        assert line.startswith(f"{tmp_path / name}: ")


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="nowhere: no such directory; run `snakemake"):
        open_store(tmp_path / "nowhere" / "store.json")
    with pytest.raises(StoreError, match=r"metadata\.json and shards\.json absent; there are 0 acts\*\.bin"):
        open_store(tmp_path)


def test_a_pickle_in_data_never_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path(tmp_path / "exploded").touch, ()

    bomb = base64.b64encode(pickle.dumps(Bomb())).decode()
    acts = numbers(LAYOUT)
    saev_record(tmp_path / "s", acts, (1, 3), True, 40, data=bomb)
    store = open_store(tmp_path / "s")
    next(iter(ActivationRows(store, 1)))
    verify_store(store)
    link_as_hash(store)
    assert store.metadata.data == bomb
    assert not (tmp_path / "exploded").exists()
    pickle.loads(base64.b64decode(bomb))  # noqa: S301 (to see that it is live)
    assert (tmp_path / "exploded").exists()


def test_huge_counts_allocate_nothing(tmp_path):
    """A recording that claims petabytes is refused from a few stat calls, with 100 MB of address space left."""
    layout = Layout(4, (0,), 2, False, 2, 8)
    saev_record(tmp_path, numbers(layout), (0,), False, 8)
    huge = 1 << 50
    edit_json(tmp_path / "metadata.json", n_examples=huge, max_tokens_per_shard=huge * 2, d_model=1 << 40)
    (tmp_path / "shards.json").write_text(json.dumps([{"name": "acts000000.bin", "n_examples": huge}]))
    (tmp_path / "labels.bin").write_bytes(b"")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, limits[1]))
    try:
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert f"acts000000.bin: 64 bytes, {huge * 2 * (1 << 40) * 4} expected" in str(caught.value)
    assert f"labels.bin: 0 bytes, {huge * 2} expected" in str(caught.value)


def test_labels_beyond_the_classes(tmp_path):
    labels = np.zeros((11, 4), np.uint8)
    labels[7, 2] = 3
    record(tmp_path, labels=labels, classes=("void", "a", "b", "c"))
    assert open_store(tmp_path).labels().max() == 3
    facts = read_json(tmp_path / "store.json")["labels"]
    edit_json(tmp_path / "store.json", labels={**facts, "classes": ["void", "a", "b"]})
    with pytest.raises(DataError, match=r"labels\.bin: label 3 at example 7, token 2, but there are 3 classes"):
        open_store(tmp_path).labels()


def test_labels_cut_after_opening(tmp_path):
    record(tmp_path, labels=np.zeros((11, 4), np.uint8))
    store = open_store(tmp_path)
    os.truncate(tmp_path / "labels.bin", 40)
    with pytest.raises(StoreError, match=r"labels\.bin: 40 bytes, expected 44"):
        store.labels()


def test_no_labels(tmp_path):
    record(tmp_path)
    store = open_store(tmp_path)
    assert (store.labels(), store.classes, store.void) == (None, None, None)


def test_layer_not_stored(tmp_path):
    record(tmp_path)
    with pytest.raises(ConfigError, match=r"layer 2 is not stored; stored are 1, 3 \(0-based\)"):
        open_store(tmp_path).layer_axis(2)


def test_verify_names_what_differs(tmp_path):
    record(tmp_path, labels=np.zeros((11, 4), np.uint8))
    store = open_store(tmp_path)
    for name in ("acts000001.bin", "labels.bin"):
        data = bytearray((tmp_path / name).read_bytes())
        data[3] ^= 1
        (tmp_path / name).write_bytes(data)
    problems = verify_store(store)
    assert [problem.partition(": ")[0] for problem in problems] == [
        str(tmp_path / "acts000001.bin"), str(tmp_path / "labels.bin")
    ]  # fmt: skip
    assert f"recorded is {store.sidecar['shards'][1]['sha256'][:8]}..." in problems[0]


def test_link_as_hash(tmp_path):
    record(tmp_path / "shards" / "fit_train")
    store = open_store(tmp_path / "shards" / "fit_train")
    link = link_as_hash(store)
    assert link == tmp_path / "shards" / metadata_hash(store.metadata)
    assert link_as_hash(store) == link
    assert not os.path.isabs(os.readlink(link))
    assert open_store(link).n_rows == store.n_rows
    link.unlink()
    link.mkdir()
    with pytest.raises(StoreError, match="exists and is not a link"):
        link_as_hash(store)


def test_signatures(tmp_path):
    record(tmp_path)
    store = open_store(tmp_path)
    check_signature(SIGNATURE, store)
    other = {**SIGNATURE, "preprocess": {"resize": "none", "patch": 16}}
    with pytest.raises(MismatchError, match=r"recorded with preprocess\.patch 8, but .* fitted on has 16"):
        check_signature(other, store)
    with pytest.raises(MismatchError, match=r"weights_sha256 abababab\.\.\., but .* has cdcdcdcd\.\.\."):
        check_signature({**SIGNATURE, "weights_sha256": "cd" * 32}, store)
    with pytest.raises(MismatchError, match="architecture 'eigenloom.vit', but .* has nothing"):
        check_signature({"family": "dinov2", "ckpt": "x"}, store)


# --- joining


def edges(directory, layout=LAYOUT, labels=True):
    """Write what the jobs before the joining one write; return the arguments of ``join_store``."""
    acts = numbers(layout)
    shards = []
    for number, facts in enumerate(write_shards(directory, layout, acts)):
        edge = {
            "format": "eigenloom.shard", "version": 1, "shard": number, **facts, "d_model": layout.d_model,
            "tokens_per_example": layout.content_tokens_per_example, "cls_token": layout.cls_token,
            "layers": list(layout.layers), "grid": [2, 2], "architecture": "eigenloom.vit", "signature": SIGNATURE,
            "spec": {"shard": number}, "inputs": {"images": "00"},
        }  # fmt: skip
        assert set(edge) == set(SHARD_KEYS)
        shards.append(directory / f"shard-{number:05}.json")
        write_json(shards[-1], edge)
    images = directory / "images.json"
    spec = {"seed": 0, "images": {"kind": "numbers", "canvas": 2}, "code": "ff"}
    write_json(
        images,
        {
            "format": "eigenloom.images", "n_examples": layout.n_examples, "classes": ["void", "a"], "spec": spec,
            "files": {"files.json": {"bytes": 1, "sha256": "12" * 32}},
        },
    )  # fmt: skip
    if labels:
        array = np.zeros((layout.n_examples, layout.content_tokens_per_example), np.uint8)
        facts = write_labels(directory, array)
        edge = {
            "format": "eigenloom.labels", "version": 1, **facts, "classes": ["void", "a"], "void": 0, "rule": "r",
            "counts": [array.size, 0], "spec": {}, "inputs": {},
        }  # fmt: skip
        assert set(edge) == set(LABELS_KEYS)
        write_json(directory / "labels.json", edge)
    spec = {
        "source": "numbers", "split": "fit_val", "layers": list(layout.layers), "n_examples": layout.n_examples,
        "max_tokens_per_shard": layout.max_tokens_per_shard, "ckpt": "tiny", "family": "fake-clip", "code": "ee",
    }  # fmt: skip
    return {"spec": spec, "examples": images, "shards": shards, "labels": directory / "labels.json" if labels else None}


@pytest.mark.parametrize("labels", [True, False])
def test_joined_edges_are_a_store(tmp_path, labels):
    arguments = edges(tmp_path, labels=labels)
    digest = join_store(tmp_path, **{**arguments, "shards": arguments["shards"][::-1]}, inputs={"b": "2", "a": "1"})
    store = open_store(tmp_path / "store.json")
    assert digest == sha256(tmp_path / "store.json")
    assert verify_store(store) == []
    assert (store.classes, store.void) == ((("void", "a"), 0) if labels else (None, None))
    assert store.metadata.data == encode_data({"seed": 0, "images": {"kind": "numbers", "canvas": 2}})
    assert (store.metadata.dataset, store.metadata.ckpt) == ("numbers", "tiny")
    assert (store.sidecar["source"], store.sidecar["split"]) == ("numbers", "fit_val")
    assert store.sidecar["files"] == {"sha256": "12" * 32}
    assert list(store.sidecar["inputs"]) == ["a", "b"]
    assert join_store(tmp_path, **arguments, inputs={"a": "1", "b": "2"}) == digest


def test_shards_of_other_grids_have_none_in_common(tmp_path):
    arguments = edges(tmp_path)
    edit_json(tmp_path / "shard-00001.json", grid=[1, 4])
    join_store(tmp_path, **arguments)
    assert open_store(tmp_path).grid is None


JOIN_PROBLEMS = {
    "wrong signature": (
        lambda d: edit_json(d / "shard-00001.json", signature={**SIGNATURE, "weights_sha256": "x"}),
        r"shard-00001\.json: signature\.weights_sha256 is 'x', but shard 0 has 'abab",
    ),
    "width": (lambda d: edit_json(d / "shard-00002.json", d_model=4), r"shard-00002\.json: d_model is 4, but shard 0"),
    "count": (lambda d: edit_json(d / "shard-00002.json", n_examples=4), "n_examples is 4, due is 3"),
    "name": (lambda d: edit_json(d / "shard-00002.json", name="acts000001.bin"), "name is 'acts000001.bin', due is"),
    "number": (lambda d: edit_json(d / "shard-00002.json", shard=1), r"shards \[0, 1, 1\] were recorded, 0 to 2"),
    "beyond": (lambda d: edit_json(d / "shard-00002.json", shard=3), r"shards \[0, 1, 3\] were recorded, 0 to 2"),
    "images": (lambda d: edit_json(d / "images.json", n_examples=12), "n_examples is 12, the specification says 11"),
    "classes": (lambda d: edit_json(d / "images.json", classes=["void"]), "classes is .* due is"),
    "labels": (lambda d: edit_json(d / "labels.json", n_examples=12), r"labels\.json: n_examples is 12, due is 11"),
    "counts": (lambda d: edit_json(d / "labels.json", counts=[44]), r"1 counts with sum 44, due are 2 with sum 44"),
}


def join_error(directory, arguments, kind):
    with pytest.raises(kind) as caught:
        join_store(directory, **arguments)
    assert not (directory / "store.json").exists()
    return str(caught.value)


@pytest.mark.parametrize("case", JOIN_PROBLEMS)
def test_edges_that_do_not_belong_together(tmp_path, case):
    arguments = edges(tmp_path)
    damage, words = JOIN_PROBLEMS[case]
    damage(tmp_path)
    assert re.search(words, join_error(tmp_path, arguments, MismatchError))


def test_joining_lists_all_and_looks_at_the_files(tmp_path):
    arguments = edges(tmp_path)
    (tmp_path / "acts000000.bin").unlink()
    (tmp_path / "labels.bin").write_bytes(b"")
    text = join_error(tmp_path, arguments, StoreError)
    assert "acts000000.bin: missing" in text.splitlines()[0]
    assert "labels.bin: 0 bytes, 44 expected" in text.splitlines()[1]
    for case in ("width", "images", "counts"):
        JOIN_PROBLEMS[case][0](tmp_path)
    assert len(join_error(tmp_path, arguments, MismatchError).splitlines()) == 3
    edit_json(tmp_path / "shard-00000.json", version=2)
    assert "is not a 'eigenloom.shard' of version 1" in join_error(tmp_path, arguments, StoreError)


def test_the_script(tmp_path, monkeypatch):
    arguments = edges(tmp_path)
    command = ["join_store.py", "--spec", canonical_json(arguments["spec"])]
    command += ["--out", str(tmp_path / "store.json"), "--examples", str(arguments["examples"])]
    command += ["--model", str(arguments["examples"]), "--labels", str(arguments["labels"])]
    command += ["--shards", *map(str, arguments["shards"])]
    monkeypatch.setattr(sys, "argv", command)
    script = Path(__file__).parents[2] / "scripts" / "join_store.py"
    runpy.run_path(str(script), run_name="__main__")
    store = open_store(tmp_path / "store.json")
    paths = (*arguments["shards"], arguments["examples"], arguments["labels"])
    assert set(store.sidecar["inputs"]) == {str(path) for path in paths}
    assert read_json(tmp_path / "run.json")["seconds"] >= 0


def test_four_thousand_shards_stay_below_a_megabyte(tmp_path):
    layout = Layout(4000, (0,), 1, False, 1, 1)
    shards = [{"name": f"acts{s:06}.bin", "n_examples": 1, "sha256": f"{s:064x}"} for s in range(4000)]
    inputs = {f"artifacts/scenes/saev/shards/fit_train/shard-{s:05}.json": "0" * 64 for s in range(4000)}
    write_store(tmp_path, metadata_of(layout), source="s", split="t", shards=shards, signature=SIGNATURE, inputs=inputs)
    assert (tmp_path / "store.json").stat().st_size < 1_000_000
