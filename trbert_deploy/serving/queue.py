"""The queue in front of a model: rows of many requests go on together.

One thread owns the model. While it runs a batch, requests wait; the next batch is made of whatever
waits when it is done, up to a number of tokens. The chain regroups its rows by length before every
segment (``Chain``), so that rows of different requests share batches at every cut.

Rows are taken from the waiting requests in turn, one of each: a request of many rows does not hold
up those behind it.

A request that chose no operating point gets one when its first row is taken, by how much waits
then; its other rows run at the same.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil

from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.serving.refusals import DeadlinePassed, QueueFull, ShuttingDown

#: (operating point, or None for the model's own; rows) -> their results, in order.
Run = Callable[[OperatingPoint | None, list[TokenRow]], list[RowResult]]


@dataclass(frozen=True)
class Ran:
    """What came of a request's rows.

    Attributes:
        results: one per row, in order.
        point: at which they ran; the model's own where None.
        began: when the first of them was taken, on the monotonic clock, in seconds.
    """

    results: list[RowResult]
    point: OperatingPoint | None
    began: float


@dataclass(eq=False)
class _Request:
    """Rows that wait together.

    Attributes:
        point: at which they are to run, or do as soon as the first is taken.
        rows: all of them.
        came, began, deadline: on the monotonic clock, in seconds: when they came, when the first
            was taken, when nobody wants them any more.
        future: gets the results.
        taken: how many have been taken.
        results: of those that have run, by place.
    """

    point: OperatingPoint | None
    rows: Sequence[TokenRow]
    came: float
    deadline: float
    future: Future[Ran]
    taken: int = 0
    began: float = 0.0
    results: dict[int, RowResult] = field(default_factory=dict)

    @property
    def waiting_tokens(self) -> int:
        return sum(map(len, self.rows[self.taken :]))

    def fail(self, problem: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(problem)

    def complete(self) -> None:
        if self.future.set_running_or_notify_cancel():
            results = [self.results[place] for place in range(len(self.rows))]
            self.future.set_result(Ran(results, self.point, self.began))


#: A row that was taken: whose, and which of its rows.
_Taken = tuple[_Request, int]
#: What a batch counts for once the next one has run.
_FADES = 0.8
#: Times what a batch should take: some take longer, and answers are on their way for a while, too.
_AT_WORST = 1.3


class _Pace:
    """How long a token took lately; the older a batch, the less it counts."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    def note(self, seconds: float, tokens: int) -> None:
        """A batch of so many tokens took so long."""
        self._seconds = seconds + _FADES * self._seconds
        self._tokens = tokens + _FADES * self._tokens

    def seconds(self, tokens: int) -> float:
        """That so many tokens will take; 0 before anything ran."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class RowQueue:
    """Runs rows of requests that wait, as many at a time as a batch has tokens.

    Args:
        run: runs rows; called by one thread alone.
        batch_tokens: of one run; a longer row runs alone.
        most_waiting_tokens: of all rows that wait; a request that comes when so many wait, or so
            many that its turn would come behind its deadline, is refused.
        shed: where requests run that chose no point, by the load: from 0 to 1, the share of what
            may wait that waits beyond the batch, or the share of its time that this takes a
            request, if that is more; the model's own point where it says None.
        waited: told the seconds that a request waited before its first row runs.
    """

    def __init__(
        self,
        run: Run,
        batch_tokens: int,
        most_waiting_tokens: int,
        shed: Callable[[float], OperatingPoint | None] = lambda load: None,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._run = run
        self._shed = shed
        self._waited = waited
        self._batch_tokens = batch_tokens
        self._most_waiting_tokens = most_waiting_tokens
        self._changed = threading.Condition()
        self._waiting: dict[_Request, None] = {}  # in the order in which they came
        self._waiting_tokens = 0
        self._pace = _Pace()
        self._closed = False
        self._owner = threading.Thread(target=self._own, name="model", daemon=True)
        self._owner.start()

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the rows that wait."""
        return self._waiting_tokens

    def submit(
        self,
        rows: Sequence[TokenRow],
        point: OperatingPoint | None = None,
        timeout_s: float = float("inf"),
    ) -> Future[Ran]:
        """Let rows run as soon as it is their turn.

        Args:
            point: to run at; where None, as the load has it.
            timeout_s: when nobody wants the results any more.

        Returns:
            What comes of them. If it is cancelled, rows that still wait do not run.

        Raises:
            QueueFull: too much waits.
            ShuttingDown: it is closed.
        """
        now = time.monotonic()
        request = _Request(point, rows, now, now + timeout_s, Future())
        with self._changed:
            if self._closed:
                raise ShuttingDown("the service is shutting down: ask another one")
            self._require_room(request.waiting_tokens, timeout_s)
            if not rows:
                request.began = now
                request.complete()
                return request.future
            self._waiting[request] = None
            self._waiting_tokens += request.waiting_tokens
            self._changed.notify()
        return request.future

    def _require_room(self, tokens: int, timeout_s: float) -> None:
        """Refuse a request that would wait in vain.

        Raises:
            QueueFull: too much waits already.
        """
        waiting = self._waiting_tokens
        ahead = self._pace.seconds(waiting)
        if waiting and waiting + tokens > self._most_waiting_tokens:
            problem, wait = f"{self._most_waiting_tokens:,} may", ahead
        # What takes part in the next batch is not late, and says little of the pace.
        elif waiting > self._batch_tokens and ahead > timeout_s:
            problem, wait = f"which take longer than {round(timeout_s, 1):g} s", ahead - timeout_s
        else:
            return
        wait = max(1.0, wait)
        raise QueueFull(
            f"{waiting:,} tokens are waiting already, {problem}: ask again in {ceil(wait)} s", wait
        )

    def close(self, grace_s: float = float("inf")) -> None:
        """Take no more, answer what waits, and end; what waits longer than that is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._owner.join(None if grace_s == float("inf") else grace_s)
        with self._changed:
            for request in self._waiting:
                request.fail(ShuttingDown("the service is shutting down: ask another one"))
            self._waiting.clear()
            self._waiting_tokens = 0
        self._owner.join()

    def _own(self) -> None:
        """Run batch after batch."""
        while batch := self._next_batch():
            start = time.monotonic()
            problem = self._try(batch)
            tokens = sum(len(request.rows[place]) for request, place in batch)
            self._pace.note(time.monotonic() - start, tokens)
            if problem is not None:
                self._after_failure(batch, problem)

    def _try(self, batch: Sequence[_Taken]) -> Exception | None:
        """Run rows and note what comes of them, or say why that failed."""
        rows = [request.rows[place] for request, place in batch]
        try:
            results = self._run(batch[0][0].point, rows)
        except Exception as problem:  # noqa: BLE001 - goes to whoever asked; the owner goes on
            return problem
        for (request, place), result in zip(batch, results, strict=True):
            request.results[place] = result
            if len(request.results) == len(request.rows):
                request.complete()
        return None

    def _next_batch(self) -> list[_Taken]:
        """The rows that run next, all at one operating point; none when it is closed."""
        with self._changed:
            while True:
                self._leave()
                if self._waiting:
                    return self._take()
                if self._closed:
                    return []
                self._changed.wait()

    def _leave(self) -> None:
        """Let requests go that nobody waits for any more, or will when the next batch is done."""
        now = time.monotonic()
        runs = self._pace.seconds(min(self._waiting_tokens, self._batch_tokens)) * _AT_WORST
        for request in list(self._waiting):
            # A pace may be wrong: nobody is sent away who has not waited for half of his time.
            late = now + min(runs, (request.deadline - request.came) / 2) >= request.deadline
            if late:
                problem = "the request would wait longer than its deadline"
                request.fail(DeadlinePassed(problem, retry_after_s=1.0))
            if late or request.future.cancelled():
                self._remove(request)

    def _remove(self, request: _Request) -> None:
        del self._waiting[request]
        self._waiting_tokens -= request.waiting_tokens

    def _take(self) -> list[_Taken]:
        """One row of each request in turn, until a batch is full."""
        first = next(iter(self._waiting))
        usual = self._shed(self._load(first))

        def point_of(request: _Request) -> OperatingPoint | None:
            return request.point if request.taken else request.point or usual

        point = point_of(first)
        together = deque(request for request in self._waiting if point_of(request) == point)
        taken: list[_Taken] = []
        tokens = 0
        while together:
            request = together.popleft()
            row = request.rows[request.taken]
            if taken and tokens + len(row) > self._batch_tokens:
                break
            if not request.taken:
                request.point, request.began = point, time.monotonic()
                self._waited(request.began - request.came)
            taken.append((request, request.taken))
            tokens += len(row)
            request.taken += 1
            self._waiting_tokens -= len(row)
            if request.taken < len(request.rows):
                together.append(request)
            else:
                del self._waiting[request]
        return taken

    def _load(self, first: _Request) -> float:
        """How far what has to wait for the next batch is from what cannot wait, from 0 to 1."""
        tokens = max(0, self._waiting_tokens - self._batch_tokens)
        share = tokens / self._most_waiting_tokens
        seconds = self._pace.seconds(tokens)
        return min(1.0, max(share, seconds / (first.deadline - first.came)))

    def _after_failure(self, batch: Sequence[_Taken], problem: Exception) -> None:
        """Run the requests of a batch that failed each for itself: one may have been the reason."""
        requests = list(dict.fromkeys(request for request, _ in batch))
        for request in requests:
            own = [taken for taken in batch if taken[0] is request]
            found = problem if len(requests) == 1 else self._try(own)
            if found is not None:
                with self._changed:
                    if request in self._waiting:
                        self._remove(request)
                request.fail(found)
