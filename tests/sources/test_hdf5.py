"""Rows of an HDF5 matrix are those of the array in it, however it is stored, cut and chosen from."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from peak_memory import peak_mb

from eigenloom.batches import Batches
from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.moments import moments_of_rows
from eigenloom.sources.hdf5 import Hdf5Rows
from eigenloom.store import hdf5
from eigenloom.store.hdf5_reading import MatrixReader

N, M = 53, 7
NUMBERS = np.arange(N * M).reshape(N, M)
KEY = "dataset/arrays/flux/value"
STORAGES = {
    "contiguous": {},
    "rows": {"chunks": (8, M)},
    "columns": {"chunks": (N, 2)},
    "tiles": {"chunks": (5, 3)},
    "gzip": {"chunks": (8, M), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (6, M), "compression": "lzf", "fletcher32": True},
}
DTYPES = ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2", "<i4", ">i2", "<u1", "<u8"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def written(path, values=NUMBERS, key=KEY, dtype="<f4", **options):
    with h5py.File(path, "w", **{k: options.pop(k) for k in ("userblock_size",) if k in options}) as file:
        file.create_dataset(key, data=values.astype(dtype), **options)
    return path


def joined(batches):
    return torch.cat(list(batches))


def expected(values=NUMBERS):
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(autouse=True)
def _several_spans(monkeypatch):
    """So few bytes that the small matrix is read in many pieces."""
    monkeypatch.setattr(hdf5, "SPAN_BYTES", 10 * M * 4)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_order_is_the_array(tmp_path, storage, dtype):
    values = NUMBERS % 251
    path = written(tmp_path / "a.h5", values, dtype=dtype, **STORAGES[storage])
    for batch_size in (1, 7, 20, 1000):
        rows = Hdf5Rows(path, KEY, batch_size=batch_size)
        assert isinstance(rows, Batches)
        assert (rows.n_rows, rows.n_features) == (N, M)
        batches = list(rows)
        assert {batch.dtype for batch in batches} == {torch.float32}
        assert {len(batch) for batch in batches[:-1]} <= {min(batch_size, N)}
        assert torch.equal(joined(batches), expected(values))


def test_what_lies_plain_is_read_at_its_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(MatrixReader, "_through_hdf5", lambda *_: pytest.fail("HDF5 was asked"))
    for options in ({}, {"userblock_size": 512}):
        path = written(tmp_path / "a.h5", **options)
        assert torch.equal(joined(Hdf5Rows(path, KEY)), expected())


def test_a_small_or_empty_data_set_without_an_offset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("never", (4, 3), "f4", fillvalue=2.0)
    assert torch.equal(joined(Hdf5Rows(tmp_path / "a.h5", "never")), torch.full((4, 3), 2.0))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "rows",
    [slice(10, 40), slice(3, None, 5), [0, 1, 2, 17, 18, 52], np.arange(N) % 3 == 0, [52], np.arange(20, 30)],
    ids=["range", "step", "list", "mask", "one", "neighbours"],
)
def test_chosen_rows_and_columns(tmp_path, storage, rows):
    path = written(tmp_path / "a.h5", **STORAGES[storage])
    for columns in (None, slice(2, 5), [0, 3, 6]):
        wanted = expected()[rows] if columns is None else expected()[rows][:, columns]
        chosen = Hdf5Rows(path, KEY, rows, columns, batch_size=4, block_bytes=1, pool_bytes=300)
        assert (chosen.n_rows, chosen.n_features) == wanted.shape
        assert torch.equal(joined(chosen), wanted)
        shuffled = joined(chosen.shuffled(seeded()))
        assert torch.equal(shuffled.sort(0).values, wanted)
        assert torch.equal(chosen.sample(len(wanted), seeded()).sort(0).values, wanted)


def test_a_place_is_named_as_the_file_counts(tmp_path):
    rows = Hdf5Rows(written(tmp_path / "a.h5"), KEY, slice(10, 40), [1, 4])
    assert rows.locate(3, 1) == f"{tmp_path / 'a.h5'}: `{KEY}`, row 13, column 4"


@pytest.mark.parametrize("storage", STORAGES)
def test_a_shuffle_is_a_permutation_and_skips(tmp_path, storage):
    path = written(tmp_path / "a.h5", **STORAGES[storage])
    rows = Hdf5Rows(path, KEY, batch_size=4, block_bytes=4 * M * 4, pool_bytes=20 * M * 4)
    order = joined(rows.shuffled(seeded()))
    assert torch.equal(order.sort(0).values, expected())
    assert not torch.equal(order, expected())
    assert torch.equal(joined(rows.shuffled(seeded(), skip_rows=11)), order[11:])
    whole = Hdf5Rows(path, KEY, batch_size=30, block_bytes=4 * M * 4, pool_bytes=20 * M * 4)
    assert torch.equal(joined(whole.shuffled(seeded())), order)


def test_blocks_of_the_shuffle_are_whole_chunks_each_read_once(tmp_path, monkeypatch):
    path = written(tmp_path / "a.h5", **STORAGES["gzip"])
    read = []
    real = MatrixReader._through_hdf5
    monkeypatch.setattr(MatrixReader, "_through_hdf5", lambda self, a, b: (read.append((a, b)), real(self, a, b))[1])
    monkeypatch.setattr(hdf5, "SPAN_BYTES", 1)
    list(Hdf5Rows(path, KEY, block_bytes=5 * M * 4, pool_bytes=16 * M * 4).shuffled(seeded()))
    assert sorted(read) == [(a, min(a + 8, N)) for a in range(0, N, 8)]


def test_moments_are_those_of_the_array(tmp_path):
    values = np.random.default_rng(0).normal(3, 2, (500, 6))
    path = written(tmp_path / "a.h5", values, dtype=">f8", chunks=(64, 6))
    moments = moments_of_rows(Hdf5Rows(path, KEY))
    rounded = values.astype(np.float32).astype(np.float64)
    assert torch.allclose(moments.mean, torch.from_numpy(rounded.mean(0)), rtol=0, atol=1e-6)
    assert torch.allclose(moments.variance, torch.from_numpy(rounded.var(0)), rtol=1e-6)


def test_too_large_for_float32_is_refused_with_its_place(tmp_path):
    values = NUMBERS.astype(np.float64)
    values[17, 3] = 1e300
    path = written(tmp_path / "a.h5", values, dtype="<f8")
    with pytest.raises(DataError, match=r"row 17, column 3 is Inf; 1 entries of 53 rows"):
        moments_of_rows(Hdf5Rows(path, KEY))


# --- what is refused


def layouts(file):
    file[KEY] = NUMBERS
    file["flat"] = NUMBERS[:, 0]
    file["words"] = ["one", "two"]
    file["cube"] = np.zeros((2, 3, 4))
    file["none"] = np.zeros((0, 4))
    file["complex"] = np.zeros((2, 2), complex)
    file["flags"] = np.zeros((2, 2), bool)
    file["table"] = np.zeros(3, [("teff", "f4"), ("logg", "f8")])
    ragged = file.create_dataset("ragged", 2, h5py.vlen_dtype(np.float32))
    ragged[0], ragged[1] = [1, 2], [3]
    file["away"] = h5py.ExternalLink("other.h5", "/flux")
    file["inside"] = h5py.SoftLink(f"/{KEY}")
    file["dataset/arrays/near"] = h5py.SoftLink("flux/value")
    file["detour"] = h5py.SoftLink("/away")
    file["round"] = h5py.SoftLink("/round")
    file["dangling"] = h5py.SoftLink("/nowhere")
    file.create_dataset("elsewhere", (2, 2), "f4", external=[("raw.bin", 0, 16)])
    virtual = h5py.VirtualLayout((2, 2), "f4")
    virtual[:] = h5py.VirtualSource("other.h5", "flux", (2, 2))
    file.create_virtual_dataset("virtual", virtual)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "odd.h5"
    with h5py.File(path, "w") as file:
        layouts(file)
    return path


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("dataset/arrays/flux/values", rf"does not exist; did you mean `{KEY}`\? the file holds .*flat \(53 int64\)"),
        ("flux/value", rf"`flux/value` does not exist; did you mean `{KEY}`"),
        ("value", rf"did you mean `{KEY}`"),
        ("dataset/arrays", rf"`dataset/arrays` is a group, not a data set; .*{KEY} \(53 x 7 int64\)"),
        ("", "is a group, not a data set"),
        (f"{KEY}/more", "does not exist"),
        ("flat", r"has the shape \[53\], where a matrix \[rows, columns\] is needed; the file holds"),
        ("cube", r"shape \[2, 3, 4\]"),
        ("none", r"shape \[0, 4\]"),
        ("words", "holds text"),
        ("ragged", "is ragged: its rows differ in length"),
        ("complex", "holds complex128; a rectangular array of float16, 32, 64 or integers is needed"),
        ("flags", "holds bool"),
        ("table", "is a table of teff, logg; name a field, as in `table/teff`"),
        ("away", r"leads to another file, other\.h5; name that file itself"),
        ("away/deeper", r"leads to another file, other\.h5"),
        ("detour", r"leads to another file, other\.h5"),
        ("round", "chain of more than 16 links"),
        ("dangling", "does not exist"),
        ("elsewhere", "is external storage, whose numbers are in other files"),
        ("virtual", "is a virtual data set, whose numbers are in other files"),
    ],
)
def test_what_is_not_a_matrix_in_this_file_is_refused(odd, key, words):
    with pytest.raises(DataError, match=words):
        Hdf5Rows(odd, key)


@pytest.mark.parametrize("key", ["inside", f"/{KEY}", "dataset/arrays/near", "dataset//arrays/flux/value/"])
def test_links_inside_the_file_and_spellings_of_the_key(odd, key):
    assert torch.equal(joined(Hdf5Rows(odd, key)), expected())


def test_a_long_list_is_cut(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(40):
            file[f"set-{number:02d}"] = [0.0]
    with pytest.raises(DataError, match=r"set-29 \(1 float64\), and 10 more$"):
        Hdf5Rows(tmp_path / "a.h5", "zzz")
    h5py.File(tmp_path / "b.h5", "w").close()
    with pytest.raises(DataError, match="`flux` does not exist; the file holds no data set"):
        Hdf5Rows(tmp_path / "b.h5", "flux")


def test_files_that_are_no_hdf5(tmp_path):
    with pytest.raises(StoreError, match=r"a\.h5: no such file"):
        Hdf5Rows(tmp_path / "a.h5", KEY)
    with pytest.raises(StoreError, match="is a folder"):
        Hdf5Rows(tmp_path, KEY)
    (tmp_path / "a.h5").write_bytes(b"SIMPLE  =                    T")
    with pytest.raises(StoreError, match="is not an HDF5 file"):
        Hdf5Rows(tmp_path / "a.h5", KEY)


def test_a_file_cut_short(tmp_path):
    path = written(tmp_path / "a.h5")
    rows = Hdf5Rows(path, KEY)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(StoreError, match=r"a\.h5: cannot be opened .*truncated"):
        Hdf5Rows(path, KEY)
    with pytest.raises(StoreError, match=r"a\.h5: ends at byte \d+"):
        list(rows)
    path.unlink()
    with pytest.raises(StoreError, match=r"a\.h5: no such file"):
        list(rows)


def test_a_damaged_chunk_is_named(tmp_path):
    path = written(tmp_path / "a.h5", chunks=(8, M), fletcher32=True)
    with h5py.File(path) as file:
        place = file[KEY].id.get_chunk_info(2)
    with open(path, "r+b") as file:
        file.seek(place.byte_offset)
        file.write(b"\xff" * 16)
    with pytest.raises(StoreError, match=rf"rows 16 to 31 of `{KEY}` cannot be read"):
        list(Hdf5Rows(path, KEY))


def test_a_compression_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = written(tmp_path / "a.h5", **STORAGES["gzip"])
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(DataError, match=r"compressed by filter \d+ \(\w+\), which is not installed; .*h5repack"):
        Hdf5Rows(path, KEY)


def test_chunks_along_the_rows_length_are_complained_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hdf5, "MAX_SPAN_BYTES", 20 * M * 4)
    path = written(tmp_path / "a.h5", **STORAGES["columns"])
    rows = Hdf5Rows(path, KEY, batch_size=4)
    assert torch.equal(joined(rows), expected())
    list(rows.shuffled(seeded()))
    (record,) = caplog.records
    assert "stored in chunks of 53 x 2" in record.message
    assert f"h5repack -l {KEY}:CHUNK=10x7 a.h5 NEW.h5" in record.message


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"rows": [1, 53]}, r"a\.h5: `.*`: rows: 1 to 53 leave 0\.\.52"),
        ({"rows": [-1]}, r"leave 0\.\.52"),
        ({"rows": [3, 2]}, "must ascend, each once; sort them"),
        ({"rows": [3, 3]}, "must ascend, each once"),
        ({"rows": slice(None, None, -1)}, "must ascend"),
        ({"rows": []}, "at least one must be chosen"),
        ({"rows": [0.5]}, "by whole numbers, a slice or a mask"),
        ({"rows": np.ones(3, bool)}, r"a mask of shape \[3\] was given for 53"),
        ({"columns": [7]}, r"columns: 7 to 7 leave 0\.\.6"),
        ({"batch_size": 0}, "must be positive"),
        ({"block_bytes": 0}, "must be positive"),
    ],
)
def test_wrong_selections(tmp_path, selection, words):
    with pytest.raises(ConfigError, match=words):
        Hdf5Rows(written(tmp_path / "a.h5"), KEY, **selection)


# --- memory, threads, forks


def test_early_exit_leaves_no_thread_and_no_open_file(tmp_path):
    for options in (STORAGES["contiguous"], STORAGES["gzip"]):
        path = written(tmp_path / "a.h5", **options)
        batches = iter(Hdf5Rows(path, KEY, batch_size=2))
        next(batches)
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "eigenloom-prefetch"]
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        assert str(path) not in [os.readlink(link) for link in links if os.path.lexists(link)]


def test_rows_can_be_walked_in_a_forked_process(tmp_path):
    path = written(tmp_path / "a.h5", **STORAGES["gzip"])
    code = f"""
