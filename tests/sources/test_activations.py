"""Rows of a recording are those of the array it was made from, in every order, however they are cut and fetched."""

import gc
import os
import threading

import pytest
import torch
from recordings import numbers, record, saev_record

from eigenloom.batches import Batches
from eigenloom.batches import generator as keyed
from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources import block_rows
from eigenloom.sources.activations import ActivationRows
from eigenloom.store import reading
from eigenloom.store.protocol import Layout
from eigenloom.store.reading import LayerReader
from eigenloom.store.recording import open_store

LAYOUT = Layout(23, (1, 3, 4), 5, True, 7, 4 * 3 * 6)  # S = 4, six shards, the last with 3 examples
N = 23 * 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def joined(batches, width=7):
    return torch.cat([torch.empty(0, width), *batches])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    record(directory, LAYOUT)
    return open_store(directory)


def expected(layer=3):
    return torch.from_numpy(numbers(LAYOUT)[:, LAYOUT.layers.index(layer), 1:].reshape(N, 7))


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64, N, 1000])
def test_stored_order_is_the_array(store, batch_size):
    for layer in LAYOUT.layers:
        rows = ActivationRows(store, layer, batch_size=batch_size)
        assert isinstance(rows, Batches)
        assert (rows.n_rows, rows.n_features) == (N, 7)
        batches = list(rows)
        assert {len(batch) for batch in batches[:-1]} <= {min(batch_size, N)}
        assert torch.equal(joined(batches), expected(layer))
        assert torch.equal(joined(rows), expected(layer))


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_cls_rows_of_every_shard(store, batch_size):
    rows = ActivationRows(store, 4, tokens="cls", batch_size=batch_size, block_bytes=60)
    cls = torch.from_numpy(numbers(LAYOUT)[:, 2, 0])
    assert torch.equal(joined(rows), cls)
    order = joined(rows.shuffled(seeded()))
    assert torch.equal(order.sort(0).values, cls.sort(0).values)


def test_without_cls_one_layer_is_contiguous(tmp_path):
    layout = Layout(9, (0,), 3, False, 2, 12)
    acts = numbers(layout)
    saev_record(tmp_path, acts, (0,), False, 12)
    rows = ActivationRows(open_store(tmp_path), 0, batch_size=4)
    assert torch.equal(joined(rows, 2), torch.from_numpy(acts.reshape(27, 2)))
    with pytest.raises(ConfigError, match="no CLS token is stored"):
        ActivationRows(open_store(tmp_path), 0, tokens="cls")


