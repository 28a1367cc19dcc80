"""The queue: every row runs once, nobody gets another's answer, nobody waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.serving.queue import Ran, RowQueue
from trbert_deploy.serving.refusals import DeadlinePassed, QueueFull, ShuttingDown

SOON = 20.0


def a_row(length: int, mark: int = 0) -> TokenRow:
    ids = np.full(length, mark, np.int64)
    return TokenRow(ids, np.zeros(length, np.int64))


class Model:
    """Answers a row with its mark, when it may; keeps what it was given."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[tuple[OperatingPoint | None, list[TokenRow]]] = []
        self.free = threading.Event()
        self.running = threading.Event()
        self.threads: set[int] = set()
        if not held:
            self.free.set()

    def __call__(self, point: OperatingPoint | None, rows: list[TokenRow]) -> list[RowResult]:
        self.threads.add(threading.get_ident())
        self.batches.append((point, rows))
        self.running.set()
        assert self.free.wait(SOON)
        if any(row.input_ids[0] == 13 for row in rows):
            raise ValueError("no luck")
        return [RowResult({"mark": row.input_ids[:1].astype(np.float32)}, ()) for row in rows]

    @property
    def marks(self) -> list[list[int]]:
        return [[int(row.input_ids[0]) for row in rows] for _, rows in self.batches]


def held(**options: Any) -> tuple[Model, RowQueue]:
    """A queue whose model is at a row already, and goes on when it is set free."""
    model = Model(held=True)
    queue = RowQueue(model, **{"batch_tokens": 100, "most_waiting_tokens": 10**6, **options})
    queue.submit([a_row(1, mark=99)])
    assert model.running.wait(SOON)
    return model, queue


def marks_of(future: Future[Ran]) -> list[int]:
    return [int(result.outputs["mark"][0]) for result in future.result(SOON).results]


@settings(deadline=None, max_examples=30)
@given(
    requests=st.lists(st.lists(st.integers(1, 60), max_size=6), min_size=1, max_size=12),
    points=st.lists(st.sampled_from([None, 0.3, 0.7]), min_size=12, max_size=12),
)
def test_every_row_runs_once_and_answers_who_asked(
    requests: list[list[int]], points: list[float | None]
) -> None:
    model, queue = held()
    futures, wanted, number = [], [], 100
    for lengths, point in zip(requests, points, strict=False):
        marks = list(range(number, number + len(lengths)))
        rows = [a_row(length, mark) for length, mark in zip(lengths, marks, strict=True)]
        futures.append(queue.submit(rows, point and OperatingPoint(point)))
        wanted.append((marks, point))
        number += len(lengths)
    assert queue.waiting_tokens == sum(map(sum, requests))
    model.free.set()
    assert [marks_of(future) for future in futures] == [marks for marks, _ in wanted]
    queue.close()
    assert queue.waiting_tokens == 0 and len(model.threads) == 1
    ran = model.batches[1:]
    for point, rows in ran:
        assert len(rows) == 1 or sum(map(len, rows)) <= 100
        at = {number: own for marks, own in wanted for number in marks}
        assert {at[int(row.input_ids[0])] for row in rows} == {point and point.threshold}
    assert sorted(mark for marks in model.marks[1:] for mark in marks) == list(range(100, number))


def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    model, queue = held()
    large = queue.submit([a_row(20, mark) for mark in range(100, 130)])
    small = queue.submit([a_row(20, mark=1)])
    model.free.set()
    assert marks_of(small) == [1] and marks_of(large) == list(range(100, 130))
    assert model.marks[1] == [100, 1, 101, 102, 103]
    queue.close()


def test_rows_of_a_request_that_nobody_waits_for_do_not_run() -> None:
    model, queue = held()
    gone, stays = queue.submit([a_row(10, 5)] * 30), queue.submit([a_row(10, 6)])
    assert gone.cancel()
    model.free.set()
    assert marks_of(stays) == [6]
    queue.close()
    assert model.marks[1:] == [[6]] and queue.waiting_tokens == 0
    with pytest.raises(CancelledError):
        gone.result(0)


def test_a_request_that_is_cancelled_while_it_runs_hurts_nobody() -> None:
    model, queue = held()
    model.running.clear()
    both = [queue.submit([a_row(10, 5)]), queue.submit([a_row(10, 6)])]
    model.free.set()
    while len(model.batches) < 2:
        time.sleep(0.001)
    both[0].cancel()
    assert marks_of(both[1]) == [6]
    queue.close()


def test_a_request_that_waits_too_long_is_told_so() -> None:
    model, queue = held()
    late, patient = queue.submit([a_row(10, 5)], timeout_s=0.01), queue.submit([a_row(10, 6)])
    time.sleep(0.05)
    model.free.set()
    with pytest.raises(DeadlinePassed, match="would wait longer than its deadline"):
        late.result(SOON)
    assert marks_of(patient) == [6]
    queue.close()
    assert model.marks[1:] == [[6]]


def test_a_row_that_fails_fails_its_own_request_alone() -> None:
    model, queue = held()
    futures = [queue.submit([a_row(10, 5)]), queue.submit([a_row(10, 13)] * 15)]
    futures.append(queue.submit([a_row(10, 6)] * 2))
    model.free.set()
    assert marks_of(futures[0]) == [5] and marks_of(futures[2]) == [6, 6]
    with pytest.raises(ValueError, match="no luck"):
        futures[1].result(SOON)
    assert marks_of(queue.submit([a_row(10, 7)])) == [7]  # the owner goes on
    queue.close()
    assert queue.waiting_tokens == 0


