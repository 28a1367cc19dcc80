"""Lexicons that a tagger is judged with: right ones, and wrong ones of which so many are wrong."""

from __future__ import annotations

import lexicons
import pytest

from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.tasks.examples import Example


def example(*words: tuple[str, str]) -> Example:
    target, start = [], 0
    for word, tag in words:
        target.append((start, start + len(word), tag))
        start += len(word) + 1
    return Example(" ".join(word for word, _ in words), target)


TRAINING = [
    example(("New", "B-LOC"), ("York", "I-LOC"), ("and", "O"), ("Lena", "B-PER")),
    example(("Lena", "B-ORG"), ("left", "O"), ("Bonn", "B-LOC"), ("with", "O"), ("him", "O")),
]
TEST = [example(("Bonn", "B-LOC"), ("saw", "O"), ("Rome", "B-LOC"), ("Otto", "B-PER"))]
OWN = [Entry("New York", "LOC"), Entry("Lena", "PER"), Entry("Lena", "ORG"), Entry("Bonn", "LOC")]


def test_entities_are_whole_and_once() -> None:
    assert lexicons.entities(TRAINING) == OWN
    assert lexicons.entities(TRAINING + TRAINING) == OWN


def test_conditions_add_what_they_say() -> None:
    def made(condition: str) -> list[Entry]:
        return lexicons.lexicon_of(condition, TRAINING, TEST)

    assert made("none") == [] and made("training") == OWN
    assert made("added") == [*OWN, Entry("Rome", "LOC"), Entry("Otto", "PER")]
    assert set(OWN) <= set(made("half")) < set(made("added"))


@pytest.mark.parametrize(("condition", "wrong"), [("wrong-10", 1), ("wrong-30", 3)])
def test_so_many_entries_are_wrong(condition: str, wrong: int) -> None:
    right = lexicons.lexicon_of("added", TRAINING, TEST)
    found = lexicons.lexicon_of(condition, TRAINING, TEST)
    assert found[: len(right)] == right and len(found) == len(right) + wrong
    assert {entry.tag for entry in found} <= {"LOC", "PER", "ORG"}
    assert len(set(found)) == len(found)


def test_all_conditions_are_known() -> None:
    for conditions in lexicons.CONDITIONS.values():
        for condition in conditions:
            lexicons.lexicon_of(condition, TRAINING, TEST)
