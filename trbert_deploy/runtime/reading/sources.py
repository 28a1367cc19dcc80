"""Opens what texts are read from: a file, a FIFO, a pipe or standard input, front to back, once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trbert_deploy.errors import StorageError
from trbert_deploy.runtime.reading.compression import compression_of
from trbert_deploy.runtime.reading.peekable import Peekable

#: The path that stands for standard input.
STDIN = Path("-")


@dataclass(frozen=True)
class Source:
    """An open source.

    Attributes:
        name: what errors call it.
        stream: its bytes, without compression.
        file: the file itself, where it is a regular one and not compressed.
    """

    name: str
    stream: Peekable
    file: Any = None


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a path; compression is told by the first bytes, whatever the name says.

    Raises:
        StorageError: it is not there, or cannot be read.
        DataError: damaged compression, now or while reading.
        MissingDependencyError: compression that a package is missing for.
    """
    name = name_of(path)
    with _opened(path) as file:
        stream = Peekable(file, name)
        compression = compression_of(stream)
        if compression is not None:
            yield Source(name, Peekable(compression.unpack(stream), name, compression.name))
        else:
            yield Source(name, stream, file if is_regular(path) else None)


def name_of(path: Path) -> str:
    """What errors call a path."""
    if path == STDIN:
        return "standard input"
    return str(path) if path.is_relative_to("/dev") else path.name


def is_regular(path: Path) -> bool:
    """Whether a path can be gone to and fro in, and read again: no pipe can."""
    return path != STDIN and path.is_file()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path == STDIN:
        if sys.stdin is None:
            raise StorageError("standard input is closed: expected texts from a pipe or a file")
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as problem:
        raise StorageError(f"{path} cannot be read: {problem.strerror}") from None
    with file:
        yield file
