"""What formats are read into: records with names, from numbered lines."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trbert_deploy.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 2**16

#: Line number, from 1, and the line with its end.
Lines = Iterator[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Record:
    """Values by column, and what errors call them, such as ``reviews.csv, line 7``."""

    name: str
    values: Mapping[str, Any]


def numbered_lines(stream: io.RawIOBase) -> Lines:
    """The lines of a stream, which line feeds end, without a byte order mark."""
    for number, line in enumerate(io.BufferedReader(stream, _BUFFER_BYTES), start=1):
        yield number, line if number > 1 else line.removeprefix(_BYTE_ORDER_MARK)


def is_blank(line: bytes) -> bool:
    return not line.strip()


def decoded(line: bytes, name: str) -> str:
    """A line as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8, which text is expected in: save it so") from None
