"""Progress as lines: which are due, what they say, and that the heartbeat ends with its context."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trbert_deploy.plain_progress import MOST_SILENCE, PlainProgress, plain_progress


class Log:
    """A ``PlainProgress`` on a clock that the test moves; ``new`` are the lines since the last."""

    def __init__(self, title: str = "") -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.progress = PlainProgress(self.lines.append, title, lambda: self.now)

    def tell(self, name: str, done: int, total: int | None, *, after: float = 0.0) -> list[str]:
        self.now += after
        self.progress.tell(name, done, total)
        return self.new()

    def wait(self, seconds: float) -> list[str]:
        """The heartbeat alone, every second."""
        for _ in range(round(seconds)):
            self.now += 1
            self.progress.beat()
        return self.new()

    def end(self) -> list[str]:
        self.progress.end()
        return self.new()

    def new(self) -> list[str]:
        lines, self.lines[:] = [*self.lines], []
        return lines


def test_short_steps_are_silent() -> None:
    log = Log()
    for done in range(1, 10):
        assert log.tell("export", done, 9, after=1) == []
    assert log.end() == []


def test_a_step_is_told_of_after_10_seconds_then_every_30_and_at_its_end() -> None:
    log = Log("2/6 train")
    assert log.tell("joint  loss 0.500", 20, 350) == []
    assert log.tell("joint  loss 0.450", 40, 350, after=9) == []
    first = "2/6 train  joint  loss 0.412  14 %  (50 of 350)  1:40 left"
    assert log.tell("joint  loss 0.412", 50, 350, after=1) == [first]
    assert log.tell("joint  loss 0.400", 109, 350, after=29) == []
    second = "2/6 train  joint  loss 0.390  31 %  (110 of 350)  1:47 left"
    assert log.tell("joint  loss 0.390", 110, 350, after=1) == [second]
    last = "2/6 train  joint  loss 0.300  100 %  (350 of 350)  in 1:00"
    assert log.tell("joint  loss 0.300", 350, 350, after=20) == [last]
    assert log.tell("validation", 1, 5) == log.end() == []


def test_one_slow_call_is_told_of_by_the_heartbeat() -> None:
    log = Log()
    log.tell("build segment_0", 0, 3)
    assert log.wait(40) == [
        "build segment_0  0 %  (0 of 3)  for 0:10",
        "build segment_0  0 %  (0 of 3)  for 0:40",
    ]
    assert log.tell("build segment_1", 1, 3, after=10) == []
    # The estimate grows while nothing more gets done.
    assert log.wait(20) == ["build segment_1  33 %  (1 of 3)  2:20 left"]


def test_many_short_steps_are_not_silent_for_long() -> None:
    log = Log()
    lines = []
    for number in range(24):
        for done in (1, 2, 3):
            lines += log.tell(f"validation {number}", done, 3, after=2)
    assert len(lines) == 24 * 6 // MOST_SILENCE
    assert all(line.startswith("validation") and "33 %" not in line for line in lines)


def test_an_unknown_total_shows_count_and_rate() -> None:
    log = Log()
    log.tell("read x.jsonl", 0, None)
    assert log.tell("read x.jsonl", 40_000, None, after=10) == [
        "read x.jsonl  40,000  (4,000 a second)"
    ]
    log.tell("read x.jsonl", 50_000, None, after=5)
    assert log.tell("tokenize", 0, 10) == ["read x.jsonl  50,000  (3,333 a second)"]
    slow = Log()
    slow.tell("texts", 0, None)
    assert slow.tell("texts", 2, None, after=40) == ["texts  2  (3.0 a minute)"]
    assert slow.tell("texts", 200, None, after=60) == ["texts  200  (2.0 a second)"]


def test_an_unknown_total_without_a_count_shows_the_time() -> None:
    log = Log()
    log.tell("read bundle", 0, None)
    log.wait(5)
    log.tell("open graphs", 0, None)  # another step, though nothing was done of either
    assert log.wait(9) == []
    assert log.wait(3) == ["open graphs  for 0:10"]


def test_what_is_finished_is_told_of_as_finished_while_nothing_else_is_told() -> None:
    log = Log()
    log.tell("trace", 1, 2)
    assert log.tell("trace", 2, 2, after=20) == []  # it was over before a line was due
    assert log.wait(10) == ["trace  100 %  (2 of 2)  in 0:20, 0:10 ago"]


def test_a_step_that_goes_on_behind_another_counts_its_own_time() -> None:
    log = Log()
    log.tell("joint", 100, 200)
    log.tell("validation", 1, 2, after=5)
    assert log.tell("joint", 101, 200, after=9) == []
    log.wait(9)
    assert log.tell("joint", 111, 200, after=1) == ["joint  55 %  (111 of 200)  1:29 left"]


def test_fewer_done_than_before_is_another_step() -> None:
    log = Log()
    log.tell("validation", 1, 3)
    log.tell("validation", 2, 3, after=6)
    assert log.tell("validation", 1, 3, after=3) == []
    assert log.tell("validation", 2, 3, after=6) == []


def test_a_step_that_stops_half_way_ends_as_it_stands() -> None:
    log = Log()
    log.tell("joint", 0, 200)
    log.tell("joint", 10, 200, after=11)
    log.tell("joint", 20, 200, after=9)
    assert log.end() == ["joint  10 %  (20 of 200)  3:00 left"]
    assert log.end() == []  # it was said


def test_long_times_and_odd_counts() -> None:
    log = Log()
    log.tell("a\x1b[2K\nb", 1, 100_001)
    assert log.tell("a\x1b[2K\nb", 11, 100_001, after=10) == [
        "a [2K b  0 %  (11 of 100,001)  27:46:30 left"
    ]
    log.tell("more than was counted", 4, 3)
    assert log.wait(30) == ["more than was counted  133 %  (4 of 3)  in 0:00, 0:30 ago"]
    log.tell("nothing", 0, 0)
    assert log.wait(30) == ["nothing  100 %  (0 of 0)  in 0:00, 0:30 ago"]


@contextmanager
def beating(lines: list[str]) -> Iterator[threading.Event]:
    """A context on a clock that jumps; the yielded event is set when a line was printed."""
    printed = threading.Event()

    def write(line: str) -> None:
        lines.append(line)
        printed.set()

    clock = iter(range(0, 10**9, 60))
    with plain_progress(write, clock=lambda: next(clock), pause=0.001) as tell:
        tell("slow", 0, None)
        yield printed


def test_the_heartbeat_prints_and_ends_with_its_context() -> None:
    lines: list[str] = []
    before = threading.active_count()
    with beating(lines) as printed:
        printed.clear()
        assert printed.wait(30)
    assert threading.active_count() == before
    assert lines[0].startswith("slow  for ")


def test_the_heartbeat_ends_on_an_exception_and_nothing_is_printed_behind_it() -> None:
    lines: list[str] = []
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), beating(lines) as printed:
        assert printed.wait(30)
        raise KeyboardInterrupt
    assert threading.active_count() == before