def test_restricted_to_shards(store):
    rows = ActivationRows(store, 3, shards=[5, 1], batch_size=6, block_bytes=1, pool_bytes=300)
    wanted = torch.cat([expected()[20:40], expected()[100:]])
    assert rows.n_rows == 35
    assert torch.equal(joined(rows), wanted)
    assert torch.equal(joined(rows.shuffled(seeded())).sort(0).values, wanted.sort(0).values)
    assert rows.locate(19, 0) == "shard acts000001.bin, example 7, token 4 (row 39), layer 3, feature 0"
    assert rows.locate(20, 6) == "shard acts000005.bin, example 20, token 0 (row 100), layer 3, feature 6"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": 2}, r"layer 2 is not stored; stored are 1, 3, 4 \(0-based\)"),
        ({"tokens": "register"}, "tokens: 'register' is unknown; use one of patch, cls"),
        ({"shards": [6]}, r"shards: \[6\] leave 0\.\.5"),
        ({"shards": [-1]}, r"shards: \[-1\] leave 0\.\.5"),
        ({"shards": []}, "must name at least one shard"),
        ({"shards": [1, 1]}, "and none twice"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_wrong_arguments(store, changes, words):
    with pytest.raises(ConfigError, match=words):
        ActivationRows(store, **{"layer": 1, **changes})


def test_locate_names_the_place(store):
    rows = ActivationRows(store, 3)
    assert rows.locate(5 * 9 + 3, 6) == "shard acts000002.bin, example 9, token 3 (row 48), layer 3, feature 6"
    cls = ActivationRows(store, 3, tokens="cls")
    assert cls.locate(9, 6) == "shard acts000002.bin, example 9, CLS token, layer 3, feature 6"


# --- shuffled order. Blocks of two examples (10 rows), pools of three blocks.

SMALL = {"block_bytes": 5 * 7 * 4 + 1, "pool_bytes": 3 * 10 * 7 * 4}


def test_shuffle_is_a_permutation_new_with_every_key(store):
    rows = ActivationRows(store, 3, batch_size=8, **SMALL)
    orders = [joined(rows.shuffled(seeded(seed))) for seed in range(3)]
    for order in orders:
        assert torch.equal(order.sort(0).values, expected().sort(0).values)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(joined(rows.shuffled(seeded(0))), orders[0])
    generator = seeded(0)
    epochs = [joined(rows.shuffled(generator)) for _ in range(2)]
    assert torch.equal(epochs[0], orders[0])
    assert not torch.equal(epochs[0], epochs[1])


def test_shuffle_draws_its_key_at_once(store):
    rows = ActivationRows(store, 3, **SMALL)
    generator = seeded(0)
    late = rows.shuffled(generator)
    torch.rand(5, generator=generator)
    assert torch.equal(joined(late), joined(rows.shuffled(seeded(0))))


@pytest.mark.parametrize("batch_size", [1, 7, 30, 31, 64, 1000])
def test_shuffle_ignores_batch_size_shards_and_chunks(store, tmp_path, monkeypatch, batch_size):
    order = joined(ActivationRows(store, 3, batch_size=8, **SMALL).shuffled(seeded()))
    batches = list(ActivationRows(store, 3, batch_size=batch_size, **SMALL).shuffled(seeded()))
    assert torch.equal(joined(batches), order)
    assert {len(batch) for batch in batches[:-1]} <= {min(batch_size, N)}
    record(tmp_path, Layout(23, (1, 3, 4), 5, True, 7, 1000))
    monkeypatch.setattr(block_rows, "CHUNK_BYTES", 3 * 28)
    assert torch.equal(joined(ActivationRows(open_store(tmp_path), 3, **SMALL).shuffled(seeded())), order)


def test_shuffle_is_the_documented_function_of_its_key(store):
    """The order is part of what a fit's bytes depend on."""
    key = int(torch.randint(1 << 62, (1,), generator=seeded(5)))
    blocks = torch.randperm(12, generator=keyed(key, "blocks")).tolist()
    order = []
    for number in range(4):
        ids = [i for block in sorted(blocks[3 * number :][:3]) for i in range(10 * block, min(10 * block + 10, N))]
        pool = [0] * len(ids)
        for place, row in zip(torch.randperm(len(ids), generator=keyed(key, "pool", number)), ids, strict=True):
            pool[place] = row
        order += pool
    assert torch.equal(joined(ActivationRows(store, 3, **SMALL).shuffled(seeded(5))), expected()[order])


def test_pools_mix_blocks_of_examples_only(store):
    order = joined(ActivationRows(store, 3, **SMALL).shuffled(seeded()))
    ids = torch.tensor([int((expected() == row).all(1).nonzero()) for row in order])
    n_blocks = 12  # the last has one example
    start = 0
    seen = []
    while start < N:
        blocks = set()
        stop = start
        while stop < N and (int(ids[stop]) // 10 in blocks or len(blocks) < 3):
            blocks.add(int(ids[stop]) // 10)
            stop += 1
        assert {int(i) for i in ids[start:stop]} == {i for b in blocks for i in range(b * 10, min(b * 10 + 10, N))}
        seen += blocks
        start = stop
    assert sorted(seen) == list(range(n_blocks))


@pytest.mark.parametrize("skip", [0, 1, 8, 30, 45, 90, N - 1, N])
def test_skip_drops_the_first_and_reads_no_skipped_pool(store, monkeypatch, skip):
    rows = ActivationRows(store, 3, batch_size=8, **SMALL)
    order = joined(rows.shuffled(seeded()))
    read = []
    real = LayerReader.read
    monkeypatch.setattr(LayerReader, "read", lambda self, first, out: (read.append(len(out)), real(self, first, out)))
    assert torch.equal(joined(rows.shuffled(seeded(), skip_rows=skip)), order[skip:])
    skipped_pools = skip // 30
    assert sum(read) <= N - 30 * skipped_pools + 5  # 5: the pool with the short last block, if skipped
    assert skip < N or read == []


# --- samples


@pytest.mark.parametrize("n", [0, 1, 10, N])
def test_sample_is_distinct_and_reproducible(store, n):
    rows = ActivationRows(store, 3, **SMALL)
    drawn = rows.sample(n, seeded())
    assert drawn.shape == (n, 7)
    assert len({tuple(row) for row in drawn.tolist()}) == n
    places = [(expected() == row).all(1).nonzero() for row in drawn]
    assert all(place.numel() == 1 for place in places)
    assert torch.equal(drawn, rows.sample(n, seeded()))
    assert n < 2 or [int(p) for p in places] != sorted(int(p) for p in places)


def test_sample_too_large(store):
    with pytest.raises(DataError, match="116 distinct rows were asked for, but there are only 115"):
        ActivationRows(store, 3).sample(N + 1, seeded())


@pytest.mark.parametrize("dense", [True, False])
def test_sample_is_uniform_also_in_its_prefix(monkeypatch, dense):
    """Chi-square over ten blocks, of all and of the first three drawn; 9 degrees of freedom, p = 1e-4 at 33.7."""
    if not dense:
        monkeypatch.setattr(block_rows, "PERMUTATION_ROWS", 0)
    generator = seeded(1)
    draws = torch.stack([block_rows._distinct(20, 100, generator) for _ in range(400)])
    assert all(len(set(draw.tolist())) == 20 for draw in draws)
    for part in (draws, draws[:, :3]):
        counts = torch.bincount(part.flatten() // 10, minlength=10).double()
        mean = part.numel() / 10
        assert ((counts - mean) ** 2 / mean).sum() < 33.7


def test_sample_reads_each_byte_once_and_skips_blocks(store, monkeypatch):
    rows = ActivationRows(store, 3, **SMALL)
    ranges = []
    real = LayerReader.read

    def spy(self, first, out):
        ranges.append((first, first + len(out)))
        real(self, first, out)

    monkeypatch.setattr(LayerReader, "read", spy)
    rows.sample(N, seeded())
    assert ranges == [(first, min(first + 10, N)) for first in range(0, N, 10)]
    ranges.clear()
    rows.sample(2, seeded(3))
    assert 1 <= len(ranges) <= 2
    assert sum(stop - first for first, stop in ranges) <= 10
    assert ranges == sorted(ranges)


# --- memory, threads, files


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "eigenloom-prefetch"]


def open_shards():
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.lexists(link) and "acts" in os.readlink(link)]


@pytest.mark.parametrize("order", ["stored", "shuffled"])
def test_held_batches_are_never_overwritten(store, order):
    rows = ActivationRows(store, 3, batch_size=4, **SMALL)
    walk = (lambda: iter(rows)) if order == "stored" else (lambda: rows.shuffled(seeded()))
    held = [batch[1:, :2] for batch in walk()]
    copies = [batch.clone() for batch in held]
    for _ in range(2):
        for batch in walk():
            batch.zero_()  # a batch is the caller's
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize("order", ["stored", "shuffled"])
def test_a_pass_uses_few_buffers(store, monkeypatch, order):
    made = []
    real = reading.aligned
    monkeypatch.setattr(reading, "aligned", lambda *shape: (made.append(shape), real(*shape))[1])
    rows = ActivationRows(store, 3, batch_size=2, **SMALL)
    for _ in range(3):
        for _ in iter(rows) if order == "stored" else rows.shuffled(seeded()):
            pass
    assert len(made) <= (3 if order == "stored" else 2)


@pytest.mark.parametrize("order", ["stored", "shuffled"])
def test_early_exit_leaves_no_thread_and_no_open_file(store, order):
    rows = ActivationRows(store, 3, batch_size=2, **SMALL)
    for walk in (lambda: iter(rows), lambda: rows.shuffled(seeded())):
        batches = walk()
        next(batches)
        assert len(threads()) == 1
        assert open_shards()
        batches.close()
        assert threads() == []
        assert open_shards() == []
    for _ in rows:
        break
    gc.collect()
    assert threads() == []
    list(rows)
    assert threads() == []
    assert open_shards() == []


def test_an_unused_iterator_starts_nothing(store):
    rows = ActivationRows(store, 3)
    unused = [iter(rows), rows.shuffled(seeded())]
    assert threads() == []
    del unused


@pytest.mark.parametrize("order", ["stored", "shuffled", "sample"])
def test_a_file_cut_after_opening_surfaces_in_the_caller(tmp_path, order):
    record(tmp_path, LAYOUT)
    rows = ActivationRows(open_store(tmp_path), 3, batch_size=4, **SMALL)
    os.truncate(tmp_path / "acts000002.bin", 100)
    with pytest.raises(StoreError, match=r"acts000002\.bin: ends at byte \d+, \d+ expected"):
        if order == "sample":
            rows.sample(N, seeded())
        else:
            list(rows if order == "stored" else rows.shuffled(seeded()))
    assert threads() == []
    assert open_shards() == []
    (tmp_path / "acts000002.bin").unlink()
    with pytest.raises(StoreError, match=r"acts000002\.bin: no such file"):
        list(rows)
