"""Out of core: the same bytes as in memory, whatever interrupts it, without the matrix ever being in memory."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from problems import low_rank_plus_sparse

from eigenloom import pcp
from eigenloom.errors import ConfigError, StoreError
from eigenloom.linalg.pcp_store import InMemory, NpyRows, OnDisk

PLANTED = low_rank_plus_sparse(1500, 300, 8, 0.05)[0].numpy().astype(np.float32)


def solve(X, **parameters):
    return pcp(X, **{"verbose": False, **parameters})


@pytest.fixture
def mapped(tmp_path):
    """The planted matrix as a read-only memory map."""
    np.save(tmp_path / "X.npy", PLANTED)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_out_of_core_equals_in_memory_bitwise(mapped, tmp_path, wide, noise):
    X, array = (mapped.T, PLANTED.T.copy()) if wide else (mapped, PLANTED)
    L, S, hist = solve(X, noise_std=noise, out=tmp_path / "out")
    expected, sparse, same = solve(array, noise_std=noise)
    assert hist == same
    assert isinstance(L, np.memmap)
    assert (L.shape, L.dtype) == (array.shape, np.float32)
    assert np.array_equal(L, expected)
    assert np.array_equal(S, sparse)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["L.npy", "S.npy"]


def test_weights_and_masks_may_be_mapped_too(mapped, tmp_path):
    weights = np.where(np.arange(PLANTED.size).reshape(PLANTED.shape) % 7, 50.0, 0.0)
    np.save(tmp_path / "w.npy", weights)
    L, _, _ = solve(mapped, weights=np.load(tmp_path / "w.npy", mmap_mode="r"), out=tmp_path / "out")
    assert np.array_equal(L, solve(PLANTED, weights=weights)[0])


def test_private_pages_survive(tmp_path):
    """A copy-on-write map whose pages were changed: they are the matrix, and must not be forgotten."""
    np.save(tmp_path / "X.npy", np.zeros_like(PLANTED))
    X = np.load(tmp_path / "X.npy", mmap_mode="c")
    X[:] = PLANTED
    assert np.array_equal(solve(X)[0], solve(PLANTED)[0])


def test_hdf5_data_sets_are_read_by_blocks(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["flux"] = PLANTED.astype(">f8")
    with h5py.File(tmp_path / "x.h5") as file:
        L, _, _ = solve(file["flux"], out=tmp_path / "out")
    assert np.array_equal(L, solve(PLANTED)[0])


class Stopping:
    """A matrix that ends the process's patience after so many reads of its first row."""

    def __init__(self, array, walks):
        self.array, self.walks = array, walks
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, rows):
        if isinstance(rows, slice) and rows.start == 864:
            self.walks -= 1
            if self.walks == 0:
                raise KeyboardInterrupt
        return self.array[rows]


@pytest.mark.parametrize("walks", [3, 40, 41, 42, 77])
@pytest.mark.parametrize("out", [False, True])
def test_an_interrupted_call_resumes_to_the_same_bytes(tmp_path, caplog, walks, out):
    caplog.set_level("INFO")
    there = {"out": tmp_path / "out"} if out else {}
    with pytest.raises(KeyboardInterrupt):
        solve(Stopping(PLANTED, walks), resume=tmp_path / "work", **there)
    L, S, hist = solve(PLANTED, resume=tmp_path / "work", **there)
    assert ("resuming from" in caplog.text) == (walks > 30)
    expected, sparse, whole = solve(PLANTED)
    assert hist == whole
    assert np.array_equal(L, expected)
    assert np.array_equal(S, sparse)
    assert not (tmp_path / "work").exists()


