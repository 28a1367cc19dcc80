"""Question answering as the pipeline of transformers 4 had it.

What that answers is in ``tests/data/question_answering.json``; version 5 has none to compare with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modeling.families.test_token_heads import folder_of
from tasks.test_question_answering import CONTEXT, GOLDEN, QUESTION, pieces
from transformers import AutoModelForQuestionAnswering

import trbert_deploy
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.drop_in.drop_in import DropIn
from trbert_deploy.tasks.text_classification import LOGITS

ONE = {"question": QUESTION, "context": CONTEXT}
TWO = {"question": "Who lives in Paris?", "context": CONTEXT}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> DropIn:
    path = tmp_path_factory.mktemp("made")
    folder = folder_of(path / "folder", tokenizer_dir, "bert", AutoModelForQuestionAnswering)
    export_bundle(folder, path / "bundle")
    return trbert_deploy.pipeline("question-answering", path / "bundle", threads=1)


@pytest.mark.parametrize("case", GOLDEN)
def test_answers_are_those_of_transformers(ours: DropIn, case: dict[str, Any]) -> None:
    pair = (case["question"], case["context"])
    options = ours.options.updated(case["options"])
    outputs = {LOGITS: np.array(case["logits"], np.float32)}
    found = ours.answer(outputs, pieces().encode(*pair), pair, options)
    expected = case["answers"] if len(case["answers"]) > 1 else case["answers"][0]
    listed = [found] if isinstance(found, dict) else found
    assert isinstance(found, list) == isinstance(expected, list)
    for one, other in zip(listed, case["answers"], strict=True):
        assert list(one) == list(other)
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-4)}


def test_questions_are_asked_as_of_transformers(ours: Any) -> None:
    first, second = ours([ONE, TWO])
    assert list(first) == ["score", "start", "end", "answer"]
    assert CONTEXT[first["start"] : first["end"]] == first["answer"] != ""
    assert json.loads(json.dumps(first)) == first
    assert ours(ONE) == ours([ONE]) == ours(question=QUESTION, context=CONTEXT) == first
    questions = [QUESTION, TWO["question"]]
    assert ours(question=questions, context=CONTEXT) == [first, second]
    assert ours(question=questions, context=[CONTEXT] * 2) == [first, second]
    assert list(ours(iter([ONE, TWO]))) == [first, second]
    several = ours(ONE, top_k=3, handle_impossible_answer=True)
    assert len(several) == 3 and any(not each["answer"] for each in ours(ONE, top_k=500,
                                     handle_impossible_answer=True))  # fmt: skip
    (short,) = ours([{"question": QUESTION, "context": "Paris"}, ONE], max_answer_len=1)[:1]
    assert "Paris".startswith(short["answer"])


def test_mistakes_are_one_line(ours: Any, tiny_bundle: Path) -> None:
    for call, error, message in (
        (lambda: ours(), DataError, "^expected a question and its context, by these names or in"),
        (lambda: ours(ONE, question="a", context="b"), DataError, "^expected a question and its"),
        (lambda: ours(question=QUESTION), DataError, "^expected a question and its context"),
        (
            lambda: ours(question=["a", "b"], context=["c"]),
            DataError,
            "^there are 2 questions with 1 contexts: expected one context, or one for each$",
        ),
        (lambda: ours("a"), DataError, "^text 1 is of type str: expected a dictionary with quest"),
        (lambda: ours({"question": "a"}), DataError, "^text 1 is of type dict: expected a dict"),
        (lambda: ours(ONE, top_k=0), ConfigError, "^top_k is 0: expected a whole number from 1"),
        (lambda: ours(ONE, max_answer_len=0), ConfigError, "^max_answer_len is 0: expected a who"),
        (
            lambda: ours(ONE, handle_impossible_answer="yes"),
            ConfigError,
            "^handle_impossible_answer is 'yes': expected bool$",
        ),
        (
            lambda: trbert_deploy.pipeline("question-answering", tiny_bundle, threads=1),
            ConfigError,
            "is for text-classification: expected a bundle for question-answering$",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
