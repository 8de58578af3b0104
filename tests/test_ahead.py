"""`ahead`: in order, never further ahead than asked, and every error in its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from hf_motive.ahead import ahead, idle_threads

SECONDS = 20  # after which a test gives up waiting for a thread


def slow_square(x: int) -> int:
    time.sleep(0.002 * (7 - x % 7))  # later ones are done before earlier ones
    return x * x


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_it_is_map(workers):
    assert list(ahead(range(40), slow_square, workers)) == [x * x for x in range(40)]
    assert list(ahead([], slow_square, workers)) == []


def test_it_works_while_the_result_is_used_and_no_further_than_asked():
    begun = [threading.Event() for _ in range(6)]

    def prepare(x: int) -> int:
        begun[x].set()
        return x

    results = ahead(range(6), prepare, 2)
    assert next(results) == 0
    assert begun[1].wait(SECONDS) and begun[2].wait(SECONDS)  # while the first is still being used
    time.sleep(0.05)
    assert not begun[3].is_set()
    assert list(results) == [1, 2, 3, 4, 5]


def test_without_workers_nothing_is_ahead_and_there_is_no_thread():
    prepared = []
    results = ahead(range(3), lambda x: prepared.append((x, threading.current_thread())), 0)
    next(results)
    assert prepared == [(0, threading.main_thread())]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn(workers):
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the shard is gone")

    got = []
    with pytest.raises(OSError, match="the shard is gone"):
        for result in ahead(items(), slow_square, workers):
            got.append(result)
    assert got == [0, 1, 4, 9, 16]

    got.clear()
    with pytest.raises(ZeroDivisionError):
        for result in ahead([4, 2, 0, 1], lambda x: 1 / x, workers):
            got.append(result)
    assert got == [0.25, 0.5]


def test_left_early_it_leaves_no_thread():
    before = threading.active_count()
    results = ahead(range(1000), slow_square, 3)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert threading.active_count() == before


def test_idle_threads(monkeypatch):
    monkeypatch.setattr("hf_motive.ahead.threads_of_a_process", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert idle_threads(torch.device("cpu")) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert idle_threads(torch.device("cpu")) == 0
    assert idle_threads(torch.device("cuda")) == 2
    monkeypatch.setattr("hf_motive.ahead.threads_of_a_process", lambda: 64)
    assert idle_threads(torch.device("cuda")) == 4
