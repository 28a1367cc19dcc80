"""A model as the Open Inference Protocol knows it: tensors of texts in, tensors of answers out.

A model takes the tensor ``text``, and ``text_pair`` where it reads pairs: N strings each. It gives
``answer``, N strings: what ``trbert-deploy predict`` prints of each text; and where answers are
numbers, these: ``scores`` FP32 [N, C] or ``embedding`` FP32 [N, D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.predicting import to_json_line
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking

TEXT, TEXT_PAIR, ANSWER = "text", "text_pair", "answer"
SCORES, EMBEDDING = "scores", "embedding"


@dataclass(frozen=True)
class Numbers:
    """An output of numbers.

    Attributes:
        name: of the tensor.
        width: its values for one text.
        of: makes [width] of an answer.
    """

    name: str
    width: int
    of: Callable[[Prediction], Sequence[float]]


def _scores(task: TextClassification) -> Numbers:
    def of(answer: Prediction) -> list[float]:
        told = answer.to_json()["scores"]
        return [told[label] for label in task.labels]

    return Numbers(SCORES, len(task.labels), of)


def _relevance(task: TextRanking) -> Numbers:
    return Numbers(SCORES, 1, lambda answer: [answer.to_json()["score"]])


def _embedding(task: FeatureExtraction) -> Numbers:
    width = task.width if task.dimensions is None else task.dimensions
    return Numbers(EMBEDDING, width, lambda answer: answer.to_json()["embedding"])


#: Task -> what makes its output beside ``answer``.
_NUMBERS: dict[type[Task], Callable[[Any], Numbers]] = {
    TextClassification: _scores,
    TextRanking: _relevance,
    FeatureExtraction: _embedding,
}


def numbers_of(task: Task) -> Numbers | None:
    """The output of numbers of a task; None where its answers are none."""
    for kind, make in _NUMBERS.items():
        if isinstance(task, kind):
            return make(task)
    return None


def inputs_of(task: Task) -> tuple[str, ...]:
    """Names of the tensors that a model takes."""
    return (TEXT, TEXT_PAIR) if task.takes_pairs else (TEXT,)


def outputs_of(task: Task) -> dict[str, int | None]:
    """Names of the tensors that a model gives -> their values for a text; None for its string."""
    numbers = numbers_of(task)
    return {ANSWER: None} | ({} if numbers is None else {numbers.name: numbers.width})


def texts_of(columns: Mapping[str, Sequence[str]]) -> list[Text]:
    """The texts, or pairs of texts, that tensors hold.

    Args:
        columns: name of a tensor -> its strings.

    Raises:
        DataError: there is no ``text``, or not as many of the one as of the other.
    """
    if TEXT not in columns:
        raise DataError(f"there is no input {TEXT}: expected strings of that name")
    texts, pairs = columns[TEXT], columns.get(TEXT_PAIR)
    if pairs is None:
        return list(texts)
    if len(pairs) != len(texts):
        raise DataError(
            f"{TEXT_PAIR} has {len(pairs)} strings and {TEXT} {len(texts)}: expected as many"
        )
    return list(zip(texts, pairs, strict=True))


def strings_of(answers: Sequence[Prediction]) -> list[str]:
    """The output ``answer`` of answers: [N]."""
    return [to_json_line(answer) for answer in answers]


def values_of(numbers: Numbers, answers: Sequence[Prediction]) -> NDArray[np.float32]:
    """An output of numbers of answers: [N, width] float32."""
    values = [numbers.of(answer) for answer in answers]
    return np.array(values, np.float32).reshape(len(answers), numbers.width)
