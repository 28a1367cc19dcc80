"""The fate of every token, and what is summed up from it."""

from __future__ import annotations

from copy import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.evaluation.kept import (
    KeptText,
    Piece,
    examples,
    kept_by_length,
    trace,
    trace_texts,
    word_shares,
)
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import RowResult
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning
from trbert_deploy.tasks.examples import Example

TEXTS = [
    Example(row["text"], row["label"], f"line {place}")
    for place, row in enumerate(make_texts(12, seed=5))
]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> TextTokenizer:
    return load(tiny_bundle, threads=1).tokenizer


def kept_text(words: str, label: str | None = None, cuts: int = 2) -> KeptText:
    """A text written as ``word/passed`` with spaces between."""
    pieces = []
    for entry in words.split():
        word, _, passed = entry.rpartition("/")
        pieces.append(Piece(word, 0, len(word), 0, int(passed)))
    lengths = tuple(sum(piece.passed >= cut for piece in pieces) for cut in range(cuts + 1))
    return KeptText(words, label, "good", tuple(pieces), tuple(pieces), lengths)


def test_every_token_leaves_where_the_pipeline_says(pipeline: Pipeline) -> None:
    steps: list[tuple[str, int, int]] = []
    traced = trace_texts(pipeline, TEXTS, batch_size=5, progress=lambda *step: steps.append(step))
    predictions = pipeline([named.text for named in TEXTS], return_kept=True)
    assert steps == [("trace", 0, 12), ("trace", 5, 12), ("trace", 10, 12), ("trace", 12, 12)]
    assert any(0 < text.lengths[2] < text.lengths[1] < text.lengths[0] for text in traced)
    for named, text, prediction in zip(TEXTS, traced, predictions, strict=True):
        assert (text.text, text.label) == (named.text, named.target)
        assert text.answer == prediction.label
        assert len(text.tokens) == prediction.num_tokens
        assert prediction.kept is not None
        for cut, kept in enumerate(prediction.kept):
            survivors = [place for place, each in enumerate(text.tokens) if each.passed > cut]
            assert tuple(survivors) == kept.positions
            assert tuple(text.tokens[place].text for place in survivors) == kept.tokens


def test_words_are_joined_from_their_pieces(pipeline: Pipeline) -> None:
    (text,) = trace_texts(pipeline, [Example("The  Dreadfully clumsy film, ended")])
    assert [word.text for word in text.words] == [
        "The",
        "Dreadfully",
        "clumsy",
        "film",
        ",",
        "ended",
    ]
    assert [token.part for token in text.tokens][:: len(text.tokens) - 1] == [None, None]
    split = [token for token in text.tokens if token.start >= 5 and token.stop <= 15]
    assert len(split) > 1, "a word of several pieces"
    assert text.words[1] == Piece("Dreadfully", 5, 15, 0, max(token.passed for token in split))


def test_a_pair_has_words_of_both_texts(pipeline: Pipeline) -> None:
    (text,) = trace_texts(pipeline, [Example(("the film", "the sailor returns"))])
    assert [(word.text, word.part) for word in text.words] == [
        ("the", 0),
        ("film", 0),
        ("the", 1),
        ("sailor", 1),
        ("returns", 1),
    ]


def test_words_beyond_the_maximum_length_are_left_out(tiny_bundle: Path) -> None:
    short = load(tiny_bundle, threads=1, max_length=8)
    with pytest.warns(TruncationWarning):
        (text,) = trace_texts(short, [Example("the film " * 8)])
    assert len(text.words) == 6 and text.lengths[0] == 8


WORDS = ["the", "dreadful,", "film's", "returned", "xyz"]


@given(st.data())
def test_every_token_leaves_once(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), max_size=8))
    text = " ".join(["a", *words])
    (encoding,) = tokenizer.encode([text])
    alive = list(range(len(encoding.ids)))
    kept = []
    for _ in range(data.draw(st.integers(1, 4))):
        alive = [0, *(place for place in alive[1:] if data.draw(st.booleans()))]
        kept.append(np.array(alive, np.int64))
    traced = trace(text, None, "good", encoding, RowResult(np.zeros(2, np.float32), tuple(kept)))
    fates = np.array([token.passed for token in traced.tokens])
    assert fates.min() >= 0 and fates.max() <= len(kept)
    for cut, positions in enumerate(kept):
        assert np.flatnonzero(fates > cut).tolist() == positions.tolist()
        before = kept[cut - 1] if cut else np.arange(len(fates))
        assert set(np.flatnonzero(fates == cut)) == set(before) - set(positions)
    assert traced.lengths == (len(encoding.ids), *map(len, kept))
    covered = "".join(text[word.start : word.stop] for word in traced.words)
    assert covered == text.replace(" ", "") == "".join(word.text for word in traced.words)
    for word in traced.words:
        inside = [t for t in traced.tokens if word.start <= t.start < t.stop <= word.stop]
        assert word.passed == max(token.passed for token in inside)


@st.composite
def lengths(draw: st.DrawFn) -> NDArray[np.int64]:
    """Tokens of some rows in each segment, [N, C+1]."""
    cuts = draw(st.integers(1, 3))
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        row = [draw(st.integers(1, 60))]
        for _ in range(cuts):
            row.append(draw(st.integers(1, row[-1])))
        rows.append(row)
    return np.array(rows)


