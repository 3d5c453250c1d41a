"""A thread that works ahead: never too far, never silent about a failure, never left behind."""

import threading

import pytest

from eigenloom.sources.prefetch import Prefetched


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "eigenloom-prefetch"]


def test_stays_within_its_slots():
    made = []

    def produce():
        for number in range(6):
            made.append(number)
            yield number

    with Prefetched(produce(), slots=2) as items:
        assert next(items) == 0
        items.release()
        assert next(items) == 1
        assert next(items) == 2
        threading.Event().wait(0.05)
        assert made == [0, 1, 2]
        items.release()
        assert next(items) == 3
    assert threads() == []


def test_raises_what_the_thread_met():
    closed = []

    def produce():
        try:
            yield 1
            raise KeyError("inside")
        finally:
            closed.append(True)

    with pytest.raises(KeyError, match="inside"), Prefetched(produce(), slots=1) as items:
        for _ in items:
            items.release()
    assert closed == [True]


def test_leaving_early_closes_the_generator():
    closed = []

    def produce():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    items = produce()
    with Prefetched(items, slots=2) as ahead:
        next(ahead)
    assert closed == [True]
    assert threads() == []
