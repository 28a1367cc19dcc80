"""Matches brought to tokens: those whose ends are ends of tokens, of any kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from trbert_deploy.lexicon.columns import AFTER, RIGHT, TAG, VALUES
from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.lexicon.matcher import Lexicon, Match
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.runtime.matching import with_matches, with_random_matches
from trbert_deploy.runtime.token_state import TokenRow, packed_matches

TAGS = ("X", "Y")


def bytes_tokenizer() -> Tokenizer:
    """A letter is a token, the space before a word too, and some letters are several."""
    alphabet = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


def searched(tokenizer: Tokenizer, text: str, matches: list[Match]) -> tuple[TokenRow, list[str]]:
    """The row, and the letters under each match that it tells of, by its first slot."""
    encoding = tokenizer.encode(text)
    ids = np.array(encoding.ids, np.int64)
    row = with_matches(TokenRow(ids, np.zeros_like(ids)), encoding, text, matches, TAGS)
    assert row.matches is not None
    told = []
    for place in range(len(row)):
        for tag, before, after in row.matches[place].tolist():
            if tag and not before:
                start, end = encoding.offsets[place][0], encoding.offsets[place + after][1]
                told.append(text[start:end].strip())
    return row, told


def test_words_of_pieces_and_bytes(tokenizer_dir: Path) -> None:
    pieces = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER_FILE))
    text = "the house of mürrs, a sailor"
    lexicon = Lexicon([Entry("house of", "X"), Entry("mürrs", "Y"), Entry("sailor", "X")])
    for tokenizer in (pieces, bytes_tokenizer()):
        row, told = searched(tokenizer, text, lexicon.find(text))
        assert told == ["house of", "mürrs", "sailor"]
        assert row.matches is not None
        known = row.matches[..., TAG].any(-1)
        assert row.protected[known].all() and row.protected.sum() == known.sum() + (not known[0])


def test_a_match_within_a_token_is_left_out(tokenizer_dir: Path) -> None:
    pieces = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER_FILE))
    text = "the village returns"
    inside = [Match(4, 8, "X"), Match(0, 6, "X"), Match(8, 19, "X"), Match(11, 12, "X")]
    row, told = searched(pieces, text, inside)
    assert told == [] and row.protected.tolist() == [True, False, False, False, False]


def test_what_is_right_stands_in_training_alone(tokenizer_dir: Path) -> None:
    pieces = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER_FILE))
    text = "the house"
    encoding = pieces.encode(text)
    ids = np.array(encoding.ids, np.int64)
    matches = [Match(0, 3, "X"), Match(4, 9, "Y")]
    row = with_matches(
        TokenRow(ids, np.zeros_like(ids)), encoding, text, matches, TAGS, {matches[1]}, VALUES + 1
    )
    assert row.matches is not None
    assert row.matches[1:3, 0].tolist() == [[1, 0, 0, 0], [2, 0, 0, 1]]
    bare = TokenRow(ids, np.zeros_like(ids))
    both = packed_matches([bare, row])
    assert both is not None and both.shape == (2 * len(row), 4, VALUES + 1)
    assert not both[: len(row)].any() and (both[len(row) :] == row.matches).all()
    assert packed_matches([bare]) is None
    assert RIGHT == VALUES and AFTER < VALUES


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_random_matches_are_whole_and_protected(length: int) -> None:
    ids = np.arange(length)
    (row,) = with_random_matches([TokenRow(ids, ids * 0)], 2)
    (again,) = with_random_matches([TokenRow(ids, ids * 0)], 2)
    assert row.matches is not None and again.matches is not None
    assert (row.matches == again.matches).all()
    assert row.matches.any() == (length > 1)
    assert row.protected[row.matches[..., TAG].any(-1)].all()
    rest = row.part(np.arange(length)).matches
    assert rest is not None and (rest == row.matches).all()
    assert with_random_matches([row], 0)[0] is row