@given(lengths(), st.integers(1, 12))
def test_length_bins_hold_every_text_once(rows: NDArray[np.int64], bins: int) -> None:
    found = kept_by_length(rows, bins)
    assert 1 <= len(found) <= bins
    assert sum(each.texts for each in found) == len(rows)
    assert all(before.longest < after.shortest for before, after in pairwise(found))
    for each in found:
        inside = (each.shortest <= rows[:, 0]) & (rows[:, 0] <= each.longest)
        assert inside.sum() == each.texts
        for low, kept, high in zip(each.low, each.kept, each.high, strict=True):
            assert 0.0 <= low <= kept <= high <= 1.0
        for shares in (each.low, each.kept, each.high):
            assert all(after <= before for before, after in pairwise(shares))


def test_length_bins_say_what_is_kept() -> None:
    rows = np.array([[10, 5, 1], [10, 7, 2], [10, 6, 3], [100, 20, 10], [90, 18, 9]])
    short, long = kept_by_length(rows, 2)
    assert (short.shortest, short.longest, short.texts, short.kept) == (10, 10, 3, (0.6, 0.2))
    assert (long.shortest, long.longest, long.mean, long.kept) == (90, 100, 95.0, (0.2, 0.1))
    assert short.low == pytest.approx((0.52, 0.12)) and short.high == pytest.approx((0.68, 0.28))


def test_word_shares_count_what_reached_each_cut() -> None:
    texts = [kept_text("Great/2 film/0 great/1"), kept_text("great/2 FILM/1"), kept_text("rare/2")]
    film, great = word_shares(texts, least_texts=2, weight=0.0)
    assert (film.word, film.reached, film.kept) == ("film", (2, 1, 0), (0.5, 0.0))
    assert (great.word, great.reached, great.kept) == ("great", (3, 3, 2), (1.0, 2 / 3))
    film, great = word_shares(texts, least_texts=2, weight=6.0)
    assert film.kept == pytest.approx(((1 + 6 * 5 / 6) / (2 + 6), 6 * (3 / 5) / (1 + 6)))


def test_a_word_that_one_text_repeats_is_left_out() -> None:
    texts = [kept_text("batman/2 " * 20 + "the/0"), kept_text("the/0")]
    assert [share.word for share in word_shares(texts, least_texts=2)] == ["the"]
    assert word_shares([], least_texts=1) == []


def test_few_occurrences_do_not_head_the_list() -> None:
    texts = [kept_text("often/1 " * 9, cuts=1) for _ in range(10)]
    texts += [kept_text("often/0 lucky/1 the/0 the/0", cuts=1), kept_text("lucky/1", cuts=1)]
    shares = {share.word: share.kept[0] for share in word_shares(texts, least_texts=1)}
    assert shares["the"] < shares["lucky"] < shares["often"] < 1.0


fates = st.tuples(st.sampled_from(["the", "film", "great"]), st.integers(0, 2))


@given(st.lists(st.lists(fates, max_size=12), min_size=1, max_size=6), st.floats(0.1, 50.0))
def test_word_shares_are_probabilities(rows: list[list[tuple[str, int]]], weight: float) -> None:
    texts = [kept_text(" ".join(f"{word}/{passed}" for word, passed in row)) for row in rows]
    shares = word_shares(texts, least_texts=1, weight=weight)
    assert [share.word for share in shares] == sorted({word for row in rows for word, _ in row})
    for share in shares:
        assert all(0.0 <= kept <= 1.0 for kept in share.kept)
        assert all(after <= before for before, after in pairwise(share.reached))
    counts = np.sum([share.reached for share in shares], axis=0) if shares else np.zeros(3)
    assert counts.tolist() == np.sum([text.lengths for text in texts], axis=0).tolist()


def test_examples_take_labels_in_turn_and_the_wanted_length() -> None:
    texts = [
        kept_text(" ".join(["a/0"] * words), label)
        for words, label in ((3, "good"), (9, "good"), (11, "good"), (30, "bad"), (10, "bad"))
    ]
    chosen = [(text.label, len(text.words)) for text in examples(texts, 3, words=10)]
    assert sorted(chosen[:2]) == [("bad", 10), ("good", 9)]
    assert chosen[2][0] in ("good", "bad") and len(chosen) == 3
    assert len(examples(texts, 99)) == 5


def test_what_cannot_be_traced(pipeline: Pipeline) -> None:
    with pytest.raises(DataError, match="no texts to trace"):
        trace_texts(pipeline, [])
    with pytest.raises(DataError, match="line 7 is empty"):
        trace_texts(pipeline, [Example(" ", name="line 7")])
    uncut = copy(pipeline)
    uncut.chain = Chain(pipeline.chain.backend, ReductionConfig(), 4)
    with pytest.raises(ConfigError, match="no cuts"):
        trace_texts(uncut, TEXTS)


def test_a_word_is_without_the_space_that_a_tokenizer_of_bytes_counts_to_it() -> None:
    tokenizer = Tokenizer(BPE(unk_token="?", vocab={"?": 0, "Ġ": 1, "a": 2, "b": 3}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False)
    encoding = tokenizer.encode("ab  ba")
    result = RowResult({}, ())
    words = trace("ab  ba", None, "good", encoding, result).words
    assert [(word.text, word.start, word.stop) for word in words] == [("ab", 0, 2), ("ba", 4, 6)]
