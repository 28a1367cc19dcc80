from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trbert_deploy.locks import hold


def test_a_directory_has_one_lock(tmp_path: Path) -> None:
    with hold(tmp_path) as held:
        assert held
        with pytest.raises(BlockingIOError), hold(tmp_path):
            pass
    with hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), hold(tmp_path / "missing"):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from trbert_deploy.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), hold(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with hold(tmp_path) as held:
        assert held


def test_who_waits_gets_the_lock_of_what_is_there_then(tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    found: list[bool] = []

    def wait() -> None:
        with hold(place, wait=True):
            with pytest.raises(BlockingIOError), hold(place):
                pass
            found.append(True)

    with hold(place):
        waiting = threading.Thread(target=wait)
        waiting.start()
        place.rename(tmp_path / "away")
        other.rename(place)
    waiting.join()
    assert found == [True]


def test_a_file_system_without_locks_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path) as held:
        assert not held
