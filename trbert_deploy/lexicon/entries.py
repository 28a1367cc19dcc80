"""A lexicon's entries, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trbert_deploy.errors import ConfigError, DataError, FileFormatError, StorageError, few
from trbert_deploy.files import write_text

PHRASE, TAG = "phrase", "tag"
#: Endings of the files that have a JSON object a line; all others have a phrase, a tab and a tag.
_JSON_LINES = (".jsonl", ".ndjson")
_MOST_LETTERS = 1000


class Entry(NamedTuple):
    """A phrase that is known by a tag.

    Attributes:
        phrase: words with one space between two.
        tag: a type of entity.
    """

    phrase: str
    tag: str


def entry(phrase: Any, tag: Any, name: str) -> Entry:
    """An entry, as it came from somebody.

    Args:
        phrase: white space in it is one space, and none at its ends.
        tag: likewise.
        name: what errors call it.

    Raises:
        DataError: one of them is no text, or has nothing that can be seen.
    """
    for what, value in ((PHRASE, phrase), (TAG, tag)):
        if not isinstance(value, str):
            kind = "missing" if value is None else f"of type {type(value).__name__}"
            raise DataError(f"{name}: the {what} is {kind}: expected text")
    made = Entry(" ".join(phrase.split()), tag.strip())
    if not made.tag:
        raise DataError(f"{name} has no tag: expected a phrase, a tab and a tag")
    whole = made.phrase.isprintable() and made.phrase  # as nearly all of a million are
    if not whole and not any(letter.isprintable() and letter != " " for letter in made.phrase):
        raise DataError(
            f"{name}: the phrase has no letter that can be seen: expected at least one word"
        )
    if len(made.phrase) > _MOST_LETTERS:
        raise DataError(
            f"{name}: the phrase has {len(made.phrase):,} letters: expected at most "
            f"{_MOST_LETTERS:,}"
        )
    return made


def entry_of(given: Any, name: str) -> Entry:
    """An entry of a phrase and a tag.

    Raises:
        DataError: it is no pair of them, or as ``entry``.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{name} is {few([repr(given)])}: expected a phrase and a tag")
    phrase, tag = given
    return entry(phrase, tag, name)


def read_entries(path: Path, error: type[FileFormatError] | None = None) -> list[Entry]:
    """Read a lexicon: lines of a phrase, a tab and a tag, or with the ending .jsonl of JSON.

    Blank lines are left out. What stands twice is one entry.

    Args:
        path: of the file.
        error: what a file is refused with that is a part of something; DataError where None.

    Returns:
        The entries in the order of the file.

    Raises:
        StorageError: it is not there, or cannot be read.
        DataError: it is no UTF-8, a line has no phrase or no tag, or there is no entry.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = list(dict.fromkeys(_entries(path, text.split("\n"))))
        if not found:
            raise DataError(f"the lexicon {path} is empty: expected a phrase and its tag a line")
    except UnicodeDecodeError as problem:
        raise (error or DataError)(
            f"the lexicon {path} is not UTF-8 (byte {problem.start:,}): write it in UTF-8"
        ) from None
    except OSError as problem:
        raise (error or StorageError)(
            f"the lexicon {path} cannot be read: {problem.strerror}"
        ) from None
    except DataError as problem:
        raise (error or DataError)(str(problem)) from None
    return found


def _entries(path: Path, lines: Sequence[str]) -> Iterator[Entry]:
    split = _of_json if path.suffix.lower() in _JSON_LINES else _of_columns
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            name = f"{path}, line {number}"
            yield entry(*split(line, name), name)


def _of_columns(line: str, name: str) -> tuple[Any, Any]:
    phrase, tab, tag = line.partition("\t")
    if not tab or not tag.strip():
        raise DataError(f"{name} has no tag: expected a phrase, a tab and a tag")
    if "\t" in tag.rstrip():
        raise DataError(f"{name} has several tabs: expected a phrase, a tab and a tag")
    return phrase, tag


def _of_json(line: str, name: str) -> tuple[Any, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, Mapping):
        raise DataError(f'{name} is no JSON object: expected {{"{PHRASE}": ..., "{TAG}": ...}}')
    return record.get(PHRASE), record.get(TAG)


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Write entries as lines of a phrase, a tab and a tag; whole or not at all."""
    write_text(path, "".join(f"{phrase}\t{tag}\n" for phrase, tag in entries))


def require_tags(entries: Iterable[Entry], known: Sequence[str], name: str) -> None:
    """Refuse tags that a model has no type of entity for.

    Args:
        known: its types.
        name: what errors call the lexicon.

    Raises:
        ConfigError: there are some.
    """
    unknown = sorted({each.tag for each in entries}.difference(known))
    if unknown:
        raise ConfigError(
            f"{name} has tags that the model does not know: {few(unknown)} (it knows {few(known)})"
        )
