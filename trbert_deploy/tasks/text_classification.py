"""Text classification: one label of several for each text, by softmax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import DataError, OutputError, few
from trbert_deploy.tasks.columns import LABELS, Columns, text_of
from trbert_deploy.tasks.labels import label_name, place_of, require_classes
from trbert_deploy.tasks.task import Example, Output, Outputs, Prediction, Task, require_numbers

LOGITS = "logits"
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


class TextClassification(Task):
    """One label for each text.

    Attributes:
        labels: in the order of the logits.
    """

    name = "text-classification"
    outputs = (Output(LOGITS, "row"),)
    measure = "accuracy"
    columns = LABELS

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls(spec.labels)

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        label = None if columns.label is None else record.get(columns.label)
        return Example(text_of(record, name, columns), label_name(label, name), name)

    @classmethod
    def labels_in(cls, examples: Sequence[Example]) -> tuple[str, ...]:
        """The labels that occur, sorted; two or more."""
        labels = tuple(sorted({str(example.target) for example in examples}))
        if len(labels) < 2:
            raise DataError(f"the data has one label only ({few(labels)}): expected two or more")
        return labels

    def decode(self, outputs: Outputs, encoding: Any) -> LabelPrediction:
        require_numbers(outputs)
        if outputs[LOGITS].shape != (len(self.labels),):
            raise OutputError(
                f"the model's logits have the shape {list(outputs[LOGITS].shape)}: expected one "
                f"for each of {len(self.labels)} labels"
            )
        probabilities = _softmax(outputs[LOGITS])
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
        wanted, found = (_log_softmax(each[LOGITS]) for each in (teacher, student))
        return float(max(0.0, (np.exp(wanted) * (wanted - found)).sum()))

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, LabelPrediction)
        return prediction.label

    def require_like(self, other: Task, name: str) -> None:
        super().require_like(other, name)
        labels = getattr(other, "labels", ())
        if set(labels) != set(self.labels):
            raise DataError(
                f"{name} knows the labels {few(self.labels)}: expected those of the model, "
                f"{few(labels)}"
            )

    def translated(self, outputs: Outputs, other: Task) -> Outputs:
        """Logits in the order of another model's labels."""
        labels: tuple[str, ...] = getattr(other, "labels", ())
        return {LOGITS: outputs[LOGITS][[self.labels.index(label) for label in labels]]}

    def targets(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        """The index of each text's label, [N] (see ``labels.place_of``)."""
        for example in examples:
            if example.target is None:
                raise DataError(f'{example.name}: expected a field "label" beside the text')
        labels = {example.target for example in examples}
        if unknown := self.unknown(labels):
            first = next(example for example in examples if example.target in unknown)
            require_classes(unknown, f"{first.name}: the labels are")
            raise DataError(
                f"{first.name}: the model does not know the label {few([repr(first.target)])} "
                f"(it knows {few(self.labels)})"
            )
        places = {label: place_of(label, self.labels) for label in labels}
        return np.array([places[example.target] for example in examples], np.int64)

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Those of ``labels`` that the model does not know, sorted."""
        return sorted(label for label in set(labels) if place_of(label, self.labels) is None)

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


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms [..., C] of the probabilities of logits [..., C]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities [..., C] of logits [..., C]."""
    return np.exp(_log_softmax(logits))


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
    confidence = _softmax(logits).max(1)
    right = logits.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - right, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))
