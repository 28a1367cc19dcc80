"""Values are made once, whoever asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trbert_deploy.runtime.once import OncePerKey

THREADS = 8


def test_threads_that_ask_at_once_share_one_value() -> None:
    made: list[str] = []
    together = threading.Barrier(THREADS)
    waiting = threading.Event()

    def make(key: str) -> object:
        made.append(key)
        waiting.wait(0.2)  # long enough for all to ask meanwhile
        return object()

    once = OncePerKey(make)

    def ask(key: str) -> object:
        together.wait()
        return once(key)

    with ThreadPoolExecutor(THREADS) as pool:
        values = list(pool.map(ask, ["one", "two"] * (THREADS // 2)))
    assert sorted(made) == ["one", "two"]
    assert len({id(value) for value in values}) == 2
    assert values[0] is values[2] is once("one")


def test_what_failed_is_tried_again() -> None:
    tries: list[int] = []

    def make(key: int) -> int:
        tries.append(key)
        if len(tries) == 1:
            raise ValueError("not yet")
        return -key

    once = OncePerKey(make)
    with pytest.raises(ValueError, match="not yet"):
        once(3)
    assert once(3) == once(3) == -3
    assert tries == [3, 3]
