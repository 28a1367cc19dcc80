"""Whether a service that is asked for more than it can give stays right.

    python benchmarks/overload.py BUNDLE --texts FILE.jsonl --requests 100000

A service of the bundle answers few callers first, which tells what it can give. Then many clients
ask for several times as much. Each answer must be the library's own for its text: its tokens,
which of them survived each cut, and its numbers. With ``--shed`` it must be that of the threshold
that the answer names. Everything else must be a refusal, 429 or 503.

Exit code 3: an answer was wrong, lost or no refusal, accepted ones took longer than the deadline
(99 of 100), or the service's memory grew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from math import isclose
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np
from soak import Memory

from trbert_deploy import console, load
from trbert_deploy.commands.options import json_option
from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.reading.examples import read_examples

#: Texts that are asked, in turns.
TEXTS = 200
#: Callers that a service can keep up with, and for how long they tell what it can give.
FEW, SECONDS = 8, 10.0
#: Largest difference of a number from the library's.
TOLERANCE = 1e-4
#: Times the memory after a fifth of the requests.
MEMORY_LIMIT = 1.1
REFUSALS = (429, 503)
#: Seconds in which a service says what it is expected to.
PATIENCE = 120.0


@dataclass
class Counts:
    """What came of requests.

    Attributes:
        right, wrong: answers that are the library's, and others.
        refused: by status, 429 and 503.
        other: statuses that are neither.
        lost: requests without any answer.
        shed: right answers at another threshold than the model's own.
        accepted_ms: of each right answer, from the request on.
    """

    right: int = 0
    wrong: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    other: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    shed: int = 0
    accepted_ms: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return self.right + self.wrong + self.refused.total() + self.other.total() + self.lost


class Answers:
    """The library's answers to some texts, at any threshold.

    Args:
        model: of the bundle.
        texts: no two of them have the same answer.

    Raises:
        DataError: two have: then it could not be told whether answers were crossed.
    """

    def __init__(self, model: Pipeline, texts: Sequence[str]) -> None:
        self._model = model
        self.texts = texts
        self._found: dict[tuple[str, float | None], dict[str, Any]] = {}
        self._lock = threading.Lock()
        encodings = model.tokenizer.encode(list(texts))
        self._tokens = {
            text: encoding.tokens for text, encoding in zip(texts, encodings, strict=True)
        }
        told = {json.dumps(self._of(text, None), sort_keys=True) for text in texts}
        if len(told) < len(texts):
            raise DataError(
                f"{len(texts) - len(told)} of {len(texts)} texts have the answer of another one: "
                "give texts that differ"
            )

    def right(self, text: str, answer: dict[str, Any]) -> bool:
        """Whether a service's answer is the one to this text, at the threshold that it names."""
        (told,) = answer["answers"]
        threshold = answer.get("threshold")
        expected = self._of(text, None if threshold is None else float(threshold))
        return told.pop("tokens") == self._tokens[text] and alike(told, expected)

    def _of(self, text: str, threshold: float | None) -> dict[str, Any]:
        with self._lock:  # the clients' threads ask
            if (text, threshold) not in self._found:
                model = self._model if threshold is None else self._model.at_threshold(threshold)
                (answer,) = model([text], return_kept=True)
                self._found[text, threshold] = json.loads(json.dumps(answer.to_json()))
            return self._found[text, threshold]


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are the same, their numbers nearly so."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def ask(
    port: int,
    answers: Answers,
    clients: int,
    *,
    requests: int | None = None,
    seconds: float = float("inf"),
    rate: float = float("inf"),
    progress: Progress = no_progress,
) -> Counts:
    """Let clients ask, each over a connection of its own.

    Args:
        requests: in all, or for so many seconds.
        rate: requests a second that all of them together send, as far as they can.
    """
    counts, lock, start = Counts(), threading.Lock(), time.perf_counter()
    numbers = iter(range(requests or sys.maxsize))  # whoever has time takes the next

    def be_client(connection: HTTPConnection) -> None:
        for number in numbers:
            wait = start + number / rate - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            if time.perf_counter() - start > seconds:
                break
            text = answers.texts[number % len(answers.texts)]
            one = _ask_once(connection, answers, text)
            with lock:
                _add(counts, one)
                progress("ask", counts.asked, requests)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(clients))
        connections = [HTTPConnection("127.0.0.1", port, timeout=120) for _ in range(clients)]
        for connection in connections:
            stack.callback(connection.close)
        for done in [pool.submit(be_client, each) for each in connections]:
            done.result()
    return counts


