"""The formats, by the endings of files; where a name tells nothing, by the first bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from pathlib import Path

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.reading import compression, parquet
from trbert_deploy.runtime.reading.json_records import read_json, read_json_lines
from trbert_deploy.runtime.reading.records import Lines, Record, is_blank, numbered_lines
from trbert_deploy.runtime.reading.sources import STDIN, Source, open_source
from trbert_deploy.runtime.reading.tables import (
    cells_of,
    delimiter_of,
    read_csv,
    read_plain,
    read_tsv,
)
from trbert_deploy.tasks.columns import plain

Reader = Callable[[Lines, str], Iterator[Record]]

#: Formats of lines, or of text.
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_plain,
}
PARQUET = ".parquet"
FORMATS = (*READERS, PARQUET)
_JSON = re.compile(rb'\s*(\{|\[\s*($|[\[{"\]]))')


def read_records(
    path: Path, columns: Collection[str], note: Callable[[str], None]
) -> Iterator[Record]:
    """The records of a source, one at a time.

    Args:
        columns: names, as ``plain`` has them, that tell a header from a line of text.
        note: told what a person should know.

    Raises:
        StorageError, MissingDependencyError: as ``open_source``.
        DataError: an unknown ending, or content that is not what it should be.
    """
    ending = _ending_of(path)
    with open_source(path) as source:
        if ending == PARQUET or (not ending and source.stream.peek(4) == parquet.MAGIC):
            yield from parquet.read_parquet(source)
            return
        lines = numbered_lines(source.stream)
        if ending:
            reader = READERS[ending]
        else:
            reader, lines = _told_by_first_line(lines, source, columns, note)
        yield from reader(lines, source.name)


def is_data_file(path: Path) -> bool:
    """Whether a name ends as files of texts do."""
    return _without_compression(path).suffix.lower() in FORMATS


def _without_compression(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in compression.ENDINGS else path


def _ending_of(path: Path) -> str:
    """The format's ending, or nothing where the name does not tell."""
    ending = _without_compression(path).suffix.lower()
    if ending in FORMATS or path == STDIN:
        return ending
    if path.is_file() and ending:
        raise DataError(
            f"{path} ends in {ending}: expected one of {', '.join(FORMATS)}, plain or compressed "
            f"({', '.join(compression.ENDINGS)})"
        )
    return ""


def _told_by_first_line(
    lines: Lines, source: Source, columns: Collection[str], note: Callable[[str], None]
) -> tuple[Reader, Lines]:
    """The format that the first line looks like, and the lines with it."""
    first = next((each for each in lines if not is_blank(each[1])), None)
    if first is None:
        return read_plain, lines
    begun = chain([first], lines)
    if _JSON.match(first[1]):
        return read_json, begun
    try:
        header = first[1].decode()
    except UnicodeDecodeError:  # which the reader refuses
        return read_plain, begun
    if not {plain(cell) for cell in cells_of(header)}.isdisjoint(columns):
        return read_tsv if delimiter_of(header) == "\t" else read_csv, begun
    note(
        f"{source.name}: read as plain text, one a line, since it begins as no JSON, CSV, TSV or "
        "Parquet does"
    )
    return read_plain, begun
