"""Reading and writing files so that a failure leaves what was there before.

A path may lead anywhere: links are followed, what is no file (a pipe, a device) is written to, and
what is replaced keeps its permissions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from trbert_deploy.errors import FileFormatError, StorageError, TrbertError
from trbert_deploy.replacing import (
    put_back,
    replace_directory,
    staging_in,
    sync,
    sync_tree,
    take_on,
)

_MOST_LINKS = 40  # as many as Linux follows

Result = TypeVar("Result")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A temporary path whose file takes the place of ``path`` when the block ends well.

    What is no regular file (a pipe, a device, /dev/stdout) is written to at the end.

    Raises:
        StorageError: it is a directory, or links that lead nowhere.
    """
    path = followed(path)
    state = path.stat() if path.exists() else None
    if state is not None and stat.S_ISDIR(state.st_mode):
        raise StorageError(f"{path} is a directory: expected a file")
    if _names_open_files(path.parent) or not (state is None or stat.S_ISREG(state.st_mode)):
        with tempfile.TemporaryDirectory() as scratch:
            staging = Path(scratch) / path.name
            yield staging
            with staging.open("rb") as made, _opened(path) as file:
                shutil.copyfileobj(made, file)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a directory of its own, since libraries put temporary files of theirs beside it; closed to
    # others, as the file that it replaces may be.
    with staging_in(path.parent, 0o700) as directory:
        staging = directory / path.name
        os.close(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        state = state or staging.stat()
        yield staging
        sync(staging)
        take_on(staging, state)
        staging.replace(path)
        sync(path.parent)


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that takes the place of ``target`` when the block ends well.

    An existing ``target`` is replaced whole and in one step: who opens it by its name finds the
    old one or the new one.

    Raises:
        StorageError: it is a file, or links that lead nowhere.
    """
    target = Path(os.path.realpath(followed(target)))
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file: expected a directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    put_back(target)
    with staging_in(target.parent, 0o700 if target.exists() else 0o777) as staging:
        yield staging
        sync_tree(staging)
        if target.exists():
            take_on(staging, target.stat())
        replace_directory(staging, target)
        sync(target.parent)


def read_directory(directory: Path, read: Callable[[], Result]) -> Result:
    """What ``read`` makes of a directory's files, all of one that ``staged_directory`` put there.

    Args:
        read: reads by the directory's name; called again if it was replaced meanwhile.
    """
    while True:
        with _held_open(directory) as is_same:
            try:
                result = read()
            except (TrbertError, OSError):
                if is_same():
                    raise
            else:
                if is_same():
                    return result


@contextmanager
def _held_open(directory: Path) -> Iterator[Callable[[], bool]]:
    """Tells whether a directory is still the one that it is now; its number is not used again."""
    try:
        handle = os.open(
            directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
        )  # no pipe: it waits
    except OSError:  # missing, no directory, or one that only ``read`` can say something of
        yield lambda: True
        return
    try:
        yield lambda: directory.exists() and os.path.samestat(os.fstat(handle), directory.stat())
    finally:
        os.close(handle)


def followed(path: Path) -> Path:
    """Where a path leads, through links, to something that need not be there yet.

    Raises:
        StorageError: links lead in a circle.
    """
    found = path
    for _ in range(_MOST_LINKS):
        if not found.is_symlink() or _names_open_files(found.parent):
            return found
        found = found.parent / found.readlink()
    raise StorageError(f"{path} is a link that leads back to itself: remove it")


def _names_open_files(directory: Path) -> bool:
    """Whether names in a directory stand for what processes have open, such as /dev/stdout."""
    real = os.path.realpath(directory)
    return real in ("/dev", "/dev/fd") or real.startswith("/proc/")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What is there already, opened to write to its end."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text to ``path``, whole or not at all."""
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, error: type[FileFormatError] = FileFormatError) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        error: the file is missing, unreadable, no JSON, or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{path} holds a JSON {type(data).__name__}: expected an object")
    return data


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line to ``path``, whole or not at all."""
    with staged_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(
    path: Path, error: type[FileFormatError] = FileFormatError
) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line.

    Raises:
        error: the file is missing, unreadable, or a line is no JSON object.
    """
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise error(f"{path}, line {number}: expected a JSON object")
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} cannot be read as JSON lines: {problem}") from None
    return rows


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_directory(path: Path, what: str, maker: str) -> None:
    """Refuse a path that is not a readable directory.

    Args:
        maker: the command that makes one.

    Raises:
        StorageError: it is missing, a file, or unreadable.
    """
    if not path.exists():
        put_back(Path(os.path.realpath(path)))
    if not path.exists():
        raise StorageError(f"{what} {path} does not exist: make one with {maker}")
    if not path.is_dir():
        raise StorageError(f"{what} {path} is a file: expected a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise StorageError(f"{what} {path} cannot be read: permission denied")