def test_work_of_another_call_is_not_resumed(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        solve(Stopping(PLANTED, 60), resume=tmp_path / "work")
    L, _, hist = solve(PLANTED, resume=tmp_path / "work", lambda_=0.05)
    assert "starting over" in caplog.text
    expected, _, same = solve(PLANTED, lambda_=0.05)
    assert hist == same
    assert np.array_equal(L, expected)


@pytest.mark.parametrize("spoil", ["torn state", "no array", "short array"])
def test_damaged_work_starts_over(tmp_path, spoil):
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        solve(Stopping(PLANTED, 60), resume=work)
    if spoil == "torn state":
        (work / "state.safetensors").write_bytes(b"torn")
    elif spoil == "no array":
        (work / "T.0").unlink()
    else:
        os.truncate(work / "T.1", 1000)
    assert np.array_equal(solve(PLANTED, resume=work)[0], solve(PLANTED)[0])


def test_a_killed_process_is_resumed_by_the_next(tmp_path, mapped):
    """The same with a real process and a signal that nobody can catch."""
    code = """
        import sys, numpy as np, torch
        from eigenloom.linalg import pcp_solver
        from eigenloom import pcp
        torch.set_num_threads(1)
        inner = pcp_solver._line
        def line(*arguments):
            found = inner(*arguments)
            print("iteration", flush=True)
            sys.stdin.readline()
            return found
        pcp_solver._line = line
        pcp(np.load(sys.argv[1], mmap_mode="r"), verbose=False, resume=sys.argv[2])
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "X.npy"), str(tmp_path / "work")]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        for _ in range(9):
            assert process.stdout.readline() == "iteration\n"
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline() == "iteration\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    L, _, hist = solve(mapped, resume=tmp_path / "work")
    expected, _, whole = solve(PLANTED)
    assert hist == whole
    assert np.array_equal(L, expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("where", "least", "most"), [("out", 0.0, 0.5), ("", 1.5, 3.0)])
def test_memory_stays_bounded_out_of_core(tmp_path, where, least, most):
    """Peak resident memory beyond what a small matrix needs, in matrices and in a process of its own."""
    code = """
        import sys, numpy as np, torch
        from pathlib import Path
        from eigenloom import pcp
        torch.set_num_threads(1)
        path, where = sys.argv[1:]
        # getrusage would begin with what the parent had at the fork.
        peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        X = np.load(path, mmap_mode="r")
        pcp(X[:2000], rank_guess=4, verbose=False, max_iter=2)
        before = peak()
        pcp(X, rank_guess=4, verbose=False, max_iter=2, out=where or None)
        print((peak() - before) / X.nbytes)
    """
    source = torch.Generator().manual_seed(0)
    X = torch.randn(40_000, 4, generator=source) @ torch.randn(4, 512, generator=source)
    np.save(tmp_path / "X.npy", X.numpy())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "X.npy"), where and str(tmp_path / where)]
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert least <= float(done.stdout) <= most, done.stdout


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for parameters in ({"out": tmp_path / "file"}, {"resume": tmp_path / "file" / "work"}):
        with pytest.raises(StoreError, match="two arrays of the size of X are kept there"):
            solve(PLANTED, **parameters)


def test_the_two_files_take_turns(tmp_path):
    folder = tmp_path / "work"
    disk = OnDisk(folder, (10, 4), torch.float32, 4, {"a": 1})
    assert disk.load() is None
    block = torch.arange(16, dtype=torch.float32).reshape(4, 4)
    disk.write(slice(4, 8), block)
    assert not disk.read(slice(4, 8)).any()
    disk.turn()
    assert torch.equal(disk.read(slice(4, 8)), block)
    disk.tick({"basis": torch.ones(2)}, {"step": 3})
    disk.close(done=False)
    again = OnDisk(folder, (10, 4), torch.float32, 4, {"a": 1})
    tensors, position = again.load()
    assert (tensors["basis"].tolist(), position) == ([1.0, 1.0], {"step": 3})
    assert torch.equal(again.read(slice(4, 8)), block)
    other = OnDisk(folder, (10, 4), torch.float32, 4, {"a": 2})
    assert other.load() is None
    other.close(done=False)
    again.close(done=True)
    assert not folder.exists()


def test_memory_takes_no_copy_of_its_own_block():
    held = InMemory((6, 3), torch.float32, torch.device("cpu"))
    held.whole.zero_()
    block = held.read(slice(2, 4))
    block += 1
    held.write(slice(2, 4), block)
    held.write(slice(0, 2), torch.full((2, 3), 5.0))
    assert held.whole.sum(1).tolist() == [15, 15, 3, 3, 0, 0]


@pytest.mark.parametrize("transposed", [False, True])
def test_npy_rows_are_what_numpy_reads(tmp_path, transposed):
    tall = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    with NpyRows(tmp_path / "a" / "x.npy", (4, 3), torch.float64, transposed) as file:
        file.append(tall[:3])
        file.append(tall[3:])
    found = np.load(tmp_path / "a" / "x.npy")
    assert np.array_equal(found, tall.numpy().T if transposed else tall.numpy())
    with pytest.raises(ZeroDivisionError), NpyRows(tmp_path / "y.npy", (4, 3), torch.float64, transposed) as file:
        raise ZeroDivisionError
    assert not list(tmp_path.glob("*y.npy*"))


@pytest.mark.gpu
def test_files_are_for_matrices_on_the_cpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with pytest.raises(ConfigError, match="matrices on the CPU"):
        solve(torch.zeros(4, 4, device="cuda"), out=tmp_path)


@pytest.mark.gpu
def test_a_card_gives_the_same_split():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    L, S, hist = solve(torch.from_numpy(PLANTED).cuda())
    expected, sparse, _ = solve(PLANTED)
    assert (L.is_cuda, S.is_cuda, hist["status"]) == (True, True, "converged")
    assert np.abs(L.cpu().numpy() - expected).max() < 1e-4
    assert np.abs(S.cpu().numpy() - sparse).max() < 1e-4


def test_histories_are_json():
    _, _, hist = solve(PLANTED[:60, :40], max_iter=5)
    assert json.loads(json.dumps(hist))["iters"] == hist["iters"]
