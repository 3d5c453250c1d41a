"""A file is published whole or not at all, and refusals are sentences."""

import errno
import hashlib
import os
import threading

import pytest

from eigenloom.errors import StoreError
from eigenloom.store.atomic import atomic_file, read_json, write_bytes, write_json


def test_published_bytes_and_digest(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with atomic_file(path) as file:
        file.write(b"abc")
        file.write(memoryview(b"defg"))
        file.pad_to(3_000_000)
    data = path.read_bytes()
    assert data == b"abcdefg" + bytes(3_000_000 - 7)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert os.listdir(path.parent) == ["file.bin"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_file(path) as file:
        file.write(b"ne")
        raise RuntimeError("halfway")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_killed_writers_remainder_is_overwritten(tmp_path):
    (tmp_path / ".file.bin.partial").write_bytes(b"half of something long")
    write_bytes(tmp_path / "file.bin", b"whole")
    assert os.listdir(tmp_path) == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the device; free some"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied; make the folder writable"),
    ],
)
def test_the_systems_refusals_are_sentences(tmp_path, code, words):
    path = tmp_path / "file.bin"
    with pytest.raises(StoreError, match=words) as caught, atomic_file(path) as file:
        file.write(b"x")
        raise OSError(code, os.strerror(code))
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_sentence():
    """/dev/full refuses every write with the real error."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(StoreError, match="a parent of this path is a file|is a folder where"):
        write_bytes(tmp_path / "results" / "sub" / "file", b"")


def test_read_json_says_what_is_wrong(tmp_path):
    path = tmp_path / "edge.json"
    with pytest.raises(StoreError, match="no such file; run the rule that makes it"):
        read_json(path)
    path.write_text('{"torn": ')
    with pytest.raises(StoreError, match="is not JSON"):
        read_json(path)
    write_json(path, {"a": list(range(100))})
    with pytest.raises(StoreError, match="bytes, more than the 10"):
        read_json(path, max_bytes=10)
    assert read_json(path) == {"a": list(range(100))}


def test_a_living_writer_is_waited_for(tmp_path):
    path, first_open, release = tmp_path / "file.bin", threading.Event(), threading.Event()

    def slow():
        with atomic_file(path) as file:
            file.write(b"slow and ")
            first_open.set()
            assert release.wait(10)
            file.write(b"whole")

    def quick():
        write_bytes(path, b"quick")

    threads = [threading.Thread(target=slow), threading.Thread(target=quick)]
    threads[0].start()
    assert first_open.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    release.set()
    for thread in threads:
        thread.join(10)
    assert path.read_bytes() == b"quick"
    assert os.listdir(tmp_path) == ["file.bin"]
