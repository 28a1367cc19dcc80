"""Multiple choice: which of several texts goes with a first one, by one logit for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import DataError
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SOFTMAX
from trbert_deploy.tasks.columns import LABELS, Columns, plain, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.lists import (
    is_list,
    json_list,
    list_example,
    list_of,
    others_of,
    pairs_of,
    value_of,
)
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.task import NewHead
from trbert_deploy.tasks.text_classification import LOGITS, ONE_NUMBER
from trbert_deploy.tasks.text_ranking import TextRanking, answered_groups, kept_by_row, scores_of

#: Choices in columns of their own, such as ``ending0`` to ``ending3``.
_NUMBERED = re.compile(r"(choice|option|ending|answer|sol)_?(\d+)", re.ASCII)
#: The two lists of choices that are an object: the texts, and what labels call them.
_TEXT, _LABEL = "text", "label"


@dataclass(frozen=True, kw_only=True)
class ChoicePrediction(Prediction):
    """Which of several texts goes with the first one.

    Attributes:
        choice: its number, from 0 on.
        score: its probability.
        scores: of all of them, in their order.
    """

    choice: int
    score: float
    scores: tuple[float, ...]


class MultipleChoice(TextRanking):
    """A logit for a first text and one choice; a softmax over all choices makes probabilities.

    Targets of pairs are whether the choice is the right one, and the name of the question.
    """

    name = "multiple-choice"
    measure = "accuracy"
    columns = (*LABELS, "answer", "answerkey", "correct")
    texts = ("prompt", "question", "ctx", "goal", "sent1", "premise")
    lists = ("choices", "options", "endings", "candidates")

    def __init__(self) -> None:
        super().__init__(IDENTITY)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls()

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        label = None if columns.label is None else record.get(columns.label)
        value = value_of(record, columns)
        if value is None:
            value = _numbered(record)
        keys: list[str] = []
        if isinstance(value, Mapping):
            keys = [str(key) for key in json_list(value.get(_LABEL)) or ()]
            value = value.get(_TEXT)
        choices = list_of(value, name, "choices")
        if choices is None:  # one choice of a question that was divided
            return Example(text_of(record, name, columns), _mark(label, name), name)
        first = text_of(record, name, replace(columns, pair=None))
        assert isinstance(first, str)
        if label is None or label == "":
            return list_example((first, choices), None, name)
        return list_example((first, choices), _place_of(label, choices, keys, name), name)

    @classmethod
    def divided(cls, example: Example) -> list[Example]:
        """A pair for each choice.

        Raises:
            DataError: there are no choices.
        """
        if not is_list(example.text):
            _require_pair(example)
            return [example]
        count, right = len(others_of(example, "choice")), example.target
        marks = [
            None if right is None else (place == right, example.name) for place in range(count)
        ]
        return pairs_of(example, marks, "choice")

    def joined(self, answers: Sequence[Prediction], text: Text) -> Prediction:
        """The most probable choice, the first one of several."""
        if not is_list(text):
            return super().joined(answers, text)
        probabilities = ACTIVATIONS[SOFTMAX](np.array([scores_of(answers)]))[0]
        choice = int(np.argmax(probabilities))
        return ChoicePrediction(
            num_tokens=sum(answer.num_tokens for answer in answers),
            kept=kept_by_row(answers),
            choice=choice,
            score=float(probabilities[choice]),
            scores=tuple(float(each) for each in probabilities),
        )

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """A logit.

        Raises:
            DataError: an example has no choices, or nothing says which one is right.
        """
        for example in examples:
            _require_pair(example)
            _require_mark(example)
        return NewHead(cls.name, ONE_NUMBER, told="the choices of a first text")

    def require_names(self, labels: Sequence[str], where: str) -> None:
        return  # a label is a place in the list of its own record

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> NDArray[np.float32]:
        """1 for the right choice of a question and 0 for others, and the question's number: [N, 2].

        Raises:
            DataError: an example without one.
        """
        questions: dict[str, int] = {}
        rows = np.empty((len(examples), 2), np.float32)
        for row, example in zip(rows, examples, strict=True):
            right, question = _require_mark(example)
            row[:] = right, questions.setdefault(question, len(questions))
        return rows

    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """The share of questions whose right choice has the largest logit."""
        return {self.measure: self.measured(self.statistics(outputs, targets))}

    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """1 for each question that is answered rightly, 0 for the others: [Q, 1].

        Where choices have one logit the first of them counts.

        Raises:
            DataError: no question has a right choice.
        """
        logits = np.array([float(each[LOGITS][0]) for each in outputs])
        chosen = [members[np.argmax(logits[members])] for members in answered_groups(targets)]
        found = [[float(targets[each, 0] > 0)] for each in chosen]
        if not found:
            raise DataError("no question has a right choice: expected a label for some of them")
        return np.array(found)


def _numbered(record: Mapping[str, Any]) -> list[Any] | None:
    """The choices that stand in columns with numbers; None where there are none."""
    found = []
    for column in record:
        match = _NUMBERED.fullmatch(plain(column))
        if match and record[column] is not None:
            found.append((match[1], int(match[2]), record[column]))
    names = {kind for kind, _, _ in found}
    if len(names) != 1 or len(found) < 2:
        return None
    return [text for _, _, text in sorted(found, key=lambda each: each[1])]


def _place_of(label: Any, choices: Sequence[str], keys: Sequence[str], name: str) -> int:
    """Which choice a label means: by what the record calls it, by its number, letter or text.

    Raises:
        DataError: none of them.
    """
    told = str(label).strip()
    if isinstance(label, bool | list | tuple | Mapping):
        told = ""
    if told in keys:
        return keys.index(told)
    if told in choices:
        return list(choices).index(told)
    place = -1
    if re.fullmatch(r"\d+(\.0)?", told, re.ASCII):
        place = int(float(told))
    elif re.fullmatch(r"[A-Z]", told, re.ASCII):
        place = ord(told) - ord("A")
    if not 0 <= place < len(choices):
        known = f"one of {', '.join(keys)}" if keys else f"a number from 0 to {len(choices) - 1}"
        raise DataError(
            f"{name} has the label {label!r} for {len(choices)} choices: expected {known}, or the "
            "text of one"
        )
    return place


def _mark(label: Any, name: str) -> tuple[bool, str] | None:
    """Whether a choice of a divided question is the right one, and the question's name.

    Raises:
        DataError: the label is something else.
    """
    if label is None:
        return None
    if isinstance(label, list) and len(label) == 2 and isinstance(label[1], str):
        return bool(label[0]), label[1]
    raise DataError(
        f"{name} has the label {label!r} and no choices: expected a column of them, such as choices"
    )


def _require_pair(example: Example) -> None:
    """Refuse a text without choices.

    Raises:
        DataError: the example is one text.
    """
    if isinstance(example.text, str):
        raise DataError(
            f"{example.name or 'the text'} is one text: expected one and its choices, in columns "
            "such as prompt and choices"
        )


def _require_mark(example: Example) -> tuple[bool, str]:
    """Whether an example is the right choice, and its question's name.

    Raises:
        DataError: nothing says so.
    """
    if example.target is None:
        raise DataError(f'{example.name}: expected a field "label" beside the choices')
    right, question = example.target
    return right, question
