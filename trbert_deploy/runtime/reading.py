"""Reads texts from JSON lines: what ``predict`` and ``bench --data`` take in."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from trbert_deploy.errors import DataError, StorageError
from trbert_deploy.tasks.columns import TEXT, text_of
from trbert_deploy.tasks.task import Text

#: The path that stands for standard input.
STDIN = Path("-")


@dataclass(frozen=True)
class NamedText:
    """A text, what errors call it, such as ``reviews.jsonl, line 7``, and the record it is from."""

    name: str
    text: Text
    record: Mapping[str, Any] = field(default_factory=dict)


def read_texts(path: Path) -> Iterator[NamedText]:
    """The texts of a JSON-lines file, one at a time; empty lines are passed over.

    Args:
        path: objects with ``text`` and optionally ``text_pair`` and ``label``, one a line,
            UTF-8; compressed with gzip where the name ends in .gz; ``-`` for standard input.

    Raises:
        StorageError: the file cannot be opened.
        DataError: a line is no such object, the file is damaged, or it holds no text at all.
    """
    shown = "standard input" if path == STDIN else path.name
    found = False
    with _open(path, shown) as file:
        for number, line in enumerate(_lines(file, shown), start=1):
            if line.strip():
                found = True
                name = f"{shown}, line {number}"
                row = _row(line, name)
                yield NamedText(name, text_of(row, name), row)
    if not found:
        raise DataError(f'{shown} is empty: expected lines such as {{"text": "..."}}')


def count_texts(path: Path) -> int | None:
    """How many texts ``read_texts`` will find, or None for what can be read only once."""
    try:
        if path == STDIN or not path.is_file():
            return None
    except OSError:  # reading says why
        return None
    with _open(path, path.name) as file:
        return sum(1 for line in _lines(file, path.name) if line.strip())


@contextmanager
def _open(path: Path, shown: str) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as problem:
        raise StorageError(f"{path} cannot be read: {problem.strerror}") from None
    with file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]  # reads lines as any binary file does
        else:
            yield file


def _lines(file: BinaryIO, shown: str) -> Iterator[bytes]:
    try:
        yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"{shown} is no intact gzip file: {problem}") from None


def _row(line: bytes, name: str) -> dict[str, Any]:
    """The object that one line holds."""
    try:
        row = json.loads(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8") from None
    except json.JSONDecodeError as problem:
        where = f"{problem.msg} at column {problem.colno}"
        raise DataError(f"{name}: not JSON ({where})") from None
    except (ValueError, RecursionError) as problem:  # a number too long, nested too deep
        raise DataError(f"{name}: not JSON ({problem})") from None
    if not isinstance(row, dict):
        raise DataError(f'{name}: expected a JSON object with a field "{TEXT}"')
    return row
