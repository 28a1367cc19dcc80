"""Noise of a lexicon in training: as much as was asked for, of both kinds, the same each time."""

from __future__ import annotations

import pytest
from conftest import make_texts

from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.lexicon.matcher import Lexicon, Match, is_boundary
from trbert_deploy.training.lexicon_noise import NoisyLexicon

LEXICON = Lexicon([Entry("the", "X"), Entry("film", "Y"), Entry("house of his", "X")])
TEXTS = [row["text"] for row in make_texts(400)]


def told(missing: float, wrong: float, seed: int = 0) -> list[list[Match]]:
    noisy = NoisyLexicon(LEXICON, ("X", "Y"), missing, wrong, seed)
    return [noisy.find(text) for text in TEXTS]


def test_without_noise_it_finds_what_the_lexicon_finds() -> None:
    assert told(0.0, 0.0) == [sorted(LEXICON.find(text)) for text in TEXTS]


@pytest.mark.parametrize("missing", [0.3, 0.5, 1.0])
def test_so_many_are_missing(missing: float) -> None:
    found = sum(len(LEXICON.find(text)) for text in TEXTS)
    left = sum(map(len, told(missing, 0.0)))
    assert left / found == pytest.approx(1 - missing, abs=0.05)


def test_so_many_are_wrong_of_both_kinds() -> None:
    right = [{*LEXICON.find(text)} for text in TEXTS]
    found = sum(max(1, len(each)) for each in right)
    wrong = [{*each} - own for each, own in zip(told(0.0, 0.4), right, strict=True)]
    # Some have the right tag by chance: half of those that take a match's place.
    assert 0.25 < sum(map(len, wrong)) / found < 0.4
    places = [{match[:2] for match in own} for own in right]
    retagged = sum(m[:2] in own for each, own in zip(wrong, places, strict=True) for m in each)
    assert 0.2 < retagged / sum(map(len, wrong)) < 0.6
    for text, each in zip(TEXTS, wrong, strict=True):
        assert all(is_boundary(text, m.start) and is_boundary(text, m.end) for m in each)


def test_a_seed_makes_the_same_noise() -> None:
    assert told(0.5, 0.3) == told(0.5, 0.3) != told(0.5, 0.3, seed=1)


def test_a_text_of_no_words_has_none() -> None:
    assert NoisyLexicon(LEXICON, ("X",), 0.5, 1.0, 0).find("...") == []
