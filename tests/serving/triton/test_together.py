"""Requests that run together, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_texts

from trbert_deploy import load
from trbert_deploy.errors import DataError, LengthError, OutputError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.serving.triton.together import answer_together

TEXTS = [row["text"] for row in make_texts(6, seed=3)]


class Counted(Pipeline):
    """Notes the rows of each call of the chain; answers no number for rows of some lengths."""

    calls: list[int]
    broken: int

    def run(self, rows: Sequence[TokenRow], **options: Any) -> list[RowResult]:
        self.calls.append(len(rows))
        nothing = {"logits": np.full(2, np.nan, np.float32)}
        return [
            replace(result, outputs=nothing) if len(row) == self.broken else result
            for row, result in zip(rows, super().run(rows, **options), strict=True)
        ]


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Counted:
    found: Any = copy(load(tiny_bundle, threads=1, truncate=False))
    found.__class__, found.calls, found.broken = Counted, [], 0
    return found  # type: ignore[no-any-return]


def column(*texts: str) -> dict[str, list[bytes]]:
    return {"text": [text.encode() for text in texts]}


def test_requests_run_in_one_call_of_the_chain(pipeline: Counted) -> None:
    pairs = {"text": [b"the film"], "text_pair": [b"a sailor"]}
    requests = [column(*TEXTS[:3]), column(TEXTS[3]), pairs]
    answers = answer_together(pipeline, requests)
    assert pipeline.calls == [5]
    expected = pipeline([*TEXTS[:4], ("the film", "a sailor")])
    assert answers == [expected[:3], expected[3:4], expected[4:]]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({"text": [b"a", b"the \xff"]}, DataError, r"text\[1\] is no UTF-8 from byte 4 on"),
        (column("a", " "), DataError, r"text\[1\] is empty: expected at least one word"),
        (column("the " * 90), LengthError, r"text\[0\] has .* tokens: the model takes at most 64"),
        ({"text": [b"a"], "text_pair": [b"b", b"c"]}, DataError, "text_pair has 2 strings"),
        ({"text_pair": [b"b"]}, DataError, "there is no input text"),
    ],
)
def test_a_bad_request_stands_alone(
    pipeline: Counted, bad: dict[str, list[bytes]], kind: type[Exception], message: str
) -> None:
    first, problem, last = answer_together(pipeline, [column(TEXTS[0]), bad, column(TEXTS[1])])
    assert isinstance(problem, kind)
    with pytest.raises(kind, match=message):
        raise problem
    assert pipeline.calls == [2]
    assert [first, last] == [pipeline([text]) for text in TEXTS[:2]]


def test_outputs_that_are_no_numbers_are_an_error_of_their_request(pipeline: Counted) -> None:
    expected = pipeline([TEXTS[0]])
    pipeline.broken = len(pipeline.tokenize(["a film"])[0])
    right, problem = answer_together(pipeline, [column(TEXTS[0]), column(TEXTS[1], "a film")])
    assert right == expected
    assert isinstance(problem, OutputError)


def test_nothing_asked_is_nothing_answered(pipeline: Counted) -> None:
    assert answer_together(pipeline, []) == []
