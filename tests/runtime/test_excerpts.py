"""Long texts are cut before they are encoded, with the tokens that the whole texts give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_scripts import lines
from tokenizer_kinds import (
    KINDS,
    byte_pairs,
    template,
    unigram,
    word_pieces,
)
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from trbert_deploy.errors import DataError, LengthError
from trbert_deploy.runtime import tokenizing
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning

LONG = 8_000_000  # characters


def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(word_pieces(True), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = template()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", AddedToken("[MASK]", lstrip=True)])
    return tokenizer


def _byte_pairs() -> Tokenizer:
    vocab, merges = byte_pairs()
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_tokens([AddedToken(" " * count, normalized=False) for count in (2, 3, 7)])
    return tokenizer


def _digits_from_the_right() -> Tokenizer:
    tokenizer = _byte_pairs()
    digits = r"\p{N}{1,3}(?=(\p{N}{3})*(\P{N}|$))| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(unigram(), unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _pieces_of_a_fixed_length() -> Tokenizer:
    tokenizer = _word_pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(length=3)
    return tokenizer


def _without_words() -> Tokenizer:
    tokenizer = _unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": _word_pieces,
    "byte-level BPE": _byte_pairs,
    "byte-level BPE, digits from the right": _digits_from_the_right,
    "Unigram": _unigram,
    "Unigram without words": _without_words,
    "pieces of a fixed length": _pieces_of_a_fixed_length,
    **{kind: lambda kind=kind: KINDS[kind][1]().backend_tokenizer for kind in KINDS},  # type: ignore[misc]
}


@cache
def both(kind: str, side: str, max_length: int, directory: Path) -> tuple[Tokenizer, TextTokenizer]:
    """The library's tokenizer, and ours of the same file."""
    plain = MAKERS[kind]()
    plain.no_padding()
    plain.enable_truncation(max_length, direction=side)
    path = directory / f"{list(MAKERS).index(kind)}-{side}-{max_length}.json"
    plain.save(str(path))
    ours = TextTokenizer(path, max_length)
    ours.truncated = 1  # that texts are cut is no news here
    return plain, ours


def tokens_of(encoding: Encoding) -> list[Any]:
    return [
        encoding.ids,
        encoding.type_ids,
        encoding.tokens,
        encoding.offsets,
        encoding.special_tokens_mask,
        encoding.attention_mask,
        encoding.sequence_ids,
        bool(encoding.overflowing),
    ]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


counts = st.sampled_from((1, 2, 5, 40, 160))
pieces = st.one_of(
    st.sampled_from(lines(400, seed=8)),
    st.builds(str.__mul__, st.sampled_from("aZ=-é漢8я\u0301👍\u0600 \n\t\u3000\x00\u200b"), counts),
    st.builds(
        str.__mul__, st.sampled_from(("acgt", "12", "漢字。", " a", "[MASK] ", "<s>")), counts
    ),
    st.text(max_size=20),
)


def texts(most: int) -> st.SearchStrategy[str]:
    return st.lists(pieces, min_size=1, max_size=most).map("".join).filter(str.strip)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(list(MAKERS)),
    side=st.sampled_from(("right", "left")),
    max_length=st.sampled_from((5, 8, 13)),
    text=texts(40) | st.tuples(texts(6), texts(6)),
)
def test_tokens_are_those_of_the_whole_text(
    kind: str, side: str, max_length: int, text: str | tuple[str, str], scratch: Path
) -> None:
    plain, ours = both(kind, side, max_length, scratch)
    expected, found = plain.encode_batch([text])[0], ours.encode([text])[0]
    assert tokens_of(found) == tokens_of(expected)
    if side == "right":
        assert found.word_ids == expected.word_ids


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("more", [0, 1, 400])
def test_the_longer_of_two_long_texts_gets_the_token_left_over(
    side: str, order: int, more: int, scratch: Path
) -> None:
    plain, ours = both("WordPiece", side, 8, scratch)
    pair = (". a" * 100, ". a" * 100 + " b" * more)[::order]
    assert tokens_of(ours.encode([pair])[0]) == tokens_of(plain.encode_batch([pair])[0])


def test_the_order_of_a_pair_holds_where_a_cut_breaks_a_word(scratch: Path) -> None:
    plain, ours = both("WordPiece", "right", 8, scratch)
    pair = ("a b c d e f g h i j " + "acgtg" * 120, "a b c d e f g h i j k l m n o p")
    for texts in (pair, pair[::-1]):
        assert tokens_of(ours.encode([texts])[0]) == tokens_of(plain.encode_batch([texts])[0])


