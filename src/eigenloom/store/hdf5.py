"""HDF5 data sets: find one by its key, and refuse what is not plain numbers in this very file.

A data file must not name other files, and nothing in it may be unpickled: external links, external storage, virtual
data sets and objects are refused.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eigenloom.errors import DataError, StoreError
from eigenloom.store.atomic import explained

SPAN_BYTES = 2 << 20
"""Bytes per read, rounded up to whole chunks."""
MAX_SPAN_BYTES = 64 << 20
MAX_LINKS = 16
MAX_LISTED = 30
LIKE = 0.6
FLOAT_SIZES = (2, 4, 8)
logger = logging.getLogger("eigenloom")


@dataclass(frozen=True)
class Matrix:
    """A two-dimensional data set of numbers that was looked at and closed again.

    Fields: ``path`` and ``key``; ``shape`` ``(n, m)``; ``dtype`` on the disk; ``offset`` in bytes of the numbers in
    the file where they lie contiguous and unfiltered, else None; ``chunk_rows`` of a chunk whose rows are whole or
    few enough to be read together, else 1; ``span`` rows that are read at a time.
    """

    path: Path
    key: str
    shape: tuple[int, int]
    dtype: np.dtype = field(hash=False)
    offset: int | None
    chunk_rows: int
    span: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file, uncompressed."""
        return self.shape[1] * self.dtype.itemsize


@contextmanager
def open_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, with options of ``h5py.File``.

    Raises:
        StoreError: missing, unreadable, cut short, or no HDF5 file.
    """
    with explained(path):
        if not path.exists():
            raise OSError(errno.ENOENT, "")
        if path.is_dir():
            raise OSError(errno.EISDIR, "")
        try:
            file = h5py.File(path, "r", **options)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise
            if not h5py.is_hdf5(path):
                raise StoreError(f"{path}: is not an HDF5 file; HDF5 is what can be read here") from None
            raise StoreError(f"{path}: cannot be opened ({error}); copy the file again, or close its writer") from None
    with file:
        yield file


def find_dataset(file: h5py.File, path: Path, key: str) -> h5py.Dataset:
    """Return the data set under a nested or flat key, following links inside the file only.

    Raises:
        DataError: there is none; the message lists what the file holds and the nearest name. Or the key, or the data
            set's storage, leads to another file.
    """
    found = _follow(file, path, key, MAX_LINKS)
    if not isinstance(found, h5py.Dataset):
        what = "is a group, not a data set" if isinstance(found, h5py.Group) else "does not exist"
        raise DataError(f"{path}: `{key}` {what}; {_held(file, key)}")
    if found.external or found.is_virtual:
        kind = "external storage" if found.external else "a virtual data set"
        raise DataError(f"{path}: `{key}` is {kind}, whose numbers are in other files; copy them in with h5repack")
    _refuse_unknown_filters(found, path, key)
    return found


def open_matrix(path: str | Path, key: str) -> Matrix:
    """Look at a two-dimensional data set.

    Raises:
        StoreError: the file cannot be opened as HDF5.
        DataError: no such data set (see ``find_dataset``), another number of dimensions, no rows or columns, ragged,
            objects, text, or numbers of a kind that does not become float32.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        found = find_dataset(file, path, key)
        dtype = check_numeric(found, path, key)
        if found.ndim != 2 or 0 in found.shape:
            raise DataError(
                f"{path}: `{key}` has the shape {list(found.shape)}, where a matrix [rows, columns] is needed; "
                f"{_held(file, key)}"
            )
        offset = None if found.chunks or found.id.get_offset() is None else int(found.id.get_offset())
        matrix = Matrix(path, key, found.shape, dtype, offset, *_spans(found, path, key))
        end = (offset or 0) + matrix.shape[0] * matrix.row_bytes
        if offset is not None and path.stat().st_size < end:
            raise StoreError(f"{path}: has {path.stat().st_size} bytes, but `{key}` ends at byte {end}; copy it again")
        return matrix


def read_vector(file: h5py.File, path: Path, key: str, length: int) -> np.ndarray:
    """Read a one-dimensional data set whole, or one field of a compound one (``table/FIELD``), as float64 ``[n]``.

    Raises:
        DataError: no such data set or field, not numbers, another shape than ``(length,)``.
    """
    parent, _, name = key.strip("/").rpartition("/")
    table = _follow(file, path, parent, MAX_LINKS) if parent else None
    if isinstance(table, h5py.Dataset) and name in (table.dtype.names or ()):
        find_dataset(file, path, parent)
        shape, dtype = table.shape, table.dtype[name]
    else:
        table = None
        found = find_dataset(file, path, key)
        shape, dtype = found.shape, check_numeric(found, path, key)
    if shape not in ((length,), (length, 1)) or dtype.shape or not is_numeric(dtype):
        raise DataError(f"{path}: `{key}` is {dtype} of shape {list(shape)}, where {length} numbers are needed")
    values = table.fields(name)[:] if table is not None else found[:]
    return np.asarray(values, dtype=np.float64).reshape(length)


