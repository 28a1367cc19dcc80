"""A stream whose first bytes can be looked at before it is read."""

from __future__ import annotations

import io
import lzma
import zlib
from typing import Any

from trbert_deploy.errors import DataError, StorageError, first_line


class Peekable(io.RawIOBase):
    """Bytes as a source gives them: no more is waited for than is there, as a pipe needs it.

    Args:
        source: has ``read1``.
        name: what errors call it.
        compression: what the source is unpacked from, if it is.
    """

    def __init__(self, source: Any, name: str, compression: str | None = None) -> None:
        self._source = source
        self._name = name
        self._compression = compression
        self._head = b""

    def readable(self) -> bool:
        return True

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or fewer where the source ends; they are still to be read."""
        while len(self._head) < count and (more := self._more(count - len(self._head))):
            self._head += more
        return self._head[:count]

    def readinto(self, buffer: Any) -> int:
        """Fill a part of ``buffer``.

        Raises:
            StorageError: the source cannot be read.
            DataError: its compression is damaged.
        """
        size = len(buffer)
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._more(size)
        buffer[: len(data)] = data
        return len(data)

    def _more(self, size: int) -> bytes:
        try:
            return bytes(self._source.read1(size))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
            if getattr(problem, "errno", None) is not None:  # the system's, not an unpacker's
                reason = getattr(problem, "strerror", problem)
                raise StorageError(f"{self._name} cannot be read: {reason}") from None
            raise DataError(
                f"{self._name} is no intact {self._compression} file: {first_line(problem)}"
            ) from None
