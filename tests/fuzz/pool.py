"""Processes that judge cases, so that one which crashes or hangs is found, and what it was at."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent
#: Seconds that one case may take, on a machine that does other things too.
PATIENCE = 60.0


@dataclass
class Verdicts:
    """What came of the cases.

    Attributes:
        outcomes: (kind, outcome) -> cases.
        failures: exception and line, or end of the process -> what says of each failed case what
            it was and how to repeat it.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def add(self, verdict: Mapping[str, Any]) -> None:
        self.outcomes[verdict.get("kind", "?"), verdict["outcome"]] += 1
        if verdict["outcome"] == "failed":
            told = (
                f"case {verdict['number']} ({verdict.get('kind', '?')}): {verdict['why']}\n"
                f"    make fuzz ARGS=--fuzz-case={verdict['number']}"
            )
            self.failures.setdefault(verdict.get("group", verdict["why"]), []).append(told)

    def __str__(self) -> str:
        return "\n".join(
            f"{len(told)} like {told[0]}" for told in sorted(self.failures.values(), key=len)
        )


class Worker:
    """A process of ``fuzz.worker``, at one case at a time."""

    def __init__(self, originals: Mapping[str, Path], scratch: Path, program: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        bundles = Path(tempfile.mkdtemp(dir=scratch)) / "bundles"
        named = [f"{name}={path}" for name, path in originals.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, str(bundles), *named],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(PACKAGE)])},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        self.case: int | None = None
        self._since = 0.0
        if self.stdout.readline() != b"ready\n":
            problem = RuntimeError(f"the worker did not start: {self.last_words()}")
            self.end()
            raise problem

    def judge(self, case: int) -> None:
        self.case, self._since = case, time.monotonic()
        self._stdin.write(b"%d\n" % case)
        self._stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of its case; a failure if that ended the process."""
        line = self.stdout.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        return self._failure(f"the process ended with status {self._process.wait()}")

    def overdue(self) -> dict[str, Any] | None:
        """A failure if its case takes too long."""
        late = time.monotonic() - self._since > PATIENCE
        return self._failure(f"no end after {PATIENCE:.0f} s") if late else None

    def _failure(self, why: str) -> dict[str, Any]:
        return {
            "number": self.case,
            "outcome": "failed",
            "why": f"{why}: {self.last_words()}",
            "group": why,
        }

    def last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self.stdout, self._errors):
            stream.close()


def judge_all(
    cases: Iterable[int],
    originals: Mapping[str, Path],
    scratch: Path,
    workers: int,
    progress: Callable[[Verdicts], None] = lambda verdicts: None,
    program: str = "fuzz.worker",
) -> Verdicts:
    """Judge cases in so many processes; one that ends or hangs fails its case, and is replaced.

    Args:
        program: the module that they run.
    """
    verdicts, waiting = Verdicts(), iter(cases)
    busy: list[Worker] = []

    def employ() -> None:
        """Another process at the next case, if there is one."""
        case = next(waiting, None)
        if case is not None:
            busy.append(Worker(originals, scratch, program))
            busy[-1].judge(case)

    try:
        for _ in range(workers):
            employ()
        while busy:
            ready, _, _ = select.select([worker.stdout for worker in busy], [], [], 1.0)
            for worker in list(busy):
                verdict = worker.answer() if worker.stdout in ready else worker.overdue()
                if verdict is None:
                    continue
                verdicts.add(verdict)
                progress(verdicts)
                case = next(waiting, None) if "kind" in verdict else None
                if case is not None:
                    worker.judge(case)
                else:
                    busy.remove(worker)
                    worker.end()
                    employ()
    finally:
        for worker in busy:
            worker.end()
    return verdicts
