"""Codes in CSR files: equal to the same codes written by us, streamed in any cut, hostile files refused."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from eigenloom.codes import csr
from eigenloom.codes.csr import CsrCodes
from eigenloom.codes.selection import keep_largest
from eigenloom.codes.stream import CodeBatch, CodeStream
from eigenloom.errors import DataError, MismatchError, StoreError
from eigenloom.probes.fit import fit_probe

N, K = 300, 20


def codes(seed=0, n=N, k=K):
    """Sparse codes of unequal length, some rows empty."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, k)) * (rng.random((n, k)) < rng.random((n, 1)) * 0.5)
    dense[:3] = 0
    dense[3] = rng.normal(size=k)
    return dense.astype(np.float32)


def written(path, matrix, compressed=True):
    scipy.sparse.save_npz(path, matrix, compressed=compressed)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 8192])
def test_batches_are_the_matrix(tmp_path, monkeypatch, compressed, batch):
    monkeypatch.setattr(csr, "BATCH_ROWS", batch)
    dense = codes()
    stream = CsrCodes(written(tmp_path / "codes.npz", scipy.sparse.csr_matrix(dense), compressed), N)
    assert isinstance(stream, CodeStream)
    assert (stream.n_rows, stream.n_features, stream.n_entries) == (N, K, np.count_nonzero(dense))
    for _ in range(2):
        batches = list(stream)
        for one in batches:
            assert all(len(set(row)) == len(row) for row in one.indices.tolist())  # also where nothing is
        found = torch.cat([one.to_dense() for one in batches])
        assert torch.equal(found, torch.from_numpy(dense))


def test_long_rows_make_short_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(csr, "BATCH_ENTRIES", 3 * K)
    dense = codes()
    stream = CsrCodes(written(tmp_path / "codes.npz", scipy.sparse.csr_array(dense)), N)
    assert max(batch.values.numel() for batch in stream) <= 3 * K
    assert torch.equal(torch.cat([batch.to_dense() for batch in stream]), torch.from_numpy(dense))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_number_formats_and_unsorted_columns(tmp_path, dtype):
    dense = np.round(codes() * 4).astype(dtype)
    matrix = scipy.sparse.csr_matrix(dense.astype(np.float64))
    matrix = scipy.sparse.csr_matrix((matrix.data.astype(np.float64), matrix.indices, matrix.indptr), dense.shape)
    for row in range(N):  # backwards within every row
        at = slice(*matrix.indptr[row : row + 2])
        matrix.indices[at], matrix.data[at] = matrix.indices[at][::-1].copy(), matrix.data[at][::-1].copy()
    parts = {"data": matrix.data.astype(dtype), "indices": matrix.indices.astype(np.int64), "indptr": matrix.indptr}
    np.savez(tmp_path / "codes.npz", **parts, shape=np.array(dense.shape), format=b"csr")
    found = torch.cat([batch.to_dense() for batch in CsrCodes(tmp_path / "codes.npz", N)])
    assert torch.equal(found, torch.from_numpy(dense.astype(np.float32)))


class Ours:
    """The same codes as batches of our own layout."""

    layout, n_rows, n_features = "sparse", N, K

    def __init__(self, dense, m):
        values, indices = torch.from_numpy(dense).abs().topk(m, dim=1)
        self.batch = CodeBatch.sparse(torch.from_numpy(dense).gather(1, indices), indices.int(), K)
        del values

    def __iter__(self):
        yield self.batch


def test_probes_of_the_file_are_those_of_our_own_codes(tmp_path):
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, 4, N) for _ in range(2)]
    dense = [keep_largest(torch.from_numpy(codes(seed)), 5).numpy() for seed in (2, 3)]
    for part, label in zip(dense, labels, strict=True):
        part[np.arange(N), label] += 2 * (label > 0)
    streams = [
        CsrCodes(written(tmp_path / f"{i}.npz", scipy.sparse.csr_matrix(part)), N) for i, part in enumerate(dense)
    ]
    words = {"classes": ["void", "a", "b", "c"], "void": 0}
    theirs = fit_probe(streams[0], labels[0], streams[1], labels[1], **words)
    ours = fit_probe(Ours(dense[0], 6), labels[0], Ours(dense[1], 6), labels[1], **words)
    assert theirs.document() == ours.document()
    for name, array in theirs.arrays().items():
        assert torch.equal(array, ours.arrays()[name]), name
    assert theirs.metrics.scalars["map"] > 0.6