def _ask_once(connection: HTTPConnection, answers: Answers, text: str) -> Counts:
    body = json.dumps({"inputs": [text], "return_kept": True})
    start = time.perf_counter()
    try:
        connection.request("POST", "/answers", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        told = response.read()
    except (OSError, HTTPException):
        connection.close()
        return Counts(lost=1)
    spent = 1e3 * (time.perf_counter() - start)
    if response.status in REFUSALS:
        return Counts(refused=Counter([response.status]))
    if response.status != 200:
        return Counts(other=Counter([response.status]))
    answer = json.loads(told)
    if not answers.right(text, answer):
        return Counts(wrong=1)
    return Counts(right=1, shed=int("threshold" in answer), accepted_ms=[spent])


def _add(counts: Counts, one: Counts) -> None:
    counts.right += one.right
    counts.wrong += one.wrong
    counts.refused += one.refused
    counts.other += one.other
    counts.lost += one.lost
    counts.shed += one.shed
    counts.accepted_ms += one.accepted_ms


@dataclass
class Service:
    """The command over loopback.

    Attributes:
        process: that it runs in.
        log: what it writes of itself, to be read.
        port: that it answers at.
    """

    process: subprocess.Popen[bytes]
    log: TextIO
    port: int = 0

    def told(self, what: str) -> str:
        """The next line of the log that says something, as soon as it is there."""
        stop = time.monotonic() + PATIENCE
        while what not in (line := self.log.readline()):
            if not line:
                if self.process.poll() is not None or time.monotonic() > stop:
                    sys.exit(f"error: the service never said {what!r}")
                time.sleep(0.02)
        return line


@contextmanager
def service(bundle: Path, *options: str) -> Iterator[Service]:
    """The command, with one thread and at any port, until it is not needed any more."""
    command = [sys.executable, "-m", "trbert_deploy", "serve", str(bundle), "--port", "0"]
    with (
        tempfile.NamedTemporaryFile() as log,
        Path(log.name).open() as lines,
        subprocess.Popen([*command, "--threads", "1", *options], stderr=log) as process,
    ):
        try:
            started = Service(process, lines)
            started.port = int(started.told("http://").rpartition(":")[2].split()[0])
            yield started
        finally:
            process.terminate()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--texts", "source", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=100_000, show_default=True)
@click.option("--clients", default=64, show_default=True)
@click.option("--times", default=5.0, show_default=True, help="What the service can give.")
@click.option("--waiting-tokens", default=16_384, show_default=True, help="That may wait.")
@click.option("--timeout", default=5, show_default=True, help="Deadline of a request, seconds.")
@click.option("--shed", is_flag=True, help="With --shed quality.")
@json_option
def main(
    bundle: Path,
    source: Path,
    requests: int,
    clients: int,
    times: float,
    waiting_tokens: int,
    timeout: int,
    shed: bool,
    json_path: Path | None,
) -> None:
    """Ask a service of BUNDLE for more than it can give."""
    try:
        model = load(bundle, threads=1)
        examples = read_examples(source, model.task, with_targets=False)
        texts = list(dict.fromkeys(str(each.text) for each in examples))[:TEXTS]
        answers = Answers(model, texts)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    options = ["--timeout", str(timeout), "--max-waiting-tokens", str(waiting_tokens)]
    options += ["--shed", "quality"] * shed
    with service(bundle, *options) as asked, console.progress() as progress:
        few = ask(asked.port, answers, FEW, seconds=SECONDS)
        capacity = few.right / SECONDS
        start = time.perf_counter()
        first = ask(asked.port, answers, clients, requests=requests // 5, rate=times * capacity)
        early = Memory.of(asked.process.pid).rss
        rest = ask(
            asked.port, answers, clients, requests=requests - first.asked, rate=times * capacity,
            progress=progress,
        )  # fmt: skip
        spent, late = time.perf_counter() - start, Memory.of(asked.process.pid).rss
    _add(first, rest)
    p50, p99 = np.percentile(first.accepted_ms or [0.0], [50, 99]).tolist()
    figures = {
        "requests": first.asked,
        "clients": clients,
        "asked_per_s": first.asked / spent,
        "capacity_per_s": capacity,
        "right": first.right,
        "at_another_threshold": first.shed,
        "refused": dict(first.refused),
        "wrong": first.wrong + few.wrong,
        "lost": first.lost + few.lost,
        "other_statuses": dict(first.other + few.other),
        "accepted_p50_ms": p50,
        "accepted_p99_ms": p99,
        "deadline_ms": 1e3 * timeout,
        "memory_mib": [early, late],
    }
    for name, value in figures.items():
        told = f"{value:.1f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' ')}: {told}")
    if json_path is not None:
        write_json(json_path, {"machine": describe_machine(), **figures})
    bad = figures["wrong"] or figures["lost"] or figures["other_statuses"]
    if bad or first.asked < requests or p99 > 1e3 * timeout or late > MEMORY_LIMIT * early:
        sys.exit(3)


if __name__ == "__main__":
    main()
