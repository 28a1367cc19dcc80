"""Examples of mixed sources: which columns are taken, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.reading.examples import _Finder, count_examples, no_note, read_examples
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.runtime.reading.sources import STDIN
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import TextClassification


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, *names: str | None, with_targets: bool = True) -> tuple[list, list[str]]:
    notes: list[str] = []
    examples = read_examples(
        path, TextClassification, ColumnNames(*names), notes.append, with_targets=with_targets
    )
    return [(example.text, example.target) for example in examples], notes


def test_labelled_and_unlabelled_records_are_mixed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"text": "a", "label": "x"},
        {"text": "b"},
        {"text": "c", "label": None},
        {"label": 2, "text": "d", "text_pair": "e"},
    )
    rows = [("a", "x"), ("b", None), ("c", None), (("d", "e"), "2")]
    assert read(path) == (rows, [])
    assert read(path, with_targets=False)[0] == [(text, None) for text, _ in rows]


def test_other_names_are_told_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"sentence": "a", "gold_label": 1},
        {"gold_label": 1, "sentence": "a"},
        {"sentence": "b"},
        {"premise": "a", "hypothesis": "c"},
        {"Sentence": "b", "label": 1},
    )
    rows, notes = read(path)
    assert rows == [("a", "1"), ("a", "1"), ("b", None), (("a", "c"), None), ("b", "1")]
    assert notes == [
        'a.jsonl: text from "sentence", label from "gold_label"',
        'a.jsonl: text from "premise", pair from "hypothesis"',
        'a.jsonl: text from "Sentence", label from "label"',
    ]
    assert read(path, with_targets=False)[1][0] == 'a.jsonl: text from "sentence"'


def test_names_go_with_examples(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("premise,hypothesis,label\na,b,0\n")
    (example,) = read_examples(tmp_path / "a.csv", TextClassification)
    assert example == Example(("a", "b"), "0") and example.name == "a.csv, line 2"


def test_labels_that_nobody_asked_for_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": {"x": 1}})
    assert read(path, with_targets=False)[0] == [("a", None)]
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: the label is an object"):
        read(path)


def test_a_named_column_that_is_nowhere_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "mark": "x", "next": "c"})
    with pytest.raises(DataError, match=r'a\.jsonl, line 1 has no column "body": it has "text"'):
        read(path, "body")
    with pytest.raises(DataError, match=r'a\.jsonl, line 1 has no column "next"'):
        read(path, None, "next")
    assert read(path, None, None, "mark")[0] == [("a", None), ("b", "x")]
    assert read(path, None, None, "gold", with_targets=False)[0] == [("a", None), ("b", None)]
    with pytest.raises(DataError, match=r'to its end, has no column "gold": it has "text", "mark"'):
        read(path, None, None, "gold")
    path = write(tmp_path / "a.jsonl", {"text": "b", "next": "c"}, {"text": "a"})
    assert read(path, None, "next")[0] == [(("b", "c"), None), ("a", None)]


def test_a_named_text_tells_a_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("words;mark\na;b\n")
    assert read(tmp_path / "a", "words", None, "mark")[0] == [("a", "b")]
    (tmp_path / "a").write_text("text;mark\na;b\n")
    with pytest.raises(DataError, match=r'a, line 2 has no column "words": it has "text", "mark"'):
        read(tmp_path / "a", "words")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.json", "[]"), ("a.csv", "text,label\n"), ("a.txt", "\n"), ("a", " ")],
)
def test_an_empty_source_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"^{name} is empty: expected lines such as"):
        read(tmp_path / name)


def test_findings_do_not_pile_up(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"text": "a", str(n): 1} for n in range(600)))
    assert len(read(path)[0]) == 600
    rows = [{"text": "a", "next": "b"}, *({"text": "a", str(n): 1} for n in range(600))]
    assert len(read(write(path, *rows), None, "next")[0]) == 601
    finder = _Finder("a", ColumnNames(), TextClassification, no_note, with_targets=False)
    for number in range(600):
        finder.columns_of(Record("a", {"text": "a", str(number): 1}))
    assert len(finder._found) <= 256


def test_examples_are_counted_where_they_can_be_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    assert count_examples(path) == 2
    (tmp_path / "a").write_text("words,more\na,b\n")
    assert count_examples(tmp_path / "a", ColumnNames("Words")) == 1
    assert count_examples(STDIN) is None
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    assert count_examples(tmp_path / "pipe") is None


def test_texts_come_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nnonsense')
    examples: Iterable[Example] = read_examples(path, TextClassification)
    assert next(iter(examples)).text == "a"
