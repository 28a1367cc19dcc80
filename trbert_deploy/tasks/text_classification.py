"""Text classification: one label of several for each text, by softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import DataError, OutputError, few
from trbert_deploy.tasks.activations import SOFTMAX, kl_divergence, softmax
from trbert_deploy.tasks.columns import LABELS, Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labelled import LabelledTask
from trbert_deploy.tasks.labels import (
    are_numbers,
    is_real,
    label_target,
    names_in,
    place_of,
    require_classes,
)
from trbert_deploy.tasks.outputs import Output, Outputs, require_numbers
from trbert_deploy.tasks.pairs import PAIR_ENTRIES
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.task import NewHead

LOGITS = "logits"
#: Target of a text without one.
NO_TARGET = -100
#: Kinds of answers, as config.json calls them; the first is that of tasks without a ``problem``.
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"
#: What the one number of a new regression is called, as transformers calls it.
ONE_NUMBER = ("LABEL_0",)
CALIBRATION_BINS = 10


@dataclass(frozen=True, kw_only=True)
class LabelPrediction(Prediction):
    """A text's label.

    Attributes:
        label: the most probable label.
        score: its probability.
        scores: label -> probability; they sum to 1.
    """

    label: str
    score: float
    scores: dict[str, float]


class TextClassification(LabelledTask):
    """One label for each text."""

    name = "text-classification"
    outputs = (Output(LOGITS, "row"),)
    measure = "accuracy"
    columns = LABELS
    activation = SOFTMAX
    entries: ClassVar[tuple[str, ...]] = PAIR_ENTRIES
    can_exit = True

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        label = None if columns.label is None else record.get(columns.label)
        return Example(text_of(record, name, columns), label_target(label, name), name)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """Several labels for a text where one has a list of them, a regression where labels are
        real values, else one label of those that occur, which must be two or more.
        """
        labels = tuple(sorted(names_in(example.target for example in examples)))
        if any(isinstance(example.target, tuple) for example in examples):
            if not labels:
                raise DataError("the data has no label in any list: expected some")
            several = {"problem": MULTI_LABEL}
            return NewHead(cls.name, labels, several, labels, "the labels, several for a text")
        if are_numbers(labels) and any(map(is_real, labels)):
            number = {"problem": REGRESSION}
            return NewHead(cls.name, ONE_NUMBER, number, labels, "the labels, which are numbers")
        if len(labels) < 2:
            raise DataError(f"the data has one label only ({few(labels)}): expected two or more")
        return NewHead(cls.name, labels, found=labels)

    def checked(self, outputs: Outputs) -> NDArray[np.float32]:
        """The logits [C] of a row.

        Raises:
            OutputError: one is no finite number, or there are not as many as labels.
        """
        return logits_of(outputs, len(self.labels))

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> LabelPrediction:
        probabilities = softmax(self.checked(outputs))
        scores = dict(zip(self.labels, map(float, probabilities), strict=True))
        label = self.labels[int(np.argmax(probabilities))]
        return LabelPrediction(
            num_tokens=len(encoding.ids), label=label, score=scores[label], scores=scores
        )

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """1 where the labels are the same; what is no number agrees with nothing."""
        if not np.isfinite([*one[LOGITS], *other[LOGITS]]).all():
            return 0.0
        return float(np.argmax(one[LOGITS]) == np.argmax(other[LOGITS]))

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Kullback-Leibler divergence from the teacher's probabilities, in nats."""
        return float(kl_divergence(teacher[LOGITS], student[LOGITS]))

    def confidence(self, outputs: Outputs) -> float:
        """The probability of the most probable label."""
        return float(softmax(outputs[LOGITS]).max())

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, LabelPrediction)
        return prediction.label

    def no_target(self, encoding: Any = None) -> Any:
        return NO_TARGET

    def targets(self, examples: Sequence[Example], encodings: Sequence[Any] = ()) -> NDArray[Any]:
        """The index of each text's label, [N] int64 (see ``labels.place_of``)."""
        for example in examples:
            if isinstance(example.target, tuple):
                raise DataError(
                    f"{example.name} has a list of labels: expected one, as the model answers one "
                    f"of {few(self.labels)}"
                )
        self.require_known(examples)
        places = {
            label: place_of(label, self.labels)
            for label in names_in(example.target for example in examples)
        }
        return np.array([places[example.target] for example in examples], np.int64)

    def require_known(self, examples: Sequence[Example]) -> None:
        """Refuse examples without labels, and labels that the model does not know.

        Raises:
            DataError: the first of them.
        """
        for example in examples:
            if example.target is None:
                raise DataError(f'{example.name}: expected a field "label" beside the text')
        if unknown := self.unknown(names_in(example.target for example in examples)):
            first, label = next(
                (example, label)
                for example in examples
                for label in sorted(names_in([example.target]))
                if label in unknown
            )
            require_classes(unknown, f"{first.name}: the labels are")
            raise DataError(
                f"{first.name}: the model does not know the label {few([repr(label)])} "
                f"(it knows {few(self.labels)})"
            )

    def told_target(self, target: str) -> str:
        """The model's own name for a label."""
        place = place_of(target, self.labels)
        return target if place is None else self.labels[place]

    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """Accuracy; F1 of each label that occurs or is answered, averaged; calibration error."""
        logits = np.stack([each[LOGITS] for each in outputs])
        return {
            self.measure: float((logits.argmax(1) == targets).mean()),
            "macro_f1": _macro_f1(targets, logits.argmax(1)),
            "calibration_error": _calibration_error(logits, targets),
        }

    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """1 where the label is right: [N, 1]."""
        answers = np.array([each[LOGITS].argmax() for each in outputs])
        return (answers == targets).astype(np.float64)[:, None]


def logits_of(outputs: Outputs, count: int) -> NDArray[np.float32]:
    """The logits of a text: [``count``].

    Raises:
        OutputError: one is no finite number, or there are not as many.
    """
    require_numbers(outputs)
    if outputs[LOGITS].shape != (count,):
        raise OutputError(
            f"the model's logits have the shape {list(outputs[LOGITS].shape)}: expected [{count}]"
        )
    return outputs[LOGITS]


def _macro_f1(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """F1 averaged over the labels that occur in ``truth`` or ``answers``, [N] each."""
    scores = []
    for label in np.union1d(truth, answers):
        hits = int(((truth == label) & (answers == label)).sum())
        scores.append(2 * hits / int((truth == label).sum() + (answers == label).sum()))
    return float(np.mean(scores))


def _calibration_error(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Expected calibration error of the most probable label (Naeini et al. 2015).

    Mean distance of confidence and accuracy over ten equal bins of confidence, weighted by their
    rows; logits [N, C], truth [N].
    """
    confidence = softmax(logits).max(1)
    right = logits.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - right, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))
