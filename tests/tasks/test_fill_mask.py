"""Masked words: data, targets, measures, answers, and each mistake in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizer_kinds import write_kind

from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.modeling.checkpoints.tokenizer import spelling_of_source
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning
from trbert_deploy.tasks.columns import Columns
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.fill_mask import FillMask, FillPrediction
from trbert_deploy.tasks.spelling import Spelling
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification

MASK = 4
WORDS = ("city", "film", "war")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_dir / "tokenizer.json", 24)


@pytest.fixture(scope="module")
def every(tokenizer: TextTokenizer) -> FillMask:
    """Fills with any token."""
    return FillMask(MASK, spelling=tokenizer.spelling)


@pytest.fixture(scope="module")
def some(tokenizer: TextTokenizer) -> FillMask:
    """Chooses among three words."""
    ids = [tokenizer.spelling.id_of(word) for word in WORDS]
    return FillMask(MASK, WORDS, ids, 2, 0, tokenizer.spelling)  # type: ignore[arg-type]


def read(label: Any) -> Example:
    return FillMask.read({"text": "a [MASK]", "label": label}, "line 1", Columns(label="label"))


def test_labels_are_words_one_for_each_mask() -> None:
    assert read("film") == Example("a [MASK]", "film")
    assert read(["film", "war"]).target == ("film", "war")
    assert read('["film", "war"]').target == ("film", "war")
    assert read(2).target == "2" and read(None).target is None and read("").target is None
    pair = {"text": "a [MASK]", "text_pair": "b"}
    assert FillMask.read(pair, "line 1", Columns(pair="text_pair")).text == ("a [MASK]", "b")


def test_a_new_head_chooses_among_the_labels() -> None:
    head = FillMask.new_head([Example("", "war"), Example("", ("city", "war"))])
    assert head.answers == {"targets": ["city", "war"]} and head.labels == ()
    assert head.found == ("city", "war") and "2 words" in head.told
    with pytest.raises(DataError, match=r"^the data has one word only \(war\): expected two"):
        FillMask.new_head([Example("", "war")])


def test_a_head_for_all_words_leaves_open_which_are_asked(every: FillMask, some: FillMask) -> None:
    head = FillMask.new_head([Example("", word) for word in WORDS])
    assert every.leaves_open(head) and not some.leaves_open(head)
    some.require_names(WORDS, "m")
    every.require_names(["anything"], "m")
    with pytest.raises(DataError, match=r"words that m does not choose: house \(it chooses among"):
        some.require_names(["house", "war"], "m")


def test_targets_are_places_of_words(
    every: FillMask, some: FillMask, tokenizer: TextTokenizer
) -> None:
    texts = ["the [MASK]", "the [MASK] of [MASK]"]
    examples = [Example(texts[0], "War", "a"), Example(texts[1], ("film", "city"), "b")]
    encodings = tokenizer.encode(texts)
    assert [t.tolist() for t in some.targets(examples, encodings)] == [[2], [1, 0]]
    ids = [tokenizer.spelling.id_of(word) for word in ("war", "film", "city")]
    assert [t.tolist() for t in every.targets(examples, encodings)] == [ids[:1], ids[1:]]
    assert [some.no_target(each).tolist() for each in encodings] == [[-1], [-1, -1]]
    assert some.told_target("war") == "war" and some.told_target(("a", "b")) == "a, b"
    assert some.answers_tokens and not some.answers_every_token and not some.hears_dropped


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("the [MASK]", None, r'^x: expected a field "label" beside the text$'),
        ("the [MASK]", ("a", "b"), "^x has 1 masks that are read, and 2 words as its label"),
        ("[MASK] [MASK]", "war", "^x has 2 masks that are read, and 1 words as its label"),
        ("the [MASK]", "house", "^x: the model does not choose the word 'house' .it chooses among"),
    ],
)
def test_targets_that_are_none_are_refused(
    some: FillMask, tokenizer: TextTokenizer, text: str, label: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        some.targets([Example(text, label, "x")], tokenizer.encode([text]))


@pytest.mark.parametrize("word", ["xylophone", "two words", "映"])
def test_a_word_of_several_tokens_is_refused(
    every: FillMask, tokenizer: TextTokenizer, word: str
) -> None:
    text = "the [MASK]"
    with pytest.raises(DataError, match=f"^x: the word '{word}' is not one token of the model's"):
        every.targets([Example(text, word, "x")], tokenizer.encode([text]))


def test_masks_are_protected_and_asked_for(every: FillMask, tokenizer: TextTokenizer) -> None:
    (encoding,) = tokenizer.encode(["the [MASK] of [MASK]"])
    assert encoding.tokens == ["[CLS]", "the", "[MASK]", "of", "[MASK]", "[SEP]"]
    assert every.protected(encoding).tolist() == [True, False, True, False, True, False]
    every.require_question(encoding, "x")
    for text in ("the film", "the film " * 20 + "[MASK]"):  # of which the mask is cut off
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            (encoding,) = tokenizer.encode([text])
        with pytest.raises(
            DataError,
            match=rf"^x has no mask among the {len(encoding)} tokens that are read of it: expected "
            r"\[MASK\] in the place of a word$",
        ):
            every.require_question(encoding, "x")


def test_the_best_words_are_answered(some: FillMask, tokenizer: TextTokenizer) -> None:
    (encoding,) = tokenizer.encode(["the [MASK] of [MASK]"])
    logits = np.log(np.array([[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]], np.float32))
    answer = some.decode({LOGITS: logits}, encoding)
    assert isinstance(answer, FillPrediction) and answer.num_tokens == 6
    told = [[(f.token_str, round(f.score, 3), f.sequence) for f in mask] for mask in answer.fills]
    assert told == [
        [
            ("film", 0.7, "[CLS] the film of [MASK] [SEP]"),
            ("city", 0.2, "[CLS] the city of [MASK] [SEP]"),
        ],
        [
            ("war", 0.6, "[CLS] the [MASK] of war [SEP]"),
            ("film", 0.3, "[CLS] the [MASK] of film [SEP]"),
        ],
    ]
    assert some.summary(answer) == "film, war"
    assert list(answer.to_json()) == ["fills", "num_tokens"]
    assert len(answer.to_json()["fills"][0]) == 2
    (encoding,) = tokenizer.encode(["the [MASK]"])
    single = some.decode({LOGITS: logits[:1]}, encoding).to_json()["fills"]
    assert single[0] == {
        "score": pytest.approx(0.7), "token": tokenizer.spelling.id_of("film"),
        "token_str": "film", "sequence": "the film",
    }  # fmt: skip
    among = some.fills({LOGITS: logits[:1]}, encoding, 5, [some.word_ids[2]])
    assert [(f.token_str, round(f.score, 3)) for f in among[0]] == [("war", 0.1)]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.array([[np.nan, 0, 0]], np.float32), "logits hold nan: expected finite numbers"),
        (np.zeros((2, 3), np.float32), r"the shape \[2, 3\]: expected \[1, 3\], one"),
        (np.zeros((1, 4), np.float32), r"the shape \[1, 4\]: expected \[1, 3\], one"),
        (np.zeros(3, np.float32), r"the shape \[3\]: expected \[1, 3\], one"),
    ],
)
def test_what_is_no_answer_is_refused(
    some: FillMask, tokenizer: TextTokenizer, logits: Any, message: str
) -> None:
    (encoding,) = tokenizer.encode(["the [MASK]"])
    with pytest.raises(OutputError, match=message):
        some.decode({LOGITS: logits}, encoding)


def test_measures_count_masks(some: FillMask) -> None:
    outputs = [
        {LOGITS: np.array(rows, np.float32)} for rows in ([[3, 2, 1]], [[1, 2, 3], [2, 3, 1]])
    ]
    targets = [np.array([1]), np.array([2, 2])]
    statistics = some.statistics(outputs, targets)
    assert statistics.tolist() == [[0, 0.5, 1], [1, 1 + 1 / 3, 2]]
    found = some.metrics(outputs, targets)
    assert found == {"accuracy": pytest.approx(1 / 3), "mrr": pytest.approx((0.5 + 4 / 3) / 3)}
    assert some.measured(statistics) == pytest.approx(1 / 3)
    assert some.measured(statistics[[1, 1]]) == 0.5


@settings(max_examples=50)
@given(arrays(np.float32, (2, 3, 4), elements=st.floats(-5, 5, width=32)))
def test_agreement_and_divergence_are_those_of_masks(pair: Any) -> None:
    task = FillMask(MASK)
    one, other = ({LOGITS: each} for each in pair)
    same = np.mean([a.argmax() == b.argmax() for a, b in zip(*pair, strict=True)])
    assert task.agreement(one, other) == pytest.approx(same)
    assert task.agreement(one, one) == 1.0 and task.divergence(one, one) == pytest.approx(0.0)
    teacher, student = (np.exp(p) / np.exp(p).sum(-1, keepdims=True) for p in pair.astype(float))
    expected = (teacher * np.log(teacher / student)).sum(-1).mean()
    assert task.divergence(one, other) == pytest.approx(expected, abs=1e-5)
    none = {LOGITS: np.zeros((0, 4), np.float32)}
    assert (task.agreement(none, none), task.divergence(none, none)) == (1.0, 0.0)
    assert task.agreement({LOGITS: pair[0] * np.nan}, one) == 0.0


def test_models_are_compared_by_the_words_that_both_choose(every: FillMask, some: FillMask) -> None:
    fewer = FillMask(MASK, ("war", "city"), (some.word_ids[2], some.word_ids[0]))
    outputs = {LOGITS: np.array([[1.0, 2.0, 3.0]], np.float32)}
    some.require_like(fewer, "the teacher")
    every.require_like(fewer, "the teacher")
    every.require_like(every, "the teacher")
    assert some.translated(outputs, fewer)[LOGITS].tolist() == [[3.0, 1.0]]
    assert some.translated(outputs, some) is outputs
    whole = {LOGITS: np.arange(220, dtype=np.float32)[None]}
    assert every.translated(whole, some)[LOGITS].tolist() == [list(some.word_ids)]
    with pytest.raises(DataError, match=r"^the teacher chooses among war, city: expected"):
        fewer.require_like(some, "the teacher")
    with pytest.raises(DataError, match=r"of the model, all there are$"):
        some.require_like(every, "the teacher")
    with pytest.raises(DataError, match="answers fill-mask: expected text-classification"):
        some.require_like(TextClassification(("a", "b")), "the teacher")


@pytest.mark.parametrize("value", [0, -1, 1001, "5", True])
def test_numbers_of_words_are_bounded(value: Any) -> None:
    with pytest.raises(ConfigError, match="top_k"):
        FillMask(MASK, top_k=value)


@pytest.mark.parametrize("kind", ["bert, lower-cased", "roberta", "xlm-roberta", "deberta-v2"])
def test_a_word_is_the_token_that_it_is_in_a_text(tmp_path: Path, kind: str) -> None:
    """Behind a space; so a label needs no sign of the tokenizer's."""
    source = write_kind(kind, tmp_path / "tokenizer")
    spelling = spelling_of_source(str(source))
    assert spelling.mask is not None
    token = spelling.one_token("comment")
    assert [token] == spelling.ids(" comment") and token in spelling.ids("no comment")
    assert Spelling().one_token("the") is None
