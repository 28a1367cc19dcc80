"""Answers in a context: how they are read, found and judged."""

from __future__ import annotations

import json
import math
import string
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BERT_SPECIAL, tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, template, write_kind
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.runtime.reading.examples import examples_of
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.tasks import squad
from trbert_deploy.tasks.answer_spans import Candidates, best_span
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.question_answering import (
    IMPOSSIBLE,
    LONGEST,
    TOP,
    QuestionAnswering,
)
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN

QUESTION = "Where does she live?"
CONTEXT = "Angela Merkel lives in Paris, in the Paris (12)."
#: What transformers 4.57.6 answers by its QuestionAnsweringPipeline, with the tokenizer below.
GOLDEN = json.loads((Path(__file__).parent.parent / "data/question_answering.json").read_text())


@cache
def pieces() -> Tokenizer:
    """WordPiece of some words and all letters."""
    words = ["where", "does", "she", "live", "in", "the", "paris", "angela", "merkel"]
    letters = [*string.ascii_lowercase, *string.digits, *".,'?()-"]
    vocab = [*BERT_SPECIAL, *words, *letters, *(f"##{each}" for each in letters)]
    made = Tokenizer(
        models.WordPiece({token: place for place, token in enumerate(vocab)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = template()
    return made


def read(answers: Any = None, **record: Any) -> Example:
    record = {"question": QUESTION, "context": CONTEXT, "answers": answers, **record}
    (example,) = examples_of([Record("line 1", record)], "data", QuestionAnswering)
    return example


def test_answers_are_read_as_data_sets_have_them() -> None:
    both = {"text": ["Paris", "the Paris"], "answer_start": [23, 33]}
    example = read(both)
    assert example == Example((QUESTION, CONTEXT), both)
    listed = [{"text": "Paris", "answer_start": 23}, {"text": "the Paris", "answer_start": 33}]
    assert read(listed) == read(json.dumps(both)) == read(tuple(listed)) == example
    one = {"text": ["Paris"], "answer_start": [23]}
    assert read({"text": "Paris", "answer_start": 23}).target == one
    nothing = {"text": [], "answer_start": []}
    for empty in (nothing, [], {"text": "", "answer_start": None}, "[]"):
        assert read(empty).target == ({"text": [], "answer_start": []})
    assert read(None).target is None and read("").target is None
    task = QuestionAnswering()
    assert task.told_target(both) == "Paris" and task.told_target(nothing) == "no answer"
    assert task.new_head([example]).labels == ("LABEL_0", "LABEL_1")
    task.require_names((), "the model")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["Rome"], "answer_start": [23]}, "line 1 has the answer 'Rome' at 23, where its"),
        ({"text": ["Paris"], "answer_start": [-25]}, "has the answer 'Paris' at -25"),
        ({"text": ["Paris"], "answer_start": [99]}, "has the answer 'Paris' at 99"),
        ({"text": ["Paris"], "answer_start": []}, "line 1 has 1 answers with 0 places: expected"),
        ({"text": ["Paris"]}, "line 1 has 1 answers with 0 places"),
        ({"text": ["Paris"], "answer_start": ["23"]}, "at a place of type str: expected a string"),
        ({"text": [7], "answer_start": [0]}, "line 1 has an answer of type int at a place of"),
        (["Paris"], 'line 1 has answers of another form: expected {"text": '),
        (7, "line 1 has answers of another form"),
        ("Paris", "line 1 has answers that are no JSON: expected"),
    ],
)
def test_answers_that_are_not_there_are_refused(answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(answers)


def test_what_is_no_question_with_a_context_is_refused() -> None:
    with pytest.raises(DataError, match="line 1 is one text: expected a question and its context"):
        list(examples_of([Record("line 1", {"text": "a"})], "data", QuestionAnswering))
    task = QuestionAnswering()
    encoding = pieces().encode(QUESTION, CONTEXT)
    outputs = {LOGITS: np.zeros((len(encoding.ids), 2), np.float32)}
    with pytest.raises(DataError, match="the text is one text: expected a pair of a question"):
        task.decode(outputs, encoding, "a")
    with pytest.raises(DataError, match="line 1: expected a field of answers beside the texts"):
        task.targets([read(None)], [encoding])
    with pytest.raises(OutputError, match=r"the shape \[1, 2\]: expected \[\d+, 2\], start and"):
        task.decode({LOGITS: np.zeros((1, 2), np.float32)}, encoding, (QUESTION, CONTEXT))
    outputs[LOGITS][3, 1] = math.inf
    with pytest.raises(OutputError, match="inf"):
        task.decode(outputs, encoding, (QUESTION, CONTEXT))


def test_options_are_those_of_the_checkpoint() -> None:
    entries = {IMPOSSIBLE: False, LONGEST: 30, TOP: 2}
    task = QuestionAnswering.of(tiny_spec(task="question-answering", answers=entries))
    assert (task.impossible, task.max_answer_len, task.top_k) == (False, 30, 2)
    assert QuestionAnswering.of(tiny_spec(task="question-answering")).impossible
    for options, message in (
        ({"impossible": 1}, "handle_impossible_answer is 1: expected bool"),
        ({"max_answer_len": 0}, "max_answer_len is 0: expected a whole number from 1"),
        ({"top_k": 2.5}, "top_k is 2.5: expected a whole number from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            QuestionAnswering(**options)


@pytest.mark.parametrize("case", GOLDEN)
def test_answers_are_those_of_transformers(case: dict[str, Any]) -> None:
    options = case["options"]
    task = QuestionAnswering(
        options.get(IMPOSSIBLE, False), options.get(LONGEST, 15), options.get(TOP, 1)
    )
    pair = (case["question"], case["context"])
    encoding = pieces().encode(*pair)
    found = task.decode({LOGITS: np.array(case["logits"], np.float32)}, encoding, pair).to_json()
    answers = found.pop("answers", None)
    if answers is None:
        answers = [{key: value for key, value in found.items() if key != "num_tokens"}]
    assert len(answers) == len(case["answers"])
    for ours, theirs in zip(answers, case["answers"], strict=True):
        assert list(ours) == list(theirs)
        assert ours == {**theirs, "score": pytest.approx(theirs["score"], abs=1e-4)}
    assert found["answer"] == case["answers"][0]["answer"]
    assert found["num_tokens"] == len(encoding.ids)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans(), st.integers(1, 4))
def test_the_best_answers_are_the_best_of_all_spans(
    seed: int, longest: int, impossible: bool, top_k: int
) -> None:
    """Each token a word of its own and each word once, so that every span is an answer of its own:
    then ``top_k`` answers are the first of all spans."""
    generator = np.random.default_rng(seed)
    letters = list("abcdefghijklmnop")[: int(generator.integers(1, 16))]
    pair = ("live in", " ".join(letters))
    encoding = pieces().encode(*pair)
    logits = (generator.normal(size=(len(encoding.ids), 2)) * 2).astype(np.float32)
    task = QuestionAnswering(impossible, longest, top_k)
    found = task.decode({LOGITS: logits}, encoding, pair)
    places = [0, *(place for place, owner in enumerate(encoding.sequence_ids) if owner == 1)]
    chosen = torch.from_numpy(logits[places]).double().softmax(0).numpy()
    every = [
        (chosen[first, 0] * chosen[last, 1], " ".join(letters[first - 1 : last]))
        for first, last in product(range(1, len(places)), repeat=2)
        if first <= last < first + longest
    ]
    if impossible:
        every.append((chosen[0].prod(), ""))
    every.sort(key=lambda each: -each[0])
    answers = found.answers if top_k > 1 else (found,)
    assert [each.answer for each in answers] == [text for _, text in every[:top_k]]
    assert [each.score for each in answers] == pytest.approx([score for score, _ in every[:top_k]])
    assert task.summary(found) == (every[0][1] or "no answer")
    for each in answers:
        assert pair[1][each.start : each.end] == each.answer


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_marked_and_found_again(kind: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_kind(kind, tmp_path)).backend_tokenizer
    tokenizer.no_truncation()
    task = QuestionAnswering(max_answer_len=400)
    for text in ("Paris", "Angela Merkel", CONTEXT, "the Paris (12)"):
        start = CONTEXT.index(text)
        example = read({"text": [text], "answer_start": [start]})
        encoding = tokenizer.encode(*example.text)
        (target,) = task.targets([example], [encoding])
        codes = np.asarray(target)
        owners = np.array([owner == 1 for owner in encoding.sequence_ids])
        assert len(target) == len(codes) == len(encoding.ids) and codes.dtype == np.int64
        assert ((codes == NO_TOKEN) == ~(owners | (np.arange(len(codes)) == 0))).all()
        assert codes[0] == 0 and codes[codes > 0].sum() == 3
        logits = np.zeros((len(codes), 2), np.float32)
        logits[:, 0] = 20.0 * np.isin(codes, (1, 3))
        logits[:, 1] = 20.0 * np.isin(codes, (2, 3))
        answer = task.decode({LOGITS: logits}, encoding, example.text).answer
        assert squad.exact_match(answer, [text]) == 1.0, answer
        assert task.metrics([{LOGITS: logits}], [target]) == {"f1": 1.0, "exact_match": 1.0}
        assert (task.protected(encoding) == ~owners).all()
        assert (task.no_target(encoding) == np.where(codes == NO_TOKEN, NO_TOKEN, UNKNOWN)).all()


def test_without_an_answer_the_first_token_is_marked() -> None:
    task = QuestionAnswering()
    encoding = pieces().encode(QUESTION, CONTEXT)
    (none,) = task.targets([read([])], [encoding])
    assert none.codes[0] == 3 and (none.codes[1:] <= 0).all()
    cut = pieces().encode(QUESTION, CONTEXT)
    cut.truncate(len(encoding.ids) - 6)
    (behind,) = task.targets([read({"text": ["(12)"], "answer_start": [43]})], [cut])
    assert behind.codes[0] == 3 and behind.answers == ("(12)",)
    logits = np.zeros((len(encoding.ids), 2), np.float32)
    logits[0] = 20.0
    answer = task.decode({LOGITS: logits}, encoding, (QUESTION, CONTEXT))
    assert (answer.answer, answer.start, answer.end) == ("", 0, 0)
    assert task.summary(answer) == "no answer"
    assert "answers" not in answer.to_json() and list(answer.to_json()) == [
        "score", "start", "end", "answer", "num_tokens",
    ]  # fmt: skip
    (paris,) = task.targets([read({"text": ["Paris"], "answer_start": [23]})], [encoding])
    found = task.statistics([{LOGITS: logits}] * 2, [none, paris])
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]] and task.measured(found) == 0.5