def test_a_code_that_is_no_number_is_named(tmp_path):
    dense = codes()
    dense[17, 4] = np.nan
    streams = [CsrCodes(written(tmp_path / "c.npz", scipy.sparse.csr_matrix(dense)), N)] * 2
    labels = np.arange(N) % 2
    with pytest.raises(DataError, match="the code of row 17 at feature 4 is nan"):
        fit_probe(streams[0], labels, streams[1], labels, classes=["a", "b"])


def members(path, **changes):
    """Write a CSR file with parts changed; bytes become the member as they are."""
    matrix = scipy.sparse.csr_matrix(codes())
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape),
             "format": np.array(b"csr"), **changes}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            content = part
            if not isinstance(part, bytes):
                buffer = io.BytesIO()
                np.save(buffer, part, allow_pickle=part.dtype.hasobject)
                content = buffer.getvalue()
            if content:
                archive.writestr(f"{name}.npy", content)
    return path


def huge(kind, shape):
    """The head of an array that claims a shape, and nothing after it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return Path("exploded").touch, ()


MATRIX = scipy.sparse.csr_matrix(codes())
TWICE = MATRIX.indices.copy()
TWICE[1] = TWICE[0]
BROKEN = {
    "kind": ({"format": np.array(b"csc")}, StoreError, r"is a 'csc' matrix, where 'csr' is needed"),
    "rows": ({"shape": np.array([N + 1, K])}, MismatchError, f"has {N + 1} rows, but the recording has {N}"),
    "no matrix": ({"shape": np.array([N])}, StoreError, "that of no matrix"),
    "columns": ({"shape": np.array([N, 3])}, StoreError, "do not rise from 0"),
    "range": ({"indices": MATRIX.indices + 1}, StoreError, f"but there are {K}"),
    "negative": ({"indices": MATRIX.indices - 1}, StoreError, "columns -1 to"),
    "twice": ({"indices": TWICE}, StoreError, "row 3 names column 0 twice"),
    "ends": ({"indptr": MATRIX.indptr[::-1].copy()}, StoreError, "do not rise from 0"),
    "few ends": ({"indptr": MATRIX.indptr[:-1]}, StoreError, f"{N} ends for {N} rows"),
    "few columns": ({"indices": MATRIX.indices[:-1]}, StoreError, "columns, "),
    "missing": ({"data": b""}, StoreError, "is damaged, or not what scipy"),
    "text": ({"data": np.array(["a"] * MATRIX.nnz)}, StoreError, "data is <U1"),
    "objects": ({"data": np.array([Bomb()] * MATRIX.nnz)}, StoreError, "objects, which are never unpickled"),
    "pickle": ({"shape": pickle.dumps(Bomb())}, StoreError, "is damaged"),
    "claims": ({"data": huge("<f4", (1 << 60,)), "indices": huge("<i4", (1 << 60,))}, StoreError, "expected"),
    "claimed shape": ({"shape": huge("<i8", (1 << 50,))}, StoreError, "bytes early"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_a_sentence(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    changes, kind, words = BROKEN[case]
    path = members(tmp_path / "codes.npz", **changes)
    with pytest.raises(kind, match=words) as caught:
        list(CsrCodes(path, N))
    assert "codes.npz" in str(caught.value)
    assert not Path("exploded").exists()


def test_what_is_no_file_of_codes(tmp_path):
    for name, content in {"empty": b"", "pickle": pickle.dumps(1), "text": b"PK\x03\x04nonsense"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match="is damaged, or not what scipy.sparse.save_npz writes"):
            CsrCodes(tmp_path / name, N)
    with pytest.raises(StoreError, match="no such file"):
        CsrCodes(tmp_path / "gone", N)
    whole = members(tmp_path / "codes.npz")
    data = bytearray(whole.read_bytes())
    data[len(data) // 3] ^= 255
    whole.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        list(CsrCodes(whole, N))