class Counted:
    """A tokenizer that counts the characters which it is handed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> Encoding:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def encode_batch(self, texts: list[Any]) -> list[Encoding]:
        self.characters += sum(len("".join(text)) for text in texts)
        return self._tokenizer.encode_batch(texts)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Callable[..., Any]:
    """Makes a tokenizer of ours, and what counts for it: ``counted("Unigram", "left")``."""

    def make(
        kind: str, side: str = "right", truncate: bool = True
    ) -> tuple[TextTokenizer, Counted]:
        both(kind, side, 64, scratch)
        made: list[Counted] = []

        class Opened:
            @staticmethod
            def from_file(path: str) -> Counted:
                made.append(Counted(Tokenizer.from_file(path)))
                return made[0]

        monkeypatch.setattr(tokenizing, "Tokenizer", Opened)
        path = scratch / f"{list(MAKERS).index(kind)}-{side}-64.json"
        ours = TextTokenizer(path, 64, truncate)
        ours.truncated = 1
        return ours, made[0]

    return make


def repeated(part: str) -> str:
    return part * (LONG // len(part))


ENDLESS = [
    *((kind, repeated("Two films, 1 of them good.\n")) for kind in list(MAKERS)[:4]),
    ("WordPiece", repeated("漢字")),
    ("byte-level BPE", repeated("漢字。")),
    ("byte-level BPE", repeated("        a")),
    ("WordPiece", repeated("a") + " b"),
    ("WordPiece", repeated("acgt") + " b"),
    ("WordPiece", repeated("я") + " b"),
    ("WordPiece", repeated(" ") + "word"),
    ("WordPiece", "word" + repeated("\n") + "word"),
    ("WordPiece", repeated("\x00") + "word"),
    ("WordPiece", "wo" + repeated("\u200b") + "rd"),
]


#: From the left, words are counted from a space on: without one, a text is encoded whole.
CASES = [
    (form, kind, text)
    for form in ("left", "right", "pair")
    for kind, text in ENDLESS
    if form != "left" or set(text[-20:]) & {" ", "\n"}
]


@pytest.mark.parametrize(("form", "kind", "text"), CASES, ids=range(len(CASES)))
def test_what_is_encoded_of_a_text_depends_on_the_maximum_length(
    form: str, kind: str, text: str, counted: Callable[..., Any]
) -> None:
    tokenizer, count = counted(kind, "left" if form == "left" else "right")
    tokenizer.encode([("a film", text) if form == "pair" else text])
    assert count.characters < 64 * 64


@pytest.mark.parametrize("unit", ["a", " ", "\x00", "acgt"])
def test_places_behind_what_was_left_out_are_those_of_the_text(unit: str, scratch: Path) -> None:
    for side in ("right", "left"):
        plain, ours = both("WordPiece", side, 8, scratch)
        run = unit * 1000
        for text in (f"b {run} c {run}d [MASK]", f"b{run}", (f"{run}e", f"f {run} g{run}h")):
            assert tokens_of(ours.encode([text])[0]) == tokens_of(plain.encode_batch([text])[0])


def test_a_run_in_which_added_tokens_may_lie_stays_whole(scratch: Path) -> None:
    tokenizer = _word_pieces()
    tokenizer.add_tokens([AddedToken("acg", normalized=False)])
    path = scratch / "added.json"
    tokenizer.save(str(path))
    tokenizer.enable_truncation(8)
    ours = TextTokenizer(path, 8)
    text = "t" * 500 + "acg" + "t" * 500
    assert tokens_of(ours.encode([text])[0]) == tokens_of(tokenizer.encode_batch([text])[0])


def test_a_longer_text_is_refused_without_counting_its_tokens(
    counted: Callable[..., Any],
) -> None:
    tokenizer, count = counted("WordPiece", truncate=False)
    for text in (repeated("a film "), ("a", repeated("a film "))):
        with pytest.raises(LengthError, match=r"^text 1 has more than 64 tokens: the model takes"):
            tokenizer.encode([text])
    with pytest.raises(LengthError, match=r"^text 1 has 82 tokens: the model takes at most 64"):
        tokenizer.encode(["a " * 80])
    assert count.characters < 2 * 64 * 64
    rows = tokenizer.rows_of_length([repeated("a film ")], 64, 2)
    assert [len(row) for row in rows] == [64, 64] and count.characters < 3 * 64 * 64


def test_texts_that_were_cut_are_counted_and_warned_of(scratch: Path) -> None:
    both("WordPiece", "left", 8, scratch)
    fresh = TextTokenizer(scratch / f"{list(MAKERS).index('WordPiece')}-left-8.json", 8)
    with pytest.warns(TruncationWarning, match="longer than 8 tokens"):
        fresh.encode(["a film " * 500, "a " + " " * 5000])
    assert (fresh.encoded, fresh.truncated) == (2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.encode(["a film " * 500])
    assert fresh.truncated == 2


def test_half_of_a_surrogate_pair_matters_where_it_is_used(scratch: Path) -> None:
    _, ours = both("WordPiece", "right", 8, scratch)
    words = "a film " * 500
    expected = ours.encode([words])[0].ids
    assert ours.encode([words + "\ud83d"])[0].ids == expected
    for text in ("\ud83d" + words, ("a", "\udc00" + words), "a" * 1000 + " \ud83d"):
        with pytest.raises(DataError, match=r"^text 1 is no valid Unicode: it has half of a surro"):
            ours.encode([text])


def test_a_long_text_of_spaces_is_empty(scratch: Path) -> None:
    _, ours = both("WordPiece", "right", 8, scratch)
    for text in (" " * 100_000, ("a", "\n" * 100_000)):
        with pytest.raises(DataError, match=r"^text 1 is empty"):
            ours.encode([text])


LONG_TOKEN = "x a b c d e f g h i j k l m n o p q"


@pytest.mark.parametrize(
    ("kind", "added", "side", "text"),
    [
        ("WordPiece", LONG_TOKEN, "right", f"{LONG_TOKEN} " * 20),
        ("WordPiece", "b ab", "left", "b" + " ab" * 200),
        ("pieces of a fixed length", "<x>", "left", "ab c " * 60 + "x"),
        ("byte-level BPE", "<x>", "left", "a" + " " * 502 + "b"),
    ],
)
def test_what_is_found_from_the_left_on_is_found_at_its_place(
    kind: str, added: str, side: str, text: str, scratch: Path
) -> None:
    plain = MAKERS[kind]()
    plain.add_tokens([AddedToken(added, normalized=False)])
    plain.enable_truncation(5, direction=side)
    plain.save(str(scratch / "found.json"))
    ours = TextTokenizer(scratch / "found.json", 5)
    ours.truncated = 1
    assert tokens_of(ours.encode([text])[0]) == tokens_of(plain.encode_batch([text])[0])
