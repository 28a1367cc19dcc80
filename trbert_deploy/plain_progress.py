"""Progress as plain lines, for a log or a file: no bar, no control characters.

policy  loss 0.412  34 %  (120 of 350)  3:10 left
read reviews.jsonl  120,000  (4,000 a second)
open graphs  for 0:40
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from trbert_deploy.progress import Progress

#: Seconds that a step runs before its first line.
FIRST_AFTER = 10.0
#: Most seconds without a line, be it one long step or many short ones.
MOST_SILENCE = 30.0
#: Seconds between two looks of the heartbeat.
_BEAT = 1.0


@dataclass(frozen=True)
class _Step:
    """What is being done, and since when.

    Attributes:
        done, total: as last told; an unknown total is None.
        first_done: when the step began: what was done before says nothing of its speed.
        start, told: seconds on the clock: when it began, and when it was told of last.
        printed: a line of it was printed.
        is_current: the last line has what was told last.
    """

    name: str
    done: int
    total: int | None
    first_done: int
    start: float
    told: float
    printed: bool = False
    is_current: bool = False

    @property
    def is_finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def goes_on(self, name: str, done: int, total: int | None) -> bool:
        """Whether what is told now is of this step."""
        begins = done < self.done or (done == 0 and name != self.name)
        return total == self.total and not begins and not self.is_finished

    def line(self, now: float) -> str:
        """The step as it stands, on one line."""
        spent, made = now - self.start, self.done - self.first_done
        if self.total is None:
            if not made:
                return f"{self.name}  for {_clock(spent)}"
            return f"{self.name}  {self.done:,}  ({_rate(made / max(spent, 1e-9))})"
        share = self.done / self.total if self.total else 1.0
        head = f"{self.name}  {int(100 * share)} %  ({self.done:,} of {self.total:,})"
        if self.is_finished:
            idle = now - self.told
            ago = f", {_clock(idle)} ago" if idle >= 1 else ""
            return f"{head}  in {_clock(self.told - self.start)}{ago}"
        if not made:
            return f"{head}  for {_clock(spent)}"
        return f"{head}  {_clock(spent / made * (self.total - self.done))} left"


class PlainProgress:
    """Turns what is told into lines: which ones are due is decided here, on any clock.

    Args:
        write: takes a line without its end.
        title: stands before every step.
        clock: seconds since whenever.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        title: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._title = title
        self._clock = clock
        self._lock = threading.Lock()
        self._step: _Step | None = None
        self._last_line = clock()

    def tell(self, name: str, done: int, total: int | None) -> None:
        """Of a step (see ``Progress``); another total, or fewer done, begins another one."""
        name = f"{self._title}  {name}" if self._title else name
        name = "".join(letter if letter.isprintable() else " " for letter in name)
        with self._lock:
            now, step = self._clock(), self._step
            if step is not None and step.goes_on(name, done, total):
                step = replace(step, name=name, done=done, told=now, is_current=False)
            else:
                self._end()
                step = _Step(name, done, total, done, now, now)
            self._step = step
            if self._is_due(step, now) or (step.is_finished and step.printed):
                self._print(step, now)

    def beat(self) -> None:
        """Print what was told last if a line is due."""
        with self._lock:
            now = self._clock()
            if self._step is not None and self._is_due(self._step, now):
                self._print(self._step, now)

    def end(self) -> None:
        """Nothing more will be told."""
        with self._lock:
            self._end()

    def _is_due(self, step: _Step, now: float) -> bool:
        begun = not step.printed and not step.is_finished and now - step.start >= FIRST_AFTER
        return begun or now - self._last_line >= MOST_SILENCE

    def _end(self) -> None:
        """The last line of a step that had some."""
        if self._step is not None and self._step.printed and not self._step.is_current:
            self._print(self._step, self._clock())

    def _print(self, step: _Step, now: float) -> None:
        self._write(step.line(now))
        self._last_line = now
        self._step = replace(step, printed=True, is_current=True)


@contextmanager
def plain_progress(
    write: Callable[[str], None],
    title: str = "",
    clock: Callable[[], float] = time.monotonic,
    pause: float = _BEAT,
) -> Iterator[Progress]:
    """Lines about what the yielded callback is told, and none once the context has ended.

    A thread looks every ``pause`` seconds whether one is due, so that a step of one long call is
    told of too.
    """
    lines = PlainProgress(write, title, clock)
    ended = threading.Event()

    def heartbeat() -> None:
        while not ended.wait(pause):
            lines.beat()

    thread = threading.Thread(target=heartbeat, name="progress", daemon=True)
    thread.start()
    try:
        yield lines.tell
    finally:
        ended.set()
        thread.join()
    lines.end()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rate(per_second: float) -> str:
    if per_second >= 10:
        return f"{per_second:,.0f} a second"
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{60 * per_second:.1f} a minute"
