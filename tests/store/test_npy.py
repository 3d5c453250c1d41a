"""Large arrays as plain ``.npy`` files: what numpy reads, resumed where they ended, never half published."""

import numpy as np
import pytest
import torch

from eigenloom.errors import StoreError
from eigenloom.provenance import file_digest
from eigenloom.store.npy import MemoryRows, NpyWriter, keep_npy, map_npy

ROWS = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1000, 7), (7000,)])
def test_numpy_reads_what_is_written(shape, tmp_path):
    writer = NpyWriter(tmp_path / "deep" / "x.npy", shape)
    writer.begin()
    for part in ROWS.view(shape).split(300):
        writer.append(part)
    assert torch.equal(writer.read(10, 20), ROWS.view(shape)[10:30])
    assert not (tmp_path / "deep" / "x.npy").exists()
    mapped = writer.publish()
    assert torch.equal(mapped, ROWS.view(shape))
    found = np.load(tmp_path / "deep" / "x.npy", mmap_mode="r")
    assert (found.shape, found.dtype) == (shape, np.dtype("<f4"))
    assert np.array_equal(found, ROWS.view(shape).numpy())
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"x.npy"}


def test_the_bytes_are_those_numpy_saves(tmp_path):
    np.save(tmp_path / "theirs.npy", ROWS.numpy())
    keep_npy(tmp_path / "ours.npy", ROWS)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_another_process_continues_after_the_rows_it_can_count_on(tmp_path):
    first = NpyWriter(tmp_path / "x.npy", (1000, 7))
    first.begin()
    first.append(ROWS[:700])
    first.sync()
    first.close()
    second = NpyWriter(tmp_path / "x.npy", (1000, 7))
    assert second.holds(500)
    assert second.holds(700)
    assert not second.holds(701)
    assert not NpyWriter(tmp_path / "x.npy", (1000, 8)).holds(0)
    assert not NpyWriter(tmp_path / "y.npy", (1000, 7)).holds(0)
    second.begin(500)
    assert torch.equal(second.read(499, 1), ROWS[499:500])
    second.append(ROWS[500:])
    assert torch.equal(second.publish(), ROWS)


def test_a_rotation_is_applied_on_the_way_out_and_leaves_the_rest_alone_until_then(tmp_path):
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    published = []
    for writer in (NpyWriter(tmp_path / "x.npy", (1000, 7)), MemoryRows((1000, 7))):
        writer.begin()
        writer.append(ROWS)
        published.append(writer.publish(rotation))
    assert torch.equal(published[0], published[1])
    assert (published[0] - ROWS.double() @ rotation).abs().max() < 1e-6
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy"}


def test_a_file_that_holds_the_bytes_already_is_left(tmp_path):
    path = tmp_path / "x.npy"
    digest = keep_npy(path, ROWS)
    assert digest == file_digest(path)
    before = path.stat()
    assert keep_npy(path, map_npy(path)) == digest
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    other = ROWS.clone()
    other[999, 6] += 1
    assert keep_npy(path, other) == file_digest(path) != digest
    assert torch.equal(map_npy(path), other)


def test_changes_of_a_mapped_tensor_never_reach_the_file(tmp_path):
    keep_npy(tmp_path / "x.npy", ROWS)
    mapped = map_npy(tmp_path / "x.npy")
    mapped[0, 0] = 99.0
    assert torch.equal(map_npy(tmp_path / "x.npy"), ROWS)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no array at all, but long enough for a header" * 4])
def test_what_is_no_array_is_refused(content, tmp_path):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(StoreError, match=r"x.npy: is not .*run the rule that makes it again"):
        map_npy(tmp_path / "x.npy")


def test_pickles_archives_and_fortran_order_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "f.npy", np.asfortranarray(ROWS.numpy()))
    with (tmp_path / "z.npy").open("wb") as file:
        np.savez(file, x=ROWS.numpy())
    for name in "ofz":
        with pytest.raises(StoreError, match=rf"{name}.npy: is not .*run the rule that makes it again"):
            map_npy(tmp_path / f"{name}.npy")
    with pytest.raises(StoreError, match=r"absent.npy: no such file"):
        map_npy(tmp_path / "absent.npy")
