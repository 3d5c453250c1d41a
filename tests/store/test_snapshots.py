"""Unfinished work is saved, resumed, refused when it is another's, and gone when it is done."""

import logging
import os
import signal

import pytest
import torch

from eigenloom.errors import Interrupted
from eigenloom.store.snapshots import Snapshots


def total(path, n=10, identity=None, every=0.0, stop_at=None, signals=1):
    """Sum 0..n-1 one step at a time; optionally send ourselves SIGTERM after a step."""
    with Snapshots(path, identity or {"n": n}, every_seconds=every) as snapshots:
        state, start = torch.zeros(1), 0
        if (saved := snapshots.load()) is not None:
            state, start = saved[0]["state"], saved[1]["step"]
        for step in range(start, n):
            state = state + step
            if step == stop_at:
                for _ in range(signals):
                    os.kill(os.getpid(), signal.SIGTERM)
            snapshots.tick({"state": state}, {"step": step + 1})
    return state.item(), start


@pytest.mark.parametrize("signals", [1, 3])
def test_sigterm_saves_and_the_next_run_goes_on(tmp_path, signals):
    path = tmp_path / "a" / "snapshot.safetensors"
    with pytest.raises(Interrupted, match='stopped by SIGTERM at {"step":5}; run the same command'):
        total(path, every=1e9, stop_at=4, signals=signals)
    assert path.exists()
    assert total(path) == (45, 5)
    assert not path.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_crash_resumes_from_the_last_periodic_save(tmp_path):
    path = tmp_path / "snapshot.safetensors"
    with pytest.raises(ZeroDivisionError), Snapshots(path, {"n": 10}, every_seconds=0) as snapshots:
        snapshots.tick({"state": torch.tensor([3.0])}, {"step": 3})
        raise ZeroDivisionError
    assert total(path) == (3 + sum(range(3, 10)), 3)


def test_anothers_snapshot_is_not_resumed_from(tmp_path, caplog):
    path = tmp_path / "snapshot.safetensors"
    with pytest.raises(Interrupted):
        total(path, stop_at=4)
    with caplog.at_level(logging.WARNING):
        assert total(path, identity={"n": 10, "seed": 1}) == (45, 0)
    assert '"seed":1' in caplog.text
    assert 'belongs to {"n":10}' in caplog.text


def test_a_torn_snapshot_is_not_resumed_from(tmp_path, caplog):
    path = tmp_path / "snapshot.safetensors"
    path.write_bytes(b"torn")
    assert total(path) == (45, 0)
    assert "cannot be read" in caplog.text


def test_without_a_path_nothing_is_written_and_sigterm_is_left_alone(tmp_path):
    with Snapshots(None, {}) as snapshots:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not snapshots.due()
        snapshots.tick({}, {})
        assert snapshots.load() is None


def test_saves_are_spaced_in_time(tmp_path):
    path = tmp_path / "snapshot.safetensors"
    with Snapshots(path, {}, every_seconds=1e9) as snapshots:
        snapshots.tick({"state": torch.zeros(1)}, {"step": 1})
        assert not path.exists()
