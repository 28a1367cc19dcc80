from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trbert_deploy import replacing
from trbert_deploy.errors import StorageError
from trbert_deploy.files import require_directory, staged_directory, staged_file
from trbert_deploy.replacing import STAGING_PREFIX, exchange, is_empty


class Stop(Exception):
    """What goes wrong in the middle."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def make(target: Path, name: str) -> None:
    with staged_directory(target) as staging:
        (staging / name).write_text(name)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory that is to be replaced."""
    make(tmp_path / "d", "old")
    return tmp_path / "d"


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which two directories cannot change places."""

    def refuse(*_: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(replacing, "exchange", refuse)


def test_two_directories_change_places(tmp_path: Path, target: Path) -> None:
    make(tmp_path / "e", "new")
    exchange(tmp_path / "e", target)
    assert names(target) == ["new"] and names(tmp_path / "e") == ["old"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "missing", target)


def test_a_reader_always_finds_a_directory(tmp_path: Path, target: Path) -> None:
    missed: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            missed.extend([1] * (not target.is_dir()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        make(target, "new")
    done.set()
    reader.join()
    assert not missed
    assert names(tmp_path) == ["d"]


@pytest.mark.usefixtures("without_exchange")
def test_where_nothing_can_be_exchanged_two_renames_do(tmp_path: Path, target: Path) -> None:
    make(target, "new")
    assert names(target) == ["new"] and names(tmp_path) == ["d"]


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_an_interrupt_between_two_renames_loses_nothing(
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: type[BaseException],
    place: str,
) -> None:
    rename = Path.rename
    count = 0

    def interrupted(path: Path, to: Path) -> Path:
        nonlocal count
        count += 1  # the first one finds the place taken
        if (place, count) == ("before", 2) or (place, count) == ("between", 3):
            raise problem
        result = rename(path, to)
        if (place, count) == ("after", 3):
            raise problem
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(problem):
        make(target, "new")
    assert names(target) == (["new"] if place == "after" else ["old"])
    assert names(tmp_path) == ["d"]


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("act", [lambda target: make(target, "new"), require_directory])
def test_what_a_killed_process_moved_aside_comes_back(
    tmp_path: Path, target: Path, act: Callable[..., None]
) -> None:
    target.rename(tmp_path / ".d.trbert-old")
    if act is require_directory:
        require_directory(target, "bundle", "export")
        assert names(target) == ["old"]
    else:
        with pytest.raises(Stop), staged_directory(target):
            assert names(target) == ["old"]
            raise Stop
    assert names(tmp_path) == ["d"]


@pytest.mark.usefixtures("without_exchange")
def test_what_a_killed_process_did_not_remove_goes(tmp_path: Path, target: Path) -> None:
    make(tmp_path / ".d.trbert-old", "older")
    make(target, "new")
    assert names(target) == ["new"] and names(tmp_path) == ["d"]


def test_missing_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        require_directory(tmp_path / "no", "bundle", "export")


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY])
def test_a_refused_exchange_leaves_the_old(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(replacing, "exchange", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        make(target, "new")
    assert names(target) == ["old"] and names(tmp_path) == ["d"]


def test_a_writer_whose_directory_was_taken_for_a_dead_one_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may come between its making and its locking."""
    hold, removed = replacing.hold, []

    def late(directory: Path, **options: bool) -> AbstractContextManager[bool]:
        if not removed:
            removed.append(directory)
            directory.rmdir()
        return hold(directory, **options)

    monkeypatch.setattr(replacing, "hold", late)
    make(tmp_path / "d", "new")
    assert removed and names(tmp_path) == ["d"]


def test_many_writers_do_not_hinder_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with staged_file(tmp_path / f"{number % 2}") as staging:
                staging.write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert names(tmp_path) == ["0", "1"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"whole"}


KILLED = """
import os, signal, sys
from pathlib import Path
from trbert_deploy.files import staged_directory, staged_file
kind = {"file": staged_file, "directory": staged_directory}[sys.argv[1]]
with kind(Path(sys.argv[2])) as staging:
    (staging / "half" if staging.is_dir() else staging).write_text("half")
    print("staged", flush=True)
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def start(kind: str, path: Path, how: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, kind, path, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"staged\n"
    return process


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_next_writer_removes_what_the_dead_left_and_nothing_of_the_living(
    tmp_path: Path, kind: str
) -> None:
    with start(kind, tmp_path / "dead", "killed") as dead:
        assert dead.wait() == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(STAGING_PREFIX) and is_empty(tmp_path)
    with start(kind, tmp_path / "living", "waits") as living:
        (own,) = names(tmp_path)
        assert own != left
        with staged_file(tmp_path / "a") as staging:
            staging.write_text("a")
        assert names(tmp_path) == [own, "a"]
        living.communicate()
    assert names(tmp_path) == ["a", "living"]
    assert not is_empty(tmp_path)
