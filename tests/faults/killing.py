"""Kills a process at each of its system calls that change files (strace injects the signal)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: All that may change a file or a directory; those that open are looked at for how they do.
OPENING = ("open", "openat", "openat2", "creat")
CHANGING = (
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile"),
    *("splice", "ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync_file_range"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    *("link", "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "fchmodat2"),
    *("chown", "fchown", "lchown", "fchownat", "utimensat", "msync"),
)
_CALL = re.compile(r"^(\d+)\s+(\w+)\(")
_HIDDEN = re.compile(r"\.trbert-staging-\w+/")
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")


def strace_works() -> bool:
    """Whether strace is here, and allowed to inject."""
    if shutil.which("strace") is None:
        return False
    killed = ["strace", "-qq", "-o", os.devnull, "-e", "inject=mkdir,mkdirat:signal=KILL"]
    done = subprocess.run([*killed, "mkdir", "/nowhere/at/all"], capture_output=True, check=False)
    return done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


@dataclass(frozen=True)
class Point:
    """A system call to be killed at, before it is done.

    Attributes:
        call: its name.
        number: how often it was called until then, this time included.
        line: what strace showed.
    """

    call: str
    number: int
    line: str

    @property
    def shows(self) -> bool:
        """Whether it renames something to a place outside of what is being made."""
        places = re.findall(r'"([^"]*)"', self.line)
        return self.call.startswith("rename") and not _HIDDEN.search(places[-1])


class Victim:
    """A process of ``actions.py`` that forks one for each trial."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._log = (scratch / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(Path(__file__).with_name("actions.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env={
                **os.environ,
                "TMPDIR": str(scratch),  # nothing is left outside
                "HF_DATASETS_CACHE": str(scratch),
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a fork
            },
        )

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with self._process, self._log:
            self._process.stdin.close()

    def prepare(self, key: str, action: str, arguments: dict[str, Any]) -> None:
        """Call an action with these arguments ``key``, and do it once, in a place of its own."""
        self._ask(json.dumps([key, action, arguments, str(self._scratch / f"warm-{key}")]))
        assert self._answer() == "ready", self.log()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def run(self, key: str, place: Path) -> None:
        """Do an action in ``place``, to its end."""
        self._ask(json.dumps([key, str(place)]))
        self._answer()
        self._ask("")
        status = self._answer()
        assert status == "0", self.log()

    def points(self, key: str, place: Path) -> list[Point]:
        """Do an action, and list the calls that change something in ``place``."""
        traced = self._scratch / "strace"
        calls = ",".join(f"?{call}" for call in (*OPENING, *CHANGING))  # not every strace knows all
        status = self._traced(key, place, ["-y", "-o", str(traced), "-e", f"trace={calls}"])
        assert status == 0, self.log()
        return list(_changes(traced.read_text().splitlines(), place))

    def kill(self, key: str, place: Path, point: Point) -> None:
        """Begin an action in ``place``, and kill it at ``point``."""
        inject = f"inject={point.call}:signal=KILL:when={point.number}"
        traced = ["-o", os.devnull, "-e", f"trace={point.call}", "-e", inject]
        status = self._traced(key, place, traced)
        assert status == -signal.SIGKILL, f"{point} was not reached\n{self.log()}"

    def _traced(self, key: str, place: Path, options: list[str]) -> int:
        self._ask(json.dumps([key, str(place)]))
        child = self._answer()
        command = ["strace", "-f", "-p", child, *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            told = tracer.stderr.readline()
            self._ask("")
            status = self._answer()
            assert "attached" in told, told
            tracer.stderr.read()
        return int(status)


def _changes(lines: list[str], place: Path) -> Iterator[Point]:
    """The calls of the main thread that change something in ``place``, numbered by their names."""
    counted: Counter[str] = Counter()
    main = _CALL.match(lines[0])
    assert main is not None
    named = re.compile(re.escape(str(place)) + r"[/>\"]")
    for line in lines:
        match = _CALL.match(line)
        if match is None:
            continue
        thread, call = match.groups()
        inside = named.search(line) is not None
        opened = call in OPENING
        changes = inside and (not opened or any(flag in line for flag in _WRITES))
        if thread != main[1]:
            assert not changes, f"a thread of its own changes files: {line}"
            continue
        counted[call] += 1
        if changes:
            yield Point(call, counted[call], line)


def some(points: list[Point], count: int) -> list[Point]:
    """Both sides of so many renames, and so many others, spread over all."""
    renames = [index for index, point in enumerate(points) if point.shows]
    chosen = {index + side for index in spread(renames, count) for side in (0, 1)}
    chosen |= {*spread(range(len(points)), count)}
    return [points[index] for index in sorted(chosen) if index < len(points)]


def spread(items: Sequence[int], count: int) -> list[int]:
    """Some of the items, evenly, the first and the last among them."""
    last = len(items) - 1
    return sorted({items[round(part * last / (count - 1))] for part in range(count)})
