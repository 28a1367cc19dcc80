"""A text with a list of others, such as a query with its passages: one row for each of these.

The list is the second part of a pair: ``("query", ["passage", "passage"])``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from trbert_deploy.errors import DataError
from trbert_deploy.tasks.columns import Columns, listed
from trbert_deploy.tasks.examples import Example, Text, TextList

_TEXTS = "expected texts"


def list_of(value: Any, name: str, what: str) -> list[str] | None:
    """The texts of a list; None for a value that is no list.

    It may be written in JSON, as a cell of a table has to.

    Args:
        name: what errors call the record.
        what: what errors call the texts.

    Raises:
        DataError: there are none, or one is no string or empty.
    """
    found = json_list(value)
    if found is None:
        return None
    if not found:
        raise DataError(f"{name} has no {what}: expected a list of one or more texts")
    for place, each in enumerate(found, start=1):
        if not isinstance(each, str):
            kind = type(each).__name__
            raise DataError(f"{name}: number {place} of the {what} is of type {kind}: {_TEXTS}")
        if not each.strip():
            raise DataError(f"{name}: number {place} of the {what} is empty: {_TEXTS}")
    return found


def json_list(value: Any) -> list[Any] | None:
    """A list, or what JSON reads as one; None for something else."""
    value = listed(value)
    return list(value) if isinstance(value, list | tuple) else None


def list_example(text: TextList, target: Any, name: str) -> Example:
    """A text with a list of others, before it is divided."""
    return Example(cast(Text, text), target, name)


def is_list(text: Text) -> bool:
    """Whether a text has a list of others beside it."""
    return isinstance(text, list | tuple) and len(text) == 2 and not isinstance(text[1], str)


def others_of(example: Example, what: str) -> list[str]:
    """The texts of an example's list.

    Args:
        what: what errors call one of them.

    Raises:
        DataError: there are none, or what stands there is no list.
    """
    _, others = cast(TextList, example.text)
    if not isinstance(others, list | tuple):
        raise DataError(
            f"{example.name or 'a text'} has a {type(others).__name__} in the second place: "
            f"expected a text, or a list of texts, each one {what}"
        )
    if not others:
        raise DataError(f"{example.name or 'a text'} has no {what}: expected one or more")
    return list(others)


def pairs_of(example: Example, targets: Sequence[Any], what: str) -> list[Example]:
    """One pair for each text of an example's list.

    Args:
        targets: of the pairs, in their order.
        what: what errors call one of them.
    """
    first, others = cast(TextList, example.text)
    return [
        Example((first, other), target, f"{what} {place} of {example.name}")
        for place, (other, target) in enumerate(zip(others, targets, strict=True), start=1)
    ]


def value_of(record: Mapping[str, Any], columns: Columns) -> Any:
    """What stands in the column of the second text; None where there is no such column."""
    return None if columns.pair is None else record.get(columns.pair)
