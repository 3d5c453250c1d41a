"""Positioned reads and memory that is lent again."""

import os

import numpy as np
import pytest
from recordings import numbers, record

from eigenloom.store import reading
from eigenloom.store.protocol import Layout
from eigenloom.store.reading import Buffers, LayerReader
from eigenloom.store.recording import open_store

LAYOUT = Layout(23, (1, 3, 4), 5, True, 7, 4 * 3 * 6)  # S = 4, six shards, the last with 3 examples
N = 23 * 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    record(directory, LAYOUT)
    return open_store(directory)


def read_all(store):
    out = np.empty((N, 7), np.float32)
    with LayerReader(store, 3) as reader:
        reader.read(0, out)
    return out


def expected():
    return numbers(LAYOUT)[:, 1, 1:].reshape(N, 7)


def open_shards():
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.lexists(link) and "acts" in os.readlink(link)]


@pytest.mark.parametrize("first", [0, 3, 19, 20, 99])
@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_any_run_of_rows(store, first, count):
    out = np.empty((count, 7), np.float32)
    with LayerReader(store, 3) as reader:
        reader.read(first, out)
    assert np.array_equal(out, expected()[first : first + count])


def test_one_open_file_per_shard_and_not_too_many(store, monkeypatch):
    monkeypatch.setattr(reading, "MAX_OPEN_FILES", 2)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(str(path)[-5]), real(path, *rest))[1])
    with LayerReader(store, 3) as reader:
        out = np.empty((5, 7), np.float32)
        for first in [*range(0, N, 5), 0]:
            reader.read(first, out)
            assert len(open_shards()) <= 2
    assert opened == list("0123450")


def test_memory_is_lent_again_only_when_nobody_holds_it():
    buffers = Buffers(4, 3)

    def take(hold):
        tensor, memory = buffers.take()
        return memory.ctypes.data, hold(tensor)

    def address():
        return take(lambda tensor: None)[0]

    for hold in (lambda t: t, lambda t: t[2:].T[:1], lambda t: t.numpy()[1:], lambda t: memoryview(t.numpy())):
        held, holder = take(hold)
        assert held % 64 == 0
        assert address() != held
        del holder
        assert held in (address(), take(lambda tensor: tensor)[0])
    assert len(buffers._memory) == 2


def test_short_reads_are_continued(store, monkeypatch):
    real = os.preadv

    def grudging(file, buffers, start, *flags):
        return real(file, [buffers[0][: max(1, len(buffers[0]) // 2)]], start, *flags)

    monkeypatch.setattr(os, "preadv", grudging)
    assert np.array_equal(read_all(store), expected())


def test_hints_cover_what_is_read_where_pages_are_not_in_memory(store, monkeypatch):
    hints = []
    monkeypatch.setattr(reading, "_in_memory", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: hints.append((start, length)))
    assert np.array_equal(read_all(store), expected())
    assert hints == [(6 * 7 * 4 + 28, reading.READ_AHEAD_BYTES)] * 6  # one window covers each of the six shards
