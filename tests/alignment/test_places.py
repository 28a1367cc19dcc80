"""Words and characters of a text, by what tokenizers of every kind say of their tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_scripts import lines
from tokenizer_kinds import write_kind
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from trbert_deploy.alignment.places import Place, characters_of, words_of
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.runtime.tokenizing import TextTokenizer

#: One with subwords, one with bytes and spaces in its tokens, two with spaces before words.
SEVERAL = ("bert, lower-cased", "roberta", "xlm-roberta", "deberta-v2, lower-cased")


@pytest.fixture(scope="module", params=SEVERAL)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("kind")
    write_kind(request.param, directory)
    read = tokenizer_directory(str(directory), tmp_path_factory.mktemp("read"))
    return TextTokenizer(read / TOKENIZER_FILE, 4096)


def by_characters() -> Tokenizer:
    letters = {letter: place for place, letter in enumerate("?[]abcde é中")}
    tokenizer = Tokenizer(models.WordLevel(letters, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="[ $A ]", pair="[ $A ] $B ]", special_tokens=[("[", 1), ("]", 2)]
    )
    return tokenizer


def by_bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: n for n, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def told(places: list[Place]) -> list[tuple[int, str, list[int]]]:
    return [(place.index, place.text, place.tokens.tolist()) for place in places]


def test_words_are_what_spaces_part(tokenizer: TextTokenizer) -> None:
    text = "  Don't stop,\tthe  U.S.A.\n£5 it is "
    (encoding,) = tokenizer.encode([text])
    places = words_of(text, encoding)
    assert [place.text for place in places] == text.split()
    assert [place.index for place in places] == list(range(len(places)))
    special = {place for place, each in enumerate(encoding.special_tokens_mask) if each}
    tokens = [token for place in places for token in place.tokens]
    assert tokens == sorted(tokens) and not special & {*tokens}
    for place in places:
        assert text[place.start : place.end] == place.text
        for start, end in (encoding.offsets[token] for token in place.tokens):
            assert text[start:end].strip() in place.text


def test_every_token_with_letters_is_of_one_word_and_of_one_character(
    tokenizer: TextTokenizer,
) -> None:
    for text in lines(60, seed=5):
        if text.isspace() or not text:
            continue
        (encoding,) = tokenizer.encode([text])
        with_letters = [
            place
            for place, ((start, end), owner) in enumerate(
                zip(encoding.offsets, encoding.sequence_ids, strict=True)
            )
            if owner is not None and text[start:end].strip()
        ]
        characters = characters_of(text, encoding)
        assert [each for place in characters for each in place.tokens] == with_letters
        assert {int(each) for place in words_of(text, encoding) for each in place.tokens} == {
            *with_letters
        }
        for one, other in pairwise(characters):
            assert one.end <= other.start
        for place in characters:
            assert place.text == text[place.start : place.end] == place.text.strip() != ""
            assert place.index == place.start


def test_characters_are_characters_where_tokens_are() -> None:
    text = "bad é  中"
    encoding = by_characters().encode(text)
    assert told(characters_of(text, encoding)) == [
        (0, "b", [1]), (1, "a", [2]), (2, "d", [3]), (4, "é", [5]), (7, "中", [8]),
    ]  # fmt: skip
    assert told(words_of(text, encoding)) == [(0, "bad", [1, 2, 3]), (1, "é", [5]), (2, "中", [8])]


def test_the_bytes_of_a_character_are_one_place() -> None:
    text = "aé 中😀"
    encoding = by_bytes().encode(text)
    assert len(encoding) == 1 + 2 + 1 + 3 + 4
    found = characters_of(text, encoding)
    assert [(place.text, len(place.tokens)) for place in found] == [
        ("a", 1), ("é", 2), ("中", 3), ("😀", 4),
    ]  # fmt: skip


def test_words_without_a_token_are_left_out_and_counted(tokenizer: TextTokenizer) -> None:
    text = "one two three"
    (encoding,) = tokenizer.encode([text])
    encoding.truncate(sum(end <= 4 for _, end in encoding.offsets[:-1]))
    assert [(place.index, place.text) for place in words_of(text, encoding)][:1] == [(0, "one")]
    assert "three" not in [place.text for place in words_of(text, encoding)]


def test_a_removed_character_is_no_word_of_its_own() -> None:
    class Cleaned:  # as a normalizer leaves a text that has a control character alone
        offsets = [(0, 0), (0, 2), (5, 7), (0, 0)]
        sequence_ids = [None, 0, 0, None]

    assert told(words_of("ab \x00 cd", Cleaned())) == [(0, "ab", [1]), (2, "cd", [2])]


def test_a_token_over_two_words_is_of_both() -> None:
    class Joined:
        offsets = [(0, 4), (4, 5)]
        sequence_ids = [0, 0]

    assert told(words_of("a bcd", Joined())) == [(0, "a", [0]), (1, "bcd", [0, 1])]
    assert told(characters_of("a bcd", Joined())) == [(0, "a bc", [0]), (4, "d", [1])]


@settings(max_examples=50)
@given(st.text("abc é中\t", max_size=30))
def test_places_are_in_order_whatever_the_text(text: str) -> None:
    encoding: Encoding = by_characters().encode(text)
    words, characters = words_of(text, encoding), characters_of(text, encoding)
    assert [place.text for place in words] == text.split()
    assert "".join(place.text for place in characters) == "".join(text.split())
