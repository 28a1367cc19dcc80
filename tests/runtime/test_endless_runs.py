"""Of words and spaces without end a beginning is enough, for BERT's tokenizers."""

from __future__ import annotations

import pytest
from tokenizer_kinds import word_pieces
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from trbert_deploy.runtime.endless_runs import endless_runs


def bert(most: int = 8, **options: bool) -> Tokenizer:
    """BERT's tokenizer; longer words than ``most`` characters are unknown."""
    pieces = word_pieces(True)
    tokenizer = Tokenizer(
        models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=most)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character_of_a_run_may_be_left_out(strip_accents: bool, lowercase: bool) -> None:
    tokenizer = bert(strip_accents=strip_accents, lowercase=lowercase)
    runs = endless_runs(tokenizer)
    assert runs is not None and runs.kept == 9
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found = [letter for letter in letters if runs.pattern.fullmatch(letter * 10)]
    assert {*"aZ9\u00e9\u044f\ud55c\u3042 \t\n\r\x00\u200b"} <= {*found}
    for letter in found:
        long, short = (f"\u03b2{letter * count}\u03b2" for count in (12, 9))
        assert runs.shortened(long) == (short, ((10, 3),))
        tokens = [tokenizer.encode(text, add_special_tokens=False).tokens for text in (long, short)]
        assert tokens[0] == tokens[1], ascii(letter)


def test_what_is_left_out_is_told_by_its_place() -> None:
    runs = endless_runs(bert(3))
    assert runs is not None
    assert runs.shortened("abcde fghi, \t\n     jklmnop") == (
        "abcd fghi, \t\n jklm",
        ((4, 1), (14, 5), (18, 8)),
    )
    assert runs.shortened("abcd") == ("abcd", ())


@pytest.mark.parametrize("content", ["aab", "<a", "a>", " <", "> ", "<\u200b"])
def test_where_added_tokens_may_lie_in_a_run_nothing_is_left_out(content: str) -> None:
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken(content, normalized=False)])
    assert endless_runs(tokenizer) is None


def test_a_run_is_longer_than_every_added_token() -> None:
    tokenizer = bert()
    tokenizer.add_tokens(["[an added token]"])
    runs = endless_runs(tokenizer)
    assert runs is not None and runs.kept == 17


def test_other_tokenizers_see_every_character() -> None:
    others = [bert(clean_text=False), bert(), bert()]
    others[1].pre_tokenizer = pre_tokenizers.Whitespace()
    others[2].normalizer = None
    byte_pairs = bert()
    byte_pairs.model = models.BPE()
    assert [endless_runs(tokenizer) for tokenizer in (*others, byte_pairs)] == [None] * 4
