"""CSV, TSV and plain lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from trbert_deploy.errors import DataError, few
from trbert_deploy.runtime.reading.records import Lines, Record, decoded, is_blank
from trbert_deploy.tasks.columns import TEXT

DELIMITERS = ",;\t|"
#: Characters of the largest cell: a quote that is never closed ends there.
LARGEST_CELL = 2**24
_IN_QUOTES = r'"[^"]*+(?:""[^"]*+)*+"'
_QUOTED = re.compile(_IN_QUOTES)
_CELL = re.compile(rf"(?:^|(?<=\t))({_IN_QUOTES}(?=\t|$)|[^\t]*)")


def read_csv(lines: Lines, source: str) -> Iterator[Record]:
    """Rows below a header, whose cells may be quoted and hold delimiters and line ends then.

    Raises:
        DataError: a quote that is not closed, or a row with more or fewer cells than the header.
    """
    first = _first_of(lines)
    if first is None:
        return
    number, header = first[0], decoded(first[1], f"{source}, line {first[0]}")
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    delimiter = delimiter_of(header)
    rows = csv.reader(chain([header], _texts(lines, source)), delimiter=delimiter, strict=True)
    yield from _records(_numbered(rows, source, number), source, delimiter)


def read_tsv(lines: Lines, source: str) -> Iterator[Record]:
    """Rows below a header, one a line; a quote is a character like others, unless a whole cell is
    quoted as in CSV.

    Raises:
        DataError: a row with more or fewer cells than the header.
    """
    first = _first_of(lines)
    if first is None:
        return
    width = first[1].count(b"\t") + 1
    rows = (
        (number, _tabbed(_without_end(decoded(line, f"{source}, line {number}")), width))
        for number, line in chain([first], lines)
        if line.rstrip(b"\r\n")
    )
    yield from _records(rows, source, "\t")


def read_plain(lines: Lines, source: str) -> Iterator[Record]:
    """A text a line; blank lines are passed over."""
    for number, line in lines:
        if not is_blank(line):
            name = f"{source}, line {number}"
            yield Record(name, {TEXT: _without_end(decoded(line, name))})


def delimiter_of(header: str) -> str:
    """The delimiter that occurs most in a header, outside quotes; a comma where none does."""
    plain = _QUOTED.sub("", header)
    return max(DELIMITERS, key=plain.count)


def cells_of(header: str) -> list[str]:
    """The cells of a header, roughly: to see whether a line is one."""
    return [cell.strip('"') for cell in _without_end(header).split(delimiter_of(header))]


def _first_of(lines: Lines) -> tuple[int, bytes] | None:
    return next((each for each in lines if not is_blank(each[1])), None)


def _texts(lines: Lines, source: str) -> Iterator[str]:
    return (decoded(line, f"{source}, line {number}") for number, line in lines)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _numbered(rows: Any, source: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """Rows of a csv reader with the lines that they begin at; blank ones are passed over."""
    while True:
        number = first + rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as problem:
            reason = str(problem).partition(" - ")[0]  # without advice to programmers
            raise DataError(
                f"{source}, line {number}: not CSV ({reason}): a cell with quotes or line "
                "ends in it is expected in quotes, and quotes in it doubled"
            ) from None
        if row is None:
            return
        if row:
            yield number, row


def _tabbed(line: str, width: int) -> list[str]:
    """The cells of a line; where there are too many, those that are quoted may hold tabs."""
    cells = line.split("\t")
    if len(cells) > width:
        cells = _CELL.findall(line)
    return [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells]


def _records(
    rows: Iterator[tuple[int, Sequence[str]]], source: str, delimiter: str
) -> Iterator[Record]:
    """Rows as records; an empty cell is None."""
    number, header = next(rows)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{source}, line {number}: several columns are named {few(twice)}")
    for number, row in rows:
        name = f"{source}, line {number}"
        if len(row) != len(header):
            raise DataError(
                f"{name}: {len(row)} cells, expected {len(header)} as in the header "
                f"({few(header)}); a cell with {_TOLD[delimiter]} in it needs quotes"
            )
        yield Record(name, {column: cell or None for column, cell in zip(header, row, strict=True)})


_TOLD = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