def is_numeric(dtype: np.dtype) -> bool:
    """Say whether numbers of this type become float32: integers, and floats of 2, 4 or 8 bytes."""
    return dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize in FLOAT_SIZES)


def check_numeric(dataset: h5py.Dataset, path: Path, key: str) -> np.dtype:
    """Return the number format of a data set.

    Raises:
        DataError: ragged rows, objects, text, compounds, or numbers of another kind.
    """
    dtype = dataset.dtype
    if is_numeric(dtype):
        return dtype
    if h5py.check_vlen_dtype(dtype) is not None:
        what = "holds text" if h5py.check_string_dtype(dtype) else "is ragged: its rows differ in length"
    elif dtype.names:
        what = f"is a table of {', '.join(dtype.names)}; name a field, as in `{key}/{dtype.names[0]}`"
    else:
        what = f"holds {dtype}"
    raise DataError(f"{path}: `{key}` {what}; a rectangular array of float16, 32, 64 or integers is needed")


def _follow(place: Any, path: Path, key: str, links: int) -> Any:
    """Walk a key link by link; None where it ends, an error where it leaves the file or runs in circles."""
    for name in filter(None, key.split("/")):
        link = place.get(name, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{path}: `{key}` leads to another file, {link.filename}; name that file itself")
        if isinstance(link, h5py.SoftLink):
            if links == 0:
                raise DataError(f"{path}: `{key}` is a chain of more than {MAX_LINKS} links; name the data set itself")
            start = place.file if link.path.startswith("/") else place
            place = _follow(start, path, link.path, links - 1)
        else:
            place = place[name]
    return place


def _held(file: h5py.File, key: str) -> str:
    """List the data sets of a file with shape and type, the names nearest to the key first."""
    found: dict[str, str] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shape = " x ".join(map(str, item.shape or ())) or "scalar"
            found[name] = f"{name} ({shape} {item.dtype})"

    file.visititems(visit)
    if not found:
        return "the file holds no data set"
    nearest = None if key in found else _nearest(key.strip("/"), list(found))
    guess = f"did you mean `{nearest}`? " if nearest else ""
    listed = list(found.values())
    more = f", and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return f"{guess}the file holds {', '.join(listed[:MAX_LISTED])}{more}"


def _nearest(key: str, names: Sequence[str]) -> str | None:
    """Return the name most like a key: as a whole, or a part of it like the key's last part."""
    last = key.rpartition("/")[2]

    def likeness(name: str) -> float:
        pairs = [(key, name), *((last, part) for part in name.split("/"))]
        return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(names, key=likeness)
    return best if likeness(best) >= LIKE else None


def _refuse_unknown_filters(dataset: h5py.Dataset, path: Path, key: str) -> None:
    """Refuse a compression that this HDF5 library cannot undo."""
    plist = dataset.id.get_create_plist()
    for number in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{path}: `{key}` is compressed by filter {code} ({name.decode(errors='replace') or 'unnamed'}), which "
                "is not installed; rewrite it with h5repack -f GZIP=1"
            )


def _spans(dataset: h5py.Dataset, path: Path, key: str) -> tuple[int, int]:
    """Return the rows of a chunk, and how many rows to read at a time: about ``SPAN_BYTES``, whole chunks."""
    row_bytes = dataset.shape[1] * dataset.dtype.itemsize
    rows = max(1, SPAN_BYTES // row_bytes)
    chunk_rows = dataset.chunks[0] if dataset.chunks else 1
    if chunk_rows * row_bytes <= MAX_SPAN_BYTES:
        return chunk_rows, -(-rows // chunk_rows) * chunk_rows
    logger.warning(
        "%s: `%s` is stored in chunks of %d x %d, so that every block of rows reads far more than it needs; rewrite "
        "it: h5repack -l %s:CHUNK=%dx%d %s NEW.h5",
        path, key, *dataset.chunks, key, rows, dataset.shape[1], path.name,
    )  # fmt: skip
    return 1, max(1, MAX_SPAN_BYTES // row_bytes)
