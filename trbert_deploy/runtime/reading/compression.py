"""Compressed streams: told by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.runtime.reading.peekable import Peekable


@dataclass(frozen=True)
class Compression:
    """A way to compress.

    Attributes:
        name: what errors call it.
        magic: how its files begin.
        unpack: a compressed stream -> its content, which has ``read1``.
    """

    name: str
    magic: tuple[bytes, ...]
    unpack: Callable[[Any], Any]


def _unpack_zstd(stream: Peekable) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise MissingDependencyError("reading zstd", "pyarrow", "parquet") from None
    return pyarrow.CompressedInputStream(stream, "zstd")


COMPRESSIONS = (
    Compression("gzip", (b"\x1f\x8b",), lambda stream: gzip.GzipFile(fileobj=stream)),
    # The block behind the header begins with the digits of pi; an empty file ends with another.
    Compression(
        "bzip2",
        tuple(b"BZh%d" % size + block for size in range(1, 10) for block in (b"1A", b"\x17r")),
        bz2.BZ2File,
    ),
    Compression("xz", (b"\xfd7zXZ\x00",), lzma.LZMAFile),
    Compression("zstd", (b"\x28\xb5\x2f\xfd",), _unpack_zstd),
)
#: Endings that stand behind that of the format.
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
_LONGEST = max(len(magic) for each in COMPRESSIONS for magic in each.magic)


def compression_of(stream: Peekable) -> Compression | None:
    """How a stream is compressed, or None; nothing of it is read."""
    start = stream.peek(_LONGEST)
    return next((each for each in COMPRESSIONS if start.startswith(each.magic)), None)
