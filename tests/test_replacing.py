from __future__ import annotations

import ctypes
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


def refusing(number: int) -> Callable[..., None]:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_failed_exchange_says_why_and_of_what(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    ctypes.set_errno(0)
    with pytest.raises(FileNotFoundError) as caught:
        exchange(tmp_path / "there", tmp_path / "missing")
    expected = (errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "missing"))
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == expected


def test_directories_are_exchanged_by_relative_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, name).touch()
    exchange(Path("a"), Path("b"))
    assert Path("a", "b").exists() and Path("b", "a").exists()


class Library:
    """A system's library, which notes its calls."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[object, ...]] = []
        for name in names:
            setattr(self, name, lambda *arguments: self.calls.append(arguments))


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_each_system_has_its_own_call_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    names = {"darwin": ("renamex_np", "renameat2")}.get(platform, ())
    library = Library(*names)
    monkeypatch.setattr(replacing.sys, "platform", platform)
    monkeypatch.setattr(replacing.ctypes, "CDLL", lambda name, use_errno: library)
    first, second = tmp_path / "a", tmp_path / "b"
    if names:
        exchange(first, second)
        assert library.calls == [(os.fsencode(first), os.fsencode(second), 2)]
        return
    if platform == "win32":
        monkeypatch.setattr(replacing.ctypes, "CDLL", lambda *name: pytest.fail("opened"))
    with pytest.raises(OSError) as caught:
        exchange(first, second)
    expected = (errno.ENOSYS, os.strerror(errno.ENOSYS), str(second))
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == expected


def test_everything_in_a_tree_is_kept_through_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").touch()
    kept: list[Path] = []

    def note(handle: int) -> None:
        for path in (tmp_path, *tmp_path.rglob("*")):
            if os.path.samestat(path.stat(), os.fstat(handle)):
                kept.append(path)

    monkeypatch.setattr("os.fsync", note)
    replacing.sync_tree(tmp_path)
    assert kept == [tmp_path / "inner" / "file", tmp_path / "inner", tmp_path]


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EINVAL, True), (errno.EBADF, True), (errno.EIO, False)]
)
def test_a_disk_that_fails_is_said_and_one_that_cannot_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    monkeypatch.setattr("os.fsync", refusing(number))
    if passes:
        replacing.sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            replacing.sync(tmp_path)


def test_windows_keeps_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr("os.fsync", kept.append)
    monkeypatch.setattr(replacing.sys, "platform", "win32")
    replacing.sync(tmp_path)
    assert not kept
    (tmp_path / "file").touch()
    replacing.sync(tmp_path / "file")
    assert len(kept) == 1


def test_who_may_not_give_a_file_away_gives_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []

    def chown(*arguments: object) -> None:
        given.append(arguments)
        raise PermissionError

    own = tmp_path.stat()
    other = os.stat_result((0o750, *own[1:4], own.st_uid + 1, own.st_gid + 1, *own[6:10]))
    monkeypatch.setattr("os.chown", chown)
    replacing.take_on(tmp_path, other)
    ids = (own.st_uid + 1, own.st_gid + 1)
    assert given == [(tmp_path, *ids), (tmp_path, -1, ids[1])]
    assert tmp_path.stat().st_mode & 0o777 == 0o750