@pytest.mark.parametrize(
    ("answer", "true", "exact", "f1"),
    [
        ("the Paris.", ["paris"], 1, 1),
        ("in Paris", ["Rome", "Paris"], 0, 2 / 3),
        ("Paris Paris", ["Paris"], 0, 2 / 3),
        ("", [], 1, 1),
        ("", ["The"], 1, 1),  # which is no word, so that there is no answer
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("an", ["Paris"], 0, 0),
        ("U.S.", ["us"], 1, 1),
        ("a-b c", ["ab d c"], 0, 0.8),
    ],
)
def test_answers_are_judged_by_the_rules_of_squad(
    answer: str, true: list[str], exact: float, f1: float
) -> None:
    assert squad.exact_match(answer, true) == exact
    assert squad.f1(answer, true) == pytest.approx(f1)


@given(st.integers(0, 2**32 - 1))
def test_agreement_is_that_of_the_best_spans(seed: int) -> None:
    generator = np.random.default_rng(seed)
    task = QuestionAnswering(max_answer_len=4)
    length = int(generator.integers(1, 12))
    logits = (generator.normal(size=(2, length, 2)) * 3).astype(np.float32)
    spans = []
    for each in logits.astype(np.float64):
        options = [(each[0].sum(), (0, 0))]
        for first, last in product(range(1, length), repeat=2):
            if first <= last < first + 4:
                options.append((each[first, 0] + each[last, 1], (first, last + 1)))
        spans.append(max(options, key=lambda option: option[0])[1])
    assert [best_span(each, 4) for each in logits] == spans
    one, other = (set(range(*span)) for span in spans)
    expected = 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0
    first, second = ({LOGITS: each} for each in logits)
    assert task.agreement(first, second) == pytest.approx(expected)
    assert task.agreement(first, first) == 1.0
    assert task.agreement(first, {LOGITS: logits[1] * math.nan}) == 0.0
    teacher, student = torch.from_numpy(logits).double()
    apart = teacher.softmax(0) * (teacher.log_softmax(0) - student.log_softmax(0))
    assert task.divergence(first, second) == pytest.approx(apart.sum(0).mean().item(), abs=1e-9)
    assert task.divergence(first, first) == 0.0


def test_words_are_whole_and_what_has_none_keeps_its_letters() -> None:
    encoding = pieces().encode("she", "lives 'in'")
    found = Candidates.of(encoding)
    assert [encoding.tokens[place] for place in found.places] == ["live", "##s", "'", "in", "'"]
    assert found.starts.tolist() == [0, 0, 6, 7, 9] and found.ends.tolist() == [5, 5, 7, 9, 10]
