"""Reading and writing files so that a failure leaves what was there before."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trbert_deploy.errors import FileFormatError, StorageError


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    staging = Path(name)
    staging.chmod(0o666 & ~_umask())
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that takes its place when the block ends well.

    An existing ``target`` is replaced whole; until then it stays untouched.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    staging.chmod(0o777 & ~_umask())
    try:
        yield staging
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.replace(retired / "old")
            try:
                staging.replace(target)
            except OSError:
                (retired / "old").replace(target)
                raise
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        else:
            staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_files(target: Path) -> Iterator[Path]:
    """A temporary directory whose files go into directory ``target`` when the block ends well.

    Other files in ``target`` stay.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staged.", dir=target) as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            path.replace(target / path.name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON to ``path``, whole or not at all."""
    with staged_file(path) as staging:
        staging.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
        raise StorageError(f"{what} {path} does not exist: make one with {maker}")
    if not path.is_dir():
        raise StorageError(f"{what} {path} is a file: expected a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise StorageError(f"{what} {path} cannot be read: permission denied")
