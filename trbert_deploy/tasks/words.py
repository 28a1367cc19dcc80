"""Texts whose words have tags, as records have them.

However a record comes, its text is one string, and each word a part of it, so that words and plain
text are tokenized alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trbert_deploy.errors import DataError
from trbert_deploy.tasks.columns import WORDS, Columns, listed, plain, require_unicode, text_of
from trbert_deploy.tasks.examples import Example

#: First letter of a word, the one behind it, and its tag.
TaggedWord = tuple[int, int, str]


def read_tagged(record: Mapping[str, Any], name: str, columns: Columns) -> Example:
    """A record as a text, and its words with their tags where it has some.

    The text is a list of words beside a list of as many tags; or a string, without tags or with a
    list of [start, end, tag], by letters. Lists may be written in JSON, as cells of tables are.
    Words are joined by single spaces.

    Args:
        name: what errors call the record.

    Raises:
        DataError: no words, what is no text, or tags that do not belong to words.
    """
    tags = None if columns.label is None else listed(record.get(columns.label))
    text = record.get(columns.text)
    if plain(columns.text) in WORDS:
        text = listed(text)
    if isinstance(text, list | tuple):
        words = _words(text, name)
        return Example(" ".join(words), None if tags is None else _beside(words, tags, name), name)
    whole = text_of(record, name, Columns(columns.text))
    assert isinstance(whole, str)  # no pair was asked for
    return Example(whole, None if tags is None else _spans(whole, tags, name), name)


def _words(words: Sequence[Any], name: str) -> list[str]:
    for word in words:
        if not isinstance(word, str):
            raise DataError(
                f"{name} has a word of type {type(word).__name__}: expected a list of strings"
            )
    if not any(word.strip() for word in words):
        raise DataError(f"{name} has no words: expected at least one")
    require_unicode(" ".join(words), name)
    return list(words)


def _beside(words: Sequence[str], tags: Any, name: str) -> tuple[TaggedWord, ...]:
    """The words of a joined text, with the tags that stand beside them."""
    if not isinstance(tags, list | tuple):
        raise DataError(f"{name} has tags of type {type(tags).__name__}: expected a list of them")
    if len(tags) != len(words):
        raise DataError(
            f"{name} has {len(tags)} tags for {len(words)} words: expected one for each"
        )
    found, start = [], 0
    for word, tag in zip(words, tags, strict=True):
        found.append((start, start + len(word), _tag(tag, name)))
        start += len(word) + 1
    return tuple(found)


def _spans(text: str, spans: Any, name: str) -> tuple[TaggedWord, ...]:
    """Words by their places in a text, in its order."""
    expected = "expected a list of words beside as many tags, or [start, end, tag] for each word"
    if not isinstance(spans, list | tuple):
        raise DataError(f"{name} has tags of type {type(spans).__name__}: {expected}")
    found, last = [], 0
    for span in spans:
        if not isinstance(span, list | tuple) or len(span) != 3:
            raise DataError(f"{name} has one text, and tags: {expected}")
        start, end, tag = span
        if not (_is_whole(start) and _is_whole(end) and last <= start <= end <= len(text)):
            raise DataError(
                f"{name} has a tag from {start} to {end}: expected places in its "
                f"{len(text)} letters, in order"
            )
        found.append((start, end, _tag(tag, name)))
        last = end
    return tuple(found)


def _tag(tag: Any, name: str) -> str:
    """A tag as a name; numbers of the model's labels stand for themselves."""
    if _is_whole(tag):
        return str(tag)
    if not isinstance(tag, str) or not tag.strip():
        told = repr(tag) if isinstance(tag, str) else f"of type {type(tag).__name__}"
        raise DataError(f"{name} has a tag {told}: expected names, or numbers of labels")
    require_unicode(tag, name)
    return tag.strip()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
