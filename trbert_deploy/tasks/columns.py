"""The columns of a record: which of them hold its text, the second text of a pair, its label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trbert_deploy.errors import DataError, few

TEXT, TEXT_PAIR, LABEL = "text", "text_pair", "label"

#: Pairs that are known by their names; the first one that a record has is taken.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("sentence_1", "sentence_2"),
)
#: Lone texts, likewise. The first halves of pairs are among them: some records may lack the other.
TEXTS = tuple(
    dict.fromkeys(
        (
            "sentence",
            "content",
            "review",
            "document",
            "body",
            "comment",
            "message",
            "tweet",
            "utterance",
            "passage",
            *(first for first, _ in PAIRS),
            "title",
        )
    )
)
#: Texts that are given as lists of their words, likewise; of tasks that ask for these.
WORDS = ("tokens", "words")
#: Labels, likewise.
LABELS = (
    LABEL,
    "labels",
    "gold_label",
    "class",
    "category",
    "target",
    "sentiment",
    "intent",
    "emotion",
    "topic",
)


@dataclass(frozen=True)
class Columns:
    """The columns that parts of a record stand in; None for what it has not."""

    text: str = TEXT
    pair: str | None = None
    label: str | None = None

    def taken(self) -> dict[str, str]:
        """What is there -> its column."""
        parts = {"text": self.text, "pair": self.pair, "label": self.label}
        return {part: column for part, column in parts.items() if column is not None}


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a user named; those left at None are found by the names that are known."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    @property
    def known_texts(self) -> frozenset[str]:
        """Names, as ``plain`` has them, by which a column of texts is known."""
        return frozenset((TEXT, *TEXTS, plain(self.text or TEXT)))

    def find(
        self,
        found: Sequence[str],
        labels: Sequence[str],
        where: str,
        texts: Sequence[str] = (),
        lists: Sequence[str] = (),
    ) -> Columns:
        """Find the columns among those that a record has, whatever their case.

        A column that was named for the text stands alone, but for ``text_pair`` or a named pair.

        Args:
            found: names of the record's columns.
            labels: names by which a target is known, the first ones first; none to look for none.
            where: what errors call the record.
            texts: further names by which the text is known, before all others.
            lists: further names by which the second text is known, before all others.

        Raises:
            DataError: no column is known to hold text, or the one that was named is not there.
        """
        known = {plain(name): name for name in reversed(found)} | {name: name for name in found}
        taken: set[str | None] = set()

        def take(*names: str) -> str | None:
            """The first column of these names that stands for nothing else yet."""
            free = (known[name] for name in names if name in known and known[name] not in taken)
            column = next(free, None)
            taken.add(column)
            return column

        text = None
        pair = take(*lists) if self.pair is None else take(self.pair, plain(self.pair))
        if self.text is not None:
            text = take(self.text, plain(self.text))
            if text is None:
                raise missing(self.text, found, where)
        elif texts:
            text = take(*texts)
        if text is None and pair is None and self.pair is None and TEXT not in known:
            both = next((pair for pair in PAIRS if known.keys() >= {*pair}), ())
            text, pair = map(take, both) if both else (None, None)
        if text is None:
            text = take(TEXT, *TEXTS)
        if text is None:
            raise DataError(
                f"{where} has the columns {_told(found)}: none is known to hold text, as "
                f"{', '.join((TEXT, *TEXTS[:8]))} and others are; name it with --text-column (the "
                "first line of a table is taken for the names of its columns)"
            )
        if pair is None and self.pair is None:
            pair = take(TEXT_PAIR)
        if labels and self.label is not None:
            labels = (self.label, plain(self.label))
        return Columns(text, pair, take(*labels))


def listed(value: Any) -> Any:
    """A list that was written in JSON, as a cell of a table has to; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def plain(name: str) -> str:
    """A column's name, whatever its case and the spaces around it."""
    return name.strip().casefold()


def missing(name: str, found: Sequence[str], where: str) -> DataError:
    """A column that was named is not there."""
    return DataError(f'{where} has no column "{name}": it has {_told(found)}')


def _told(found: Sequence[str]) -> str:
    return few((f'"{name}"' for name in found), 8) or "none"


def text_of(
    record: Mapping[str, Any], name: str, columns: Columns = Columns()
) -> str | tuple[str, str]:
    """The text, or the pair of texts, of one record.

    Raises:
        DataError: it is no string, empty, or no valid Unicode.
    """
    text = _string(record, columns.text, name)
    if columns.pair is None or record.get(columns.pair) is None:
        return text
    return text, _string(record, columns.pair, name)


def _string(record: Mapping[str, Any], field: str, name: str) -> str:
    part = record.get(field)
    if part is None:
        raise DataError(f'{name}: the field "{field}" is empty')
    if not isinstance(part, str):
        kind = type(part).__name__
        raise DataError(f'{name}: the field "{field}" is of type {kind}, expected a string')
    if not part.strip():
        raise DataError(f'{name}: the field "{field}" is empty')
    require_unicode(part, name)
    return part


def require_unicode(text: str, name: str) -> None:
    """Refuse what no file can be written with, and no tokenizer takes.

    Raises:
        DataError: half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} is no valid Unicode: it has half of a surrogate pair") from None
