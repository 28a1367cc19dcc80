"""Requests that run together: one call of the chain for all, an error for each that is at fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.runtime.pipeline import Asked, Pipeline
from trbert_deploy.serving.tensors import texts_of
from trbert_deploy.tasks.predictions import Prediction

#: Name of a tensor -> its strings, in UTF-8.
Columns = Mapping[str, Sequence[bytes]]


def answer_together(
    pipeline: Pipeline, requests: Sequence[Columns]
) -> list[list[Prediction] | TrbertError]:
    """Answers to requests, whose rows the chain regroups by length whoever they are of.

    Returns:
        For each request the answers to its texts, or what is wrong with it: its tensors do not fit,
        a text is no UTF-8, empty or too long, or the model's output on one is no number.
    """
    asked = [_asked(pipeline, columns) for columns in requests]
    rows = [row for each in asked if isinstance(each, Asked) for row in each.rows]
    results = iter(pipeline.run(rows))
    answers: list[list[Prediction] | TrbertError] = []
    for each in asked:
        if isinstance(each, TrbertError):
            answers.append(each)
            continue
        own = list(islice(results, len(each.rows)))
        try:
            answers.append(pipeline.told(each, own))
        except TrbertError as problem:
            answers.append(problem)
    return answers


def _asked(pipeline: Pipeline, columns: Columns) -> Asked | TrbertError:
    try:
        texts = texts_of({name: _decoded(name, column) for name, column in columns.items()})
        return pipeline.ask(texts, [f"text[{place}]" for place in range(len(texts))])
    except TrbertError as problem:
        return problem


def _decoded(name: str, column: Sequence[bytes]) -> list[str]:
    """The strings of a tensor.

    Raises:
        DataError: one is no UTF-8.
    """
    strings = []
    for place, each in enumerate(column):
        try:
            strings.append(each.decode())
        except UnicodeDecodeError as problem:
            raise DataError(
                f"{name}[{place}] is no UTF-8 from byte {problem.start} on: encode it so"
            ) from None
    return strings
