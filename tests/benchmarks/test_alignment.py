"""Fake English, the truth about its letters, and what is counted."""

from __future__ import annotations

import random
from itertools import pairwise

import alignment
import pytest
from alignment import BEFORE, LETTERS, Condition, FakeEnglish, Pair, make_pair, make_pairs, score
from hypothesis import given
from hypothesis import strategies as st

WORDS = (
    alignment.simplified("Don't stop, he SAID: it is <br /> 3 o'clock. The house of the war.") * 9
)


def back(text: str) -> str:
    """A text in the other script, in letters of English."""
    georgian = {chr(ord(letter) + alignment.SHIFT): letter for letter in LETTERS}
    return "".join(georgian.get(letter, letter) for letter in text)


def test_texts_are_of_known_letters_and_marks() -> None:
    known = {*LETTERS, *alignment.SHARED}
    assert {letter for word in WORDS for letter in word} <= known and "don't" in WORDS
    ids = alignment.character_tokenizer().get_vocab()
    assert known <= ids.keys() and len(ids) == alignment.new_encoder("rotary").config.vocab_size
    assert ids["[PAD]"] == alignment.PAD and ids["[MASK]"] == alignment.MASK


def test_english_and_fake_english_share_no_letter() -> None:
    fake = FakeEnglish()
    for word in WORDS:
        assert not {*fake.word(word)} & {*LETTERS}
        assert back(fake.word(word)) == word


def test_words_of_their_own_have_other_letters_and_the_same_marks() -> None:
    fake = FakeEnglish(changed=1.0)
    words = {*WORDS}
    for word in words:
        drawn = back(fake.word(word))
        assert fake.word(word) == fake.word(word) and len(drawn) == len(word)
        assert [each in LETTERS for each in drawn] == [each in LETTERS for each in word]
    assert sum(back(fake.word(word)) == word for word in words) <= 1  # a word of one letter may be


def test_what_is_changed_stays_changed_as_the_languages_part() -> None:
    changed = [
        {word for word in WORDS if FakeEnglish(changed=share).changes(word)}
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert changed == sorted(changed, key=len) and not changed[0] and changed[-1] == {*WORDS}
    assert all(one <= other for one, other in pairwise(changed))


@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, BEFORE))
def test_the_truth_is_letter_to_letter(seed: int, swapped: float, before: int) -> None:
    words = WORDS[:7]
    fake = FakeEnglish(swapped=swapped)
    pair = make_pair(words, before, fake, random.Random(seed))
    assert len(pair.truth) == sum(letter in LETTERS for letter in pair.source)
    for source, target in pair.truth:
        assert back(pair.target[target]) == pair.source[source]
    assert sorted(back(pair.target).split()) == sorted(words)
    assert len({target for _, target in pair.truth}) == len(pair.truth)
    if not swapped:
        shift = len(pair.target) - len(pair.source)
        assert all(target - source == shift for source, target in pair.truth)
        assert (shift == 0) == (before == 0)


def test_every_condition_has_the_same_texts() -> None:
    near, far = (make_pairs(WORDS, Condition(changed=share), 9) for share in (0.0, 1.0))
    assert [pair.source for pair in near] == [pair.source for pair in far]
    assert [pair.truth for pair in near] == [pair.truth for pair in far]
    assert near != far


def test_marks_are_not_counted() -> None:
    pair = Pair("a, b", "xx ა, ბ", frozenset({(0, 3), (3, 6)}))
    right = score([pair], [{(0, 3), (1, 4), (3, 6)}])
    assert (right.precision, right.recall, right.f1) == (1.0, 1.0, 1.0)
    half = score([pair], [{(0, 3), (0, 0), (3, 5)}])
    assert half.precision == pytest.approx(1 / 3) and half.recall == 0.5
    assert half.f1 == pytest.approx(0.4)
    assert score([pair], [set()]).f1 == 0.0


def test_training_masks_no_special_token_and_learns() -> None:
    model = alignment.new_encoder("rotary")
    text = alignment.tokens_of(WORDS * 3, None, 0)
    fake = alignment.tokens_of(WORDS * 3, FakeEnglish(), 0)
    losses = list(alignment.train(model, [text, fake], 12))
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert not {*text.tolist()} & {*range(5)}
