"""Pieces of files of texts: what a worker answers at a time.

A small file is one piece. A large one is divided where that needs no reading: lines of JSON by
bytes, Parquet by its row groups. Other formats, and what is compressed, can only be read from the
beginning, and stay whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pyarrow
from pyarrow import fs, parquet

from trbert_deploy.errors import DataError, StorageError, first_line
from trbert_deploy.runtime.many_files import Place
from trbert_deploy.runtime.reading.compression import compression_of
from trbert_deploy.runtime.reading.formats import PARQUET
from trbert_deploy.runtime.reading.peekable import Peekable

#: Bytes of a piece, about; a line or a row group belongs to the piece in which it begins.
PIECE_BYTES = 32 << 20
_LINES = (".jsonl", ".ndjson")
#: Bytes that are read at a time: each is a request to an object store.
_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one.

    Attributes:
        name: of its answers, without their ending.
        path: the file's, in its file system.
        start, stop: of a part: the bytes in which its lines begin, or its row groups.
    """

    name: str
    path: str
    start: int = 0
    stop: int | None = None

    @property
    def is_later(self) -> bool:
        """Whether a part of the same file comes before it."""
        return self.start > 0


def pieces_of(source: Place, files: Mapping[str, fs.FileInfo], most: int) -> list[Piece]:
    """All pieces of some files, in order.

    Args:
        most: bytes of a piece, about.

    Raises:
        StorageError, DataError: a file cannot be read, or is damaged.
    """
    return [piece for name, info in files.items() for piece in _pieces_of(source, name, info, most)]


def _pieces_of(source: Place, name: str, info: fs.FileInfo, most: int) -> list[Piece]:
    ending = PurePosixPath(name).suffix.lower()
    bounds: list[int] = []
    if info.size > most and ending in (*_LINES, PARQUET):
        with _opened(source, info.path) as file:
            if ending == PARQUET:
                bounds = _row_groups(file, most)
            elif compression_of(Peekable(file, name)) is None:  # which names need not tell
                bounds = [*range(0, info.size, most), info.size]
    if len(bounds) < 3:
        return [Piece(name, info.path)]
    return [
        Piece(f"{name}.{number:05}", info.path, start, stop)
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]


def _row_groups(file: pyarrow.NativeFile, most: int) -> list[int]:
    """With which row groups pieces begin, and the last one ends."""
    told = parquet.read_metadata(file)
    starts, size = [0], 0
    for number in range(told.num_row_groups):
        if size >= most:
            starts.append(number)
            size = 0
        group = told.row_group(number)
        size += sum(group.column(place).total_compressed_size for place in range(group.num_columns))
    return [*starts, told.num_row_groups]


def fetch_piece(source: Place, piece: Piece, folder: Path) -> Path:
    """Copy a piece to a local file in a folder, which errors call by where it comes from.

    Raises:
        StorageError, DataError: the file cannot be read, or is damaged.
    """
    file = PurePosixPath(piece.path)
    if piece.stop is None:
        source.fetch(piece.path, folder / file.name)
        return folder / file.name
    if file.suffix.lower() == PARQUET:
        target = folder / f"{file.stem} (row groups from {piece.start}){file.suffix}"
        with _opened(source, piece.path) as opened:
            groups = parquet.ParquetFile(opened)
            with parquet.ParquetWriter(target, groups.schema_arrow) as writer:
                for number in range(piece.start, piece.stop):
                    writer.write_table(groups.read_row_group(number))
        return target
    target = folder / f"{file.stem} (bytes from {piece.start}){file.suffix}"
    with _opened(source, piece.path) as opened, target.open("wb") as copy:
        copy.writelines(_lines(io.BufferedReader(opened, _BUFFER_BYTES), piece.start, piece.stop))
    return target


@contextmanager
def _opened(source: Place, path: str) -> Iterator[pyarrow.NativeFile]:
    """A file of a place, to go to and fro in."""
    try:
        with source.found()[0].open_input_file(path) as file:
            yield file
    except pyarrow.ArrowInvalid as problem:
        raise DataError(f"{path} is no intact Parquet file: {first_line(problem)}") from None
    except OSError as problem:
        raise StorageError(f"{path} cannot be read: {first_line(problem)}") from None


def _lines(stream: io.BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in these bytes."""
    if start:
        stream.seek(start - 1)
        start += len(stream.readline()) - 1
    for line in stream:
        if start >= stop:
            return
        yield line
        start += len(line)
