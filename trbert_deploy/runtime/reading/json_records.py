"""JSON lines, and JSON: a list of objects, or an object with one such list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.reading.records import Lines, Record, decoded, is_blank
from trbert_deploy.tasks.columns import TEXT


def read_json_lines(lines: Lines, source: str) -> Iterator[Record]:
    """One object a line; blank lines are passed over.

    Raises:
        DataError: a line is no JSON object.
    """
    for number, line in lines:
        if not is_blank(line):
            name = f"{source}, line {number}"
            yield Record(name, _object(_parsed(decoded(line, name), name), name))


def read_json(lines: Lines, source: str) -> Iterator[Record]:
    """A list of objects, an object with one such list, one object alone, or JSON lines.

    JSON lines are read line by line, the others as a whole.

    Raises:
        DataError: it is neither of these.
    """
    begun = _up_to_content(lines)
    whole = _object_in(begun[-1][1]) if begun else None
    if whole is not None and _lists_in(whole):  # a line of several, or all there is?
        further = _up_to_content(lines)
        whole = whole if further else None
        begun += further
    if whole is not None:
        yield from read_json_lines(chain(begun, lines), source)
        return
    if not begun:
        return
    lines = chain(begun, lines)
    text = "".join(decoded(line, f"{source}, line {number}") for number, line in lines)
    for row, value in enumerate(_rows(_parsed(text, source), source), start=1):
        name = f"{source}, row {row}"
        yield Record(name, _object(value, name))


def _up_to_content(lines: Lines) -> list[tuple[int, bytes]]:
    """The next line that is not blank, behind the blank ones before it, if there is one."""
    passed = []
    for number, line in lines:
        passed.append((number, line))
        if not is_blank(line):
            return passed
    return []


def _object_in(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, if it holds a whole one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _rows(value: Any, source: str) -> list[Any]:
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    lists = _lists_in(value)
    if len(lists) > 1:
        raise DataError(
            f"{source} has several lists of objects ({', '.join(lists)}): expected one, or JSON "
            "lines"
        )
    return value[lists[0]] if lists else [value]


def _lists_in(value: dict[str, Any]) -> list[str]:
    """The fields that hold lists of objects, unless the object is a record itself."""
    if TEXT in value:
        return []
    return [
        field
        for field, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    ]


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text.rstrip().removeprefix("\ufeff"))
    except json.JSONDecodeError as problem:
        line = "" if problem.lineno == 1 else f"line {problem.lineno}, "
        where = f"{problem.msg} at {line}column {problem.colno}"
        raise DataError(f"{name}: not JSON ({where})") from None
    except (ValueError, RecursionError) as problem:  # a number too long, nested too deep
        raise DataError(f"{name}: not JSON ({problem})") from None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{name}: expected a JSON object with a field "{TEXT}"')
    return value
