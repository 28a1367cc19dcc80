"""Phrases in texts: those that stand there as whole words, all of them, and no other."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.lexicon.matcher import Lexicon, Match, Matchers, is_boundary

LETTERS = st.text("ab .京é", min_size=1, max_size=4).filter(lambda text: text.strip() == text)
ENTRIES = st.lists(st.builds(Entry, LETTERS, st.sampled_from("XY")), min_size=1, max_size=8)


def found(text: str, *phrases: str) -> list[str]:
    matches = Lexicon([Entry(phrase, "X") for phrase in phrases]).find(text)
    return [text[match.start : match.end] for match in matches]


@given(ENTRIES, st.text("ab .京é", max_size=30))
def test_it_finds_what_looking_everywhere_finds(entries: list[Entry], text: str) -> None:
    expected = {
        Match(start, start + len(phrase), tag)
        for phrase, tag in entries
        for start in range(len(text))
        if text.startswith(phrase, start)
        and is_boundary(text, start)
        and is_boundary(text, start + len(phrase))
    }
    matches = Lexicon(entries).find(text)
    assert set(matches) == expected and len(matches) == len(expected)
    assert matches == sorted(matches, key=lambda match: (match.start, -match.end, match.tag))


def test_words_are_whole() -> None:
    assert found("York, New York and Yorkshire (York)", "York") == ["York"] * 3
    assert found("the U.S. (U.S.)", "U.S.") == ["U.S."] * 2
    assert found("rock'n'roll", "n") == ["n"]
    assert found("naïve nai\u0308ve", "nai") == []  # a mark belongs to its letter
    assert found("in 1999 and 19990", "1999") == ["1999"]


def test_where_words_have_no_spaces_they_begin_anywhere() -> None:
    assert found("我住在北京市", "北京") == ["北京"]
    assert found("ในกรุงเทพ", "กรุงเทพ") == ["กรุงเทพ"]


def test_overlapping_phrases_are_all_found() -> None:
    text = "New York Times Square"
    assert found(text, "New York Times", "New York", "Times Square", "York") == [
        "New York Times",
        "New York",
        "York",
        "Times Square",
    ]


def test_case_matters() -> None:
    assert found("US us", "US") == ["US"]


def test_a_phrase_may_have_several_tags() -> None:
    lexicon = Lexicon([Entry("Jordan", "PER"), Entry("Jordan", "LOC"), Entry("Jordan", "PER")])
    assert len(lexicon) == 1
    assert [match.tag for match in lexicon.find("Jordan")] == ["LOC", "PER"]


def test_what_several_lexicons_find_is_there_once() -> None:
    one, other = Lexicon([Entry("a", "X"), Entry("b", "X")]), Lexicon([Entry("a", "X")])
    assert Matchers([one, other]).find("b a") == [Match(0, 1, "X"), Match(2, 3, "X")]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ahocorasick_rs", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trbert-deploy\[lexicon\]'"):
        Lexicon([Entry("a", "X")])
