"""Answers that a context has to a question, as data sets have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trbert_deploy.errors import DataError

#: Keys of a record's answers, as SQuAD calls them.
TEXT, START = "text", "answer_start"
_EXPECTED = (
    'expected {"text": [...], "answer_start": [...]}, or a list of such answers; empty for none'
)

#: Answers that a context has: ``text`` and ``answer_start``, lists of one length.
GoldAnswers = Mapping[str, list[Any]]


def read_answers(value: Any, context: str, name: str) -> dict[str, list[Any]] | None:
    """A record's answers; None where it does not say.

    SQuAD's lists of texts and of first letters, one text and its first letter, or a list of those;
    any of them in JSON, as cells of tables are. No text is no answer.

    Args:
        context: that the answers are in.
        name: what errors call the record.

    Raises:
        DataError: what is none of these, or an answer that is not there in its context.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{name} has answers that are no JSON: {_EXPECTED}") from None
    if value is None or value == "":
        return None
    parts = value if isinstance(value, list | tuple) else [value]
    texts: list[str] = []
    starts: list[int] = []
    for part in parts:
        if not isinstance(part, Mapping) or TEXT not in part:
            raise DataError(f"{name} has answers of another form: {_EXPECTED}")
        found, places = (_listed(part.get(key)) for key in (TEXT, START))
        if len(found) != len(places):
            raise DataError(
                f"{name} has {len(found)} answers with {len(places)} places: {_EXPECTED}"
            )
        for text, start in zip(found, places, strict=True):
            if text:
                texts.append(text)
                starts.append(_checked(text, start, context, name))
    return {TEXT: texts, START: starts}


def _listed(value: Any) -> list[Any]:
    """A list, or one value as one; nothing as none."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _checked(text: Any, start: Any, context: str, name: str) -> int:
    """Where an answer starts in its context."""
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise DataError(
            f"{name} has an answer of type {type(text).__name__} at a place of type "
            f"{type(start).__name__}: expected a string and a whole number"
        )
    if start < 0 or context[start : start + len(text)] != text:
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        raise DataError(
            f"{name} has the answer {shown!r} at {start}, where its context has it not: expected "
            "the place of its first letter"
        )
    return start
