from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from trbert_deploy import journal
from trbert_deploy.errors import CheckpointError
from trbert_deploy.journal import COMMITTED, read_settled, settle, staged_files
from trbert_deploy.locks import hold

FILES = ("a", "b", "c")


class Stop(Exception):
    """What goes wrong in the middle."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


def write(directory: Path, **files: str) -> None:
    with staged_files(directory, FILES) as staging:
        for name, text in files.items():
            (staging / name).write_text(text)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files that belong together, among others."""
    path = tmp_path / "d"
    write(path, a="old", b="old")
    (path / "other").write_text("other")
    return path


def test_files_change_among_others_that_stay(directory: Path) -> None:
    write(directory, a="new", c="new")
    assert contents(directory) == {"a": "new", "c": "new", "other": "other"}
    with pytest.raises(Stop), staged_files(directory, FILES) as staging:
        (staging / "b").write_text("half")
        raise Stop
    assert contents(directory) == {"a": "new", "c": "new", "other": "other"}
    assert names(directory) == ["a", "c", "other"]


def test_permissions_and_links_stay(directory: Path, tmp_path: Path) -> None:
    (directory / "a").chmod(0o600)
    (directory / "b").rename(tmp_path / "b")
    (directory / "b").symlink_to(Path("..", "b"))
    write(directory, a="new", b="new")
    assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o600
    assert (directory / "b").is_symlink() and (tmp_path / "b").read_text() == "new"


def test_a_link_to_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(Path("runs", "v1"))
    write(tmp_path / "current", a="new")
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "runs" / "v1") == {"a": "new"}


def test_a_disk_without_hard_links_gets_copies(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write(directory, a="new", c="new")
    assert contents(directory) == {"a": "new", "c": "new", "other": "other"}


def interrupt(directory: Path, monkeypatch: pytest.MonkeyPatch, placed: int) -> None:
    """Change the files, and stop when some are in their places."""
    staged_file = journal.staged_file
    count = 0

    def stopping(path: Path) -> object:
        nonlocal count
        count += 1
        if count > placed:
            raise KeyboardInterrupt
        return staged_file(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal, "staged_file", stopping)
        write(directory, a="new", c="new")
    assert (directory / COMMITTED).is_dir()


@pytest.mark.parametrize("placed", [0, 1])
def test_what_was_committed_is_what_is_there(
    directory: Path, monkeypatch: pytest.MonkeyPatch, placed: int
) -> None:
    interrupt(directory, monkeypatch, placed)
    found = read_settled(directory, FILES, contents)
    assert found == {"a": "new", "c": "new", "other": "other"}
    assert names(directory) == ["a", "c", "other"]


def test_the_next_writer_finishes_first(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(directory, monkeypatch, 1)
    write(directory, a="newer", b="newer")
    assert contents(directory) == {"a": "newer", "b": "newer", "other": "other"}
    assert names(directory) == ["a", "b", "other"]


def test_who_cannot_write_reads_what_was_committed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(directory, monkeypatch, 1)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(journal, "staged_file", refuse)
    assert settle(directory, FILES) == directory / COMMITTED
    assert read_settled(directory, FILES, contents) == {"a": "new", "c": "new"}


def test_a_reader_waits_for_a_living_writer(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(directory, monkeypatch, 0)
    found: list[dict[str, str]] = []
    reader = threading.Thread(target=lambda: found.append(read_settled(directory, FILES, contents)))
    with hold(directory / COMMITTED):
        reader.start()
        (directory / "a").write_text("new")
        shutil.copy(directory / COMMITTED / "c", directory)
        (directory / "b").unlink()
        (directory / COMMITTED).rename(directory / "done")
    reader.join()
    assert found == [{"a": "new", "c": "new", "other": "other"}]


def test_files_that_change_while_they_are_read_are_read_again(directory: Path) -> None:
    reads = 0

    def read(source: Path) -> list[str]:
        nonlocal reads
        reads += 1
        first = (source / "a").read_text()
        if reads == 1:
            write(directory, a="new")
        if reads == 2:
            write(directory, a="newest", b="newest")
            raise CheckpointError("b is missing")
        return [first, (source / "b").read_text()]

    assert read_settled(directory, FILES, read) == ["newest", "newest"]
    assert reads == 3
    with pytest.raises(FileNotFoundError):
        read_settled(directory, FILES, lambda source: (source / "c").read_text())


def test_readers_never_see_two_versions(directory: Path) -> None:
    def read(source: Path) -> set[str]:
        return {(source / name).read_text() for name in ("a", "b")}

    def rewrite() -> None:
        for version in range(60):
            write(directory, a=str(version), b=str(version))

    writer = threading.Thread(target=rewrite)
    writer.start()
    versions = []
    while writer.is_alive():
        versions.append(read_settled(directory, FILES, read))
    writer.join()
    assert all(len(version) == 1 for version in versions)
    assert len({next(iter(version)) for version in versions}) > 1
