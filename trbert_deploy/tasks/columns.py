"""The columns of a record that hold its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trbert_deploy.errors import DataError

TEXT, TEXT_PAIR = "text", "text_pair"


def text_of(record: Mapping[str, Any], name: str) -> str | tuple[str, str]:
    """The text, or the pair of texts, of one record.

    Raises:
        DataError: there is none, it is no string, or it is empty.
    """
    if TEXT not in record:
        raise DataError(f'{name}: expected a JSON object with a field "{TEXT}"')
    fields = (TEXT,) if record.get(TEXT_PAIR) is None else (TEXT, TEXT_PAIR)
    for field in fields:
        part = record[field]
        if not isinstance(part, str):
            kind = type(part).__name__
            raise DataError(f'{name}: the field "{field}" is of type {kind}, expected a string')
        if not part.strip():
            raise DataError(f'{name}: the field "{field}" is empty')
    return (record[TEXT], record[TEXT_PAIR]) if len(fields) == 2 else str(record[TEXT])
