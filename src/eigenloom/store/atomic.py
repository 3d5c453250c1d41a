"""Publish a file whole or not at all: temporary sibling, digest in the same pass, fsync, rename."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from eigenloom.errors import StoreError


class HashingFile:
    """A file open for writing that digests what it writes."""

    def __init__(self, file: BinaryIO):
        """Wrap an open binary file."""
        self._file = file
        self._hash = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: Any) -> None:
        """Write a bytes-like object and feed it to the digest."""
        self._file.write(data)
        self._hash.update(data)
        self.n_bytes += memoryview(data).nbytes

    def pad_to(self, n_bytes: int) -> None:
        """Extend with zeros to ``n_bytes``: a hole on disk where the file system has holes, zeros in the digest."""
        missing = n_bytes - self.n_bytes
        self._file.truncate(n_bytes)
        block = bytes(min(missing, 1 << 20))
        for start in range(0, missing, 1 << 20):
            self._hash.update(block[: missing - start])
        self.n_bytes = n_bytes

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._hash.hexdigest()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[HashingFile]:
    """Yield a ``HashingFile`` that becomes ``path`` when the block ends, and leaves nothing when it fails.

    The temporary sibling has a fixed name, so a killed writer's remainder is overwritten by the next one. A writer
    that still lives (its workflow was killed, it was not) is waited for.

    Raises:
        StoreError: the folder is missing or read-only, or the disk is full.
    """
    with _published(Path(path)) as (_, file):
        yield HashingFile(file)
        file.flush()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the name of an empty temporary sibling, for a library that writes files by name; else as ``atomic_file``.

    The library must have closed the file when the block ends, and must not lock it: it is locked here.
    """
    with _published(Path(path)) as (partial, _):
        yield partial


@contextmanager
def _published(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield the temporary sibling, by name and open; rename it at the end, or remove it."""
    partial = path.with_name(f".{path.name}.partial")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_alone(partial) as file:
            try:
                yield partial, file
                os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        _sync_directory(path.parent)


def _open_alone(partial: Path) -> BinaryIO:
    """Open a file for writing, empty, while no other process is writing it.

    The lock belongs to the open file, not to its name: after waiting for another writer the name may be gone
    (published by rename), and then a new file is made.
    """
    while True:
        file = open(partial, "ab")  # noqa: SIM115 (the caller closes it)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _same(file, partial):
                file.truncate(0)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _same(file: BinaryIO, path: Path) -> bool:
    """Say whether the open file is the one the name leads to now."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(file.fileno())
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def write_bytes(path: str | Path, data: bytes) -> str:
    """Publish bytes under ``path``; return their sha256 hex digest."""
    with atomic_file(path) as file:
        file.write(data)
    return file.sha256


def write_text(path: str | Path, text: str) -> str:
    """Publish a text in UTF-8 under ``path``; return its sha256 hex digest."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> str:
    """Publish a JSON document, indented, keys in the order given; return its sha256 hex digest."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, max_bytes: int = 64 << 20) -> Any:
    """Read a JSON document.

    Raises:
        StoreError: the file is missing, larger than ``max_bytes`` or not JSON.
    """
    path = Path(path)
    with explained(path):
        size = path.stat().st_size
        if size > max_bytes:
            raise StoreError(f"{path}: {size} bytes, more than the {max_bytes} such a file may have; not read")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}: is not JSON ({error}); delete it and run the rule that makes it") from None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals concerning ``path`` into a ``StoreError`` that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError) or error.errno not in _REASONS:
            raise
        raise StoreError(f"{path}: {_REASONS[error.errno]}") from error


_REASONS = {
    errno.ENOSPC: "no space left on the device; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some and run the same command again",
    errno.EROFS: "the file system is read-only; make it writable or move the checkout",
    errno.EACCES: "permission denied; make the folder writable for this user",
    errno.EPERM: "operation not permitted; make the folder writable for this user",
    errno.EEXIST: "a parent of this path is a file, not a folder; move it away",
    errno.ENOTDIR: "a parent of this path is a file, not a folder; move it away",
    errno.EISDIR: "is a folder where a file should be; move it away",
    errno.ENOENT: "no such file; run the rule that makes it, or `dvc pull`",
    errno.EIO: "the device reports an input/output error; check the disk",
}


def _sync_directory(directory: Path) -> None:
    """Make a rename durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