import os, torch
from eigenloom.sources.hdf5 import Hdf5Rows
rows = Hdf5Rows({str(path)!r}, {KEY!r})
before = torch.cat(list(rows))
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(torch.cat(list(rows)), before) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=60)


PEAK = """
import sys
from eigenloom.sources.hdf5 import Hdf5Rows
import torch
torch.set_num_threads(1)
rows = Hdf5Rows(sys.argv[1], "flux", batch_size=512, pool_bytes=8 << 20)
rows.sample(100, torch.Generator().manual_seed(0))
total = sum(float(batch.sum()) for batch in rows)
total = sum(float(batch.sum()) for batch in rows.shuffled(torch.Generator().manual_seed(0)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [{}, {"chunks": (64, 1024)}], ids=["contiguous", "chunked"])
def test_peak_memory_does_not_grow_with_the_number_of_rows(tmp_path, options):
    """Five times the rows, 64 MB more in the file, at most a quarter of that more in memory."""
    peaks = []
    for n in (4096, 20480):
        path: Path = tmp_path / f"{n}.h5"
        with h5py.File(path, "w") as file:
            flux = file.create_dataset("flux", (n, 1024), "f4", **options)
            for first in range(0, n, 4096):
                flux[first : first + 4096] = 1.0
        peaks.append(peak_mb(PEAK, path))
        path.unlink()
    assert peaks[1] - peaks[0] < 16, peaks
