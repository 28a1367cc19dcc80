"""Texts to rows of tokens: what is a text, what is cut, and what tokens say of themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BERT_SPECIAL
from many_scripts import lines, pairs
from tokenizer_kinds import KINDS, template, word_pieces, write_kind
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from trbert_deploy.errors import ConfigError, DataError, FileFormatError, LengthError
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning

PAD, UNK, CLS, SEP, MASK = range(len(BERT_SPECIAL))
LINES, PAIRS = lines(200, seed=6), pairs(100, seed=7)

TokenizerMaker = Callable[..., TextTokenizer]


@pytest.fixture
def make(tmp_path: Path) -> TokenizerMaker:
    """Makes a WordPiece tokenizer with any template: ``make(template(), max_length=16)``."""

    def build(
        post_processor: object = None,
        max_length: int = 64,
        truncate: bool = True,
        cut: str | None = None,
    ) -> TextTokenizer:
        tokenizer = Tokenizer(WordPiece(word_pieces(True), unk_token="[UNK]"))
        tokenizer.normalizer = BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        if post_processor is not None:
            tokenizer.post_processor = post_processor
        if cut is not None:
            tokenizer.enable_truncation(5, direction=cut)
        tokenizer.enable_padding(length=20)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return TextTokenizer(tmp_path / "tokenizer.json", max_length, truncate)

    return build


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Pipeline:
    return load_checkpoint_pipeline(tiny_checkpoint, threads=1)


def ids(tokenizer: TextTokenizer, text: object) -> list[int]:
    return tokenizer.encode([text])[0].ids  # type: ignore[list-item]


def test_a_pair_may_be_a_tuple_or_a_list(make: TokenizerMaker) -> None:
    tokenizer = make(template())

    class Pair(tuple[str, str]):
        pass

    encodings = tokenizer.encode([("ab", "cd"), ["ab", "cd"], Pair(("ab", "cd"))])
    for encoding in encodings:
        assert encoding.ids == encodings[0].ids
        first = encoding.ids.index(SEP) + 1
        assert encoding.type_ids == [0] * first + [1] * (len(encoding) - first)


def test_what_holds_texts_may_be_of_any_kind_with_an_order(make: TokenizerMaker) -> None:
    tokenizer = make(template())
    expected = [ids(tokenizer, text) for text in ("ab", "cd")]
    for texts in (["ab", "cd"], ("ab", "cd"), np.array(["ab", "cd"]), {"ab": 1, "cd": 2}.keys()):
        if isinstance(texts, np.ndarray | list | tuple):
            assert [encoding.ids for encoding in tokenizer.encode(texts)] == expected
            assert len(tokenizer.rows_of_length(texts, 8, 2)) == 2
        else:  # a set has no order
            with pytest.raises(DataError, match="the texts are of type dict_keys"):
                tokenizer.encode(texts)  # type: ignore[arg-type]
    assert tokenizer.encode([]) == [] and tokenizer.encode(np.array([], dtype=str)) == []


WRONG_TEXTS = [
    (None, "of type NoneType: expected a string, or a pair of two strings"),
    (5, "of type int: expected a string, or a pair"),
    (1.5, "of type float"),
    (float("nan"), "of type float"),
    (True, "of type bool"),
    (b"a film", "of type bytes: expected a string, or a pair of two strings, so decode it"),
    ({"text": "a"}, "of type dict"),
    ({"a", "b"}, "of type set"),
    (np.array(["a", "b"]), "of type ndarray"),
    ((), "a tuple of 0: expected"),
    (("a",), "a tuple of 1: expected"),
    (("a", "b", "c"), "a tuple of 3: expected a string, or a pair of two strings"),
    (["a", "b", "c"], "a list of 3: expected"),
    (("a", None), "a pair whose second is of type NoneType: expected a string"),
    ((None, "a"), "a pair whose first is of type NoneType"),
    (("a", b"b"), "a pair whose second is of type bytes"),
    ((("a", "b"), "c"), "a pair whose first is of type tuple"),
    ([["a"], ["b"]], "a pair whose first is of type list"),
    ("", "empty: expected at least one word"),
    (" \n\t\u3000", "empty"),
    (("a", " "), "empty"),
    ("a \ud83d", "no valid Unicode"),
    (["a", "\udc00"], "no valid Unicode"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS)
def test_what_is_no_text_is_refused_by_its_place(
    pipeline: Pipeline, text: object, message: str
) -> None:
    for call in (
        lambda: pipeline(["a film", text]),  # type: ignore[list-item]
        lambda: list(pipeline.stream(iter(["a film", text]), batch_size=1)),  # type: ignore[list-item]
        lambda: pipeline.tokenizer.rows_of_length(["a film", text], 8, 1),  # type: ignore[list-item]
    ):
        with pytest.raises(DataError) as caught:
            call()
        line = str(caught.value)
        assert line.startswith("text 2 is ") and message in line and "\n" not in line


@pytest.mark.parametrize("texts", [None, 5, b"a film", {"text": "a film"}, {"a film"}])
def test_what_holds_no_texts_is_refused(pipeline: Pipeline, texts: object) -> None:
    kind = type(texts).__name__
    for call in (
        lambda: pipeline(texts),  # type: ignore[arg-type]
        lambda: list(pipeline.stream(texts)),  # type: ignore[arg-type]
        lambda: pipeline.tokenizer.rows_of_length(texts, 8, 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(DataError, match=f"^the texts are of type {kind}: expected a list"):
            call()


def test_a_lone_string_is_one_text_or_none(pipeline: Pipeline) -> None:
    (streamed,) = pipeline.stream("a wonderful film")
    assert streamed == pipeline("a wonderful film")[0]
    with pytest.raises(DataError, match="the texts are of type str"):
        pipeline.tokenizer.encode("a wonderful film")
    with pytest.raises(DataError, match="the texts are of type generator"):
        pipeline(text for text in ("a", "b"))  # type: ignore[arg-type]


def test_types_of_tokens_are_those_of_the_template(make: TokenizerMaker) -> None:
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    tokenizer = make(
        TemplateProcessing("$A:1 [SEP]:1 [CLS]:2", "$A:0 [SEP]:0 $B:3 [CLS]:2", special)
    )
    alone, together = tokenizer.encode(["ab", ("ab", "cd")])
    count = len(alone) - 2
    assert alone.type_ids == [1] * (count + 1) + [2]
    assert together.type_ids[: count + 1] == [0] * (count + 1)
    assert together.type_ids[-2:] == [3, 2]
    for row in tokenizer.rows_of_length(["ab cd", "ef"], 9, 2):
        assert row.token_type_ids.tolist() == [1] * 8 + [2]
        assert row.input_ids.tolist()[-2:] == [SEP, CLS]


def test_a_template_may_have_no_special_tokens(make: TokenizerMaker) -> None:
    tokenizer = make(None, max_length=1)
    assert len(ids(tokenizer, ".")) == 1
    tokenizer = make(None)
    alone = ids(tokenizer, "ab cd")
    assert not {CLS, SEP} & set(alone)
    assert ids(tokenizer, ("ab", "cd")) == alone
    for length in (1, 5, 64):
        assert [len(row) for row in tokenizer.rows_of_length(["ab", "cd"], length, 2)] == [
            length
        ] * 2


@pytest.mark.parametrize("text", ["\u200b", "\x00", "\u200d\u200e", ("\u200b", "\x01")])
def test_a_text_of_nothing_keeps_special_tokens_or_is_refused(
    make: TokenizerMaker, text: object
) -> None:
    count = 3 if isinstance(text, tuple) else 2
    assert ids(make(template()), text) == [CLS, SEP, SEP][:count]
    bare = make(None)
    with pytest.raises(DataError, match=r"^text 2 gives no token: expected a character that"):
        bare.encode(["ab", text])  # type: ignore[list-item]
    with pytest.raises(DataError, match="the texts have no token that the tokenizer knows"):
        bare.rows_of_length([text], 8, 1)  # type: ignore[list-item]


@pytest.mark.parametrize("max_length", [-1, 0, 1, 3])
def test_a_maximum_without_room_is_refused(make: TokenizerMaker, max_length: int) -> None:
    with pytest.raises(ConfigError, match=f"maximum length is {max_length}: expected at least 4"):
        make(template(), max_length)


def test_the_shortest_maximum_takes_singles_and_pairs(make: TokenizerMaker) -> None:
    tokenizer = make(template(), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        encodings = tokenizer.encode(["ab cd ef gh", ("ab cd", "ef gh"), "."])
    assert [len(encoding) for encoding in encodings] == [4, 4, 3]
    assert tokenizer.truncated == 2 and tokenizer.encoded == 3


def test_long_texts_are_refused_where_they_are_not_cut(make: TokenizerMaker) -> None:
    tokenizer = make(template(), 6, truncate=False)
    for text in ("ab " * 20, ("ab " * 20, "cd")):
        with pytest.raises(LengthError, match=r"text 1 has \d+ tokens: the model takes at most 6"):
            tokenizer.encode([text])


def test_the_file_says_which_side_is_cut_and_nothing_else(make: TokenizerMaker) -> None:
    text = " ".join(LINES[:3])
    whole = ids(make(template(), 10**6), text)
    for cut, middle in (("right", whole[1:9]), ("left", whole[-9:-1])):
        with pytest.warns(TruncationWarning, match="longer than 10 tokens are cut"):
            assert ids(make(template(), 10, cut=cut), text) == [CLS, *middle, SEP]
    assert ids(make(template(), 64, cut="left"), "ab") == ids(make(template()), "ab")


def assert_offsets(text: str, encoding: Encoding, part: int) -> None:
    """Offsets lie in the text and ascend; words do, too.

    A space that the tokenizer itself put before a word may be an empty place behind its letter.
    """
    before, word = 0, -1
    for (start, stop), owner, of in zip(
        encoding.offsets, encoding.sequence_ids, encoding.word_ids, strict=True
    ):
        if owner == part and of is not None:
            assert 0 <= start <= stop <= len(text)
            assert of >= word and (start >= before or before == stop)
            before, word = start, of


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_and_words_stay_with_their_tokens(kind: str, tmp_path: Path) -> None:
    path = write_kind(kind, tmp_path) / "tokenizer.json"
    whole, short = TextTokenizer(path, 10**6), TextTokenizer(path, 12)
    short.truncated = 1  # that texts are cut is no news here
    for texts in (LINES, PAIRS):
        for text, full, cut in zip(texts, whole.encode(texts), short.encode(texts), strict=True):
            for part, source in enumerate((text,) if isinstance(text, str) else text):
                assert_offsets(source, full, part)
                left = tokens_of(cut, part)
                assert left == tokens_of(full, part)[: len(left)]
            assert len(cut) == min(len(full), 12)


def tokens_of(encoding: Encoding, part: int) -> list[tuple[int, tuple[int, int], int | None]]:
    """Id, offsets and word of each token of one of the texts."""
    described = zip(encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
    owned = zip(described, encoding.sequence_ids, strict=True)
    return [token for token, owner in owned if owner == part]


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_an_unreadable_file_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileFormatError, match="is not a readable tokenizer: ") as caught:
        TextTokenizer(path, 64)
    assert "\n" not in str(caught.value)