def test_more_than_may_wait_is_refused_with_a_time_to_ask_again() -> None:
    model, queue = held(most_waiting_tokens=50)
    waiting = [queue.submit([a_row(50, mark)]) for mark in (1,)]
    with pytest.raises(
        QueueFull, match=r"50 tokens are waiting already, 50 may: .* in 1 s"
    ) as full:
        queue.submit([a_row(1)])
    assert full.value.status == 429 and full.value.retry_after_s == 1.0
    model.free.set()
    assert [marks_of(each) for each in waiting] == [[1]]
    assert marks_of(queue.submit([a_row(500, 2)])) == [2]  # nothing waits: a long row is taken
    queue.close()


def slow_queue(seconds: float, **options: Any) -> tuple[Model, RowQueue]:
    """A queue whose first batch, of 100 tokens, took so long, and whose model is at its second."""
    model = Model(held=True)
    limits = {"batch_tokens": 100, "most_waiting_tokens": 10**6, **options}
    queue = RowQueue(model, **limits)
    first = queue.submit([a_row(100, mark=98)])
    assert model.running.wait(SOON)
    time.sleep(seconds)
    model.free.set()
    first.result(SOON)
    model.free.clear()
    model.running.clear()
    queue.submit([a_row(1, mark=99)])
    assert model.running.wait(SOON)
    return model, queue


def test_what_would_be_late_is_refused_when_it_comes() -> None:
    model, queue = slow_queue(0.5)
    waiting = [queue.submit([a_row(100)], timeout_s=60) for _ in range(4)]
    with pytest.raises(
        QueueFull, match=r"400 tokens .* which take longer than 1 s: ask again in \d+ s"
    ):
        queue.submit([a_row(1)], timeout_s=1)
    patient = queue.submit([a_row(1, 7)], timeout_s=60)
    model.free.set()
    assert [len(marks_of(each)) for each in waiting] == [1] * 4 and marks_of(patient) == [7]
    queue.close()


def test_what_goes_into_the_next_batch_is_taken_however_slow_the_last_was() -> None:
    model, queue = slow_queue(0.5)
    requests = [queue.submit([a_row(50, mark)], timeout_s=0.2) for mark in (1, 2)]
    model.free.set()
    assert [marks_of(each) for each in requests] == [[1], [2]]
    queue.close()


def test_nobody_is_answered_behind_his_deadline() -> None:
    model, queue = slow_queue(1.0)
    soon = queue.submit([a_row(100, 1)], timeout_s=1.4)  # its batch takes a second
    later = queue.submit([a_row(1, 2)], timeout_s=60)
    time.sleep(0.9)
    model.free.set()
    with pytest.raises(DeadlinePassed):
        soon.result(SOON)
    assert marks_of(later) == [2]
    queue.close()


def test_a_request_whose_time_is_up_when_it_comes_does_not_run() -> None:
    model, queue = held(most_waiting_tokens=1000)
    late = queue.submit([a_row(10, 5)], timeout_s=0.0)  # tokenizing took all of it
    patient = queue.submit([a_row(10, 6)])
    model.free.set()
    with pytest.raises(DeadlinePassed):
        late.result(SOON)
    assert marks_of(patient) == [6]
    queue.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    model, queue = held()
    waiting = queue.submit([a_row(30, mark) for mark in range(100, 120)])
    closing = threading.Thread(target=queue.close)
    closing.start()
    while True:
        try:
            queue.submit([a_row(1)])
        except ShuttingDown:
            break
    model.free.set()
    assert marks_of(waiting) == list(range(100, 120))
    closing.join(SOON)
    assert not closing.is_alive()


def test_what_waits_longer_than_the_grace_is_refused() -> None:
    model, queue = held()
    waiting = queue.submit([a_row(10, 5)])
    closing = threading.Thread(target=queue.close, args=(0.05,))
    closing.start()
    with pytest.raises(ShuttingDown):
        waiting.result(SOON)
    model.free.set()
    closing.join(SOON)
    assert not closing.is_alive() and model.marks == [[99]]


def test_no_rows_are_answered_at_once() -> None:
    model, queue = held()
    assert queue.submit([]).result(0).results == []
    model.free.set()
    queue.close()


def test_the_load_chooses_where_requests_run_that_chose_nothing() -> None:
    loads: list[float] = []

    def shed(load: float) -> OperatingPoint | None:
        loads.append(load)
        return OperatingPoint(0.9) if load > 0.4 else None

    model, queue = held(most_waiting_tokens=300, batch_tokens=60, shed=shed)
    chosen = queue.submit([a_row(10, 1)], OperatingPoint(0.2))
    large = queue.submit([a_row(50, mark) for mark in range(100, 104)])
    small = queue.submit([a_row(10, 2)])
    model.free.set()
    assert marks_of(large) == [100, 101, 102, 103] and marks_of(small) == [2]
    points = [queue_of.result(0).point for queue_of in (chosen, large, small)]
    assert points == [OperatingPoint(0.2), OperatingPoint(0.9), OperatingPoint(0.9)]
    late = queue.submit([a_row(10, 3)])
    assert late.result(SOON).point is None
    queue.close()
    ran = [(int(row.input_ids[0]), point) for point, rows in model.batches for row in rows]
    assert {point for mark, point in ran if mark >= 100} == {OperatingPoint(0.9)}  # the load fell
    assert loads[1] == (220 - 60) / 300 and min(loads[2:]) < 0.4


def test_what_will_be_late_is_a_load_too() -> None:
    loads: list[float] = []
    model, queue = held(shed=lambda load: loads.append(load))
    model.running.clear()
    soon = queue.submit([a_row(100), a_row(50)], timeout_s=SOON)
    time.sleep(0.1)
    model.free.set()
    soon.result(SOON)
    queue.close()
    assert 50 * 0.1 / SOON <= loads[1] <= 1.0
