"""Which columns of a record are taken."""

from __future__ import annotations

import pytest

from trbert_deploy.errors import DataError
from trbert_deploy.tasks.columns import PAIRS, TEXTS, ColumnNames, Columns, text_of

LABELS = ("label", "gold_label")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("text",), Columns("text")),
        (("label", "text_pair", "text"), Columns("text", "text_pair", "label")),
        (("sentence", "gold_label"), Columns("sentence", None, "gold_label")),
        (("gold_label", "sentence", "label"), Columns("sentence", None, "label")),
        ((" Sentence ", "LABEL"), Columns(" Sentence ", None, "LABEL")),
        (("Text", "text", "TEXT"), Columns("text")),
        (("SENTENCE", "Sentence"), Columns("SENTENCE")),
        (("title", "body"), Columns("body")),
        (("sentence", "text_pair"), Columns("sentence", "text_pair")),
        (("text", "premise", "hypothesis"), Columns("text")),
        (("hypothesis", "Premise"), Columns("Premise", "hypothesis")),
        (("premise",), Columns("premise")),
        (("question", "sentence", "context"), Columns("question", "context")),
        *(((*pair, "id"), Columns(*pair)) for pair in PAIRS),
        *(((text, "id"), Columns(text)) for text in TEXTS),
    ],
)
def test_columns_are_known_by_their_names(found: tuple[str, ...], expected: Columns) -> None:
    assert ColumnNames().find(found, LABELS, "line 1") == expected


@pytest.mark.parametrize(
    ("names", "found", "expected"),
    [
        (ColumnNames("a"), ("text", "A "), Columns("A ")),
        (ColumnNames("premise"), ("premise", "hypothesis"), Columns("premise")),
        (ColumnNames("a"), ("a", "text_pair"), Columns("a", "text_pair")),
        (ColumnNames(pair="b"), ("sentence", "b"), Columns("sentence", "b")),
        (ColumnNames(pair="text"), ("text", "sentence"), Columns("sentence", "text")),
        (ColumnNames(pair="b"), ("premise", "hypothesis"), Columns("premise")),
        (ColumnNames("a", "b", "c"), ("c", "b", "a", "label"), Columns("a", "b", "c")),
        (ColumnNames(label="c"), ("text", "label"), Columns("text")),
        (ColumnNames("label"), ("text", "label"), Columns("label")),
    ],
)
def test_named_columns_decide(
    names: ColumnNames, found: tuple[str, ...], expected: Columns
) -> None:
    assert names.find(found, LABELS, "line 1") == expected


def test_no_label_is_looked_for_unless_asked() -> None:
    assert ColumnNames(label="c").find(("text", "c", "label"), (), "line 1") == Columns("text")


@pytest.mark.parametrize(
    ("names", "found", "message"),
    [
        (
            ColumnNames(),
            ("id", "words"),
            'line 1 has the columns "id", "words": none is known to hold text, as text, sent'
            "ence, .* --text-column",
        ),
        (ColumnNames(), (), r"has the columns none: "),
        (ColumnNames(), tuple(map(str, range(99))), '"6", "7" and 91 more: none'),
        (ColumnNames("a"), ("text",), 'line 1 has no column "a": it has "text"'),
        (ColumnNames("a", "a"), ("a",), 'line 1 has no column "a"'),
    ],
)
def test_a_text_that_is_not_found_is_told(
    names: ColumnNames, found: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        names.find(found, LABELS, "line 1")


def test_texts() -> None:
    pair = Columns("a", "b")
    assert text_of({"text": "x"}, "line 1") == "x"
    assert text_of({"a": "x", "b": "y"}, "line 1", pair) == ("x", "y")
    assert text_of({"a": "x", "b": None}, "line 1", pair) == "x"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a": 1, "b": "y"}, 'line 1: the field "a" is of type int, expected a string'),
        ({"a": None}, 'line 1: the field "a" is empty'),
        ({"a": "x", "b": " "}, 'line 1: the field "b" is empty'),
        ({"a": "x", "b": "\ud800"}, "line 1 is no valid Unicode: it has half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_told(record: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        text_of(record, "line 1", Columns("a", "b"))
