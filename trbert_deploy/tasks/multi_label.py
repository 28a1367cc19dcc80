"""Text classification with several labels for a text, or none: a sigmoid for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.fields import require_kind
from trbert_deploy.tasks.activations import SIGMOID, sigmoid
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labels import names_in, place_of
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.pairs import PAIR_ENTRIES
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.text_classification import (
    LOGITS,
    MULTI_LABEL,
    LabelPrediction,
    TextClassification,
)

#: Entry of config.json, and of ``EncoderSpec.answers``: label -> probability from which it counts.
THRESHOLDS = "label_thresholds"
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class LabelsPrediction(LabelPrediction):
    """A text's labels.

    Attributes:
        label, score: the most probable one, whether it counts or not.
        scores: label -> probability, each for itself.
        labels: those whose probability reaches their threshold, in the model's order.
    """

    labels: tuple[str, ...]


class MultiLabelClassification(TextClassification):
    """Any number of labels for each text.

    Args:
        labels: in the order of the logits.
        thresholds: label -> probability from which it counts; 0.5 for those that are left out.

    Raises:
        ConfigError: a threshold of no label, or no number between 0 and 1.
    """

    problem = MULTI_LABEL
    measure = "macro_f1"
    activation = SIGMOID
    entries = (*PAIR_ENTRIES, THRESHOLDS)

    def __init__(self, labels: Sequence[str], thresholds: Mapping[str, float] = {}) -> None:
        super().__init__(labels)
        require_kind(thresholds, Mapping[str, float], THRESHOLDS)
        for label, threshold in thresholds.items():
            if label not in self.labels or not 0.0 < threshold < 1.0:
                raise ConfigError(
                    f"{THRESHOLDS} has {threshold} for {label!r}: expected a probability between 0 "
                    f"and 1 for one of {', '.join(self.labels)}"
                )
        self.thresholds = np.array(
            [thresholds.get(label, DEFAULT_THRESHOLD) for label in self.labels]
        )

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls(spec.labels, spec.answers.get(THRESHOLDS, {}))

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> LabelsPrediction:
        probabilities = sigmoid(self.checked(outputs))
        scores = dict(zip(self.labels, map(float, probabilities), strict=True))
        label = self.labels[int(np.argmax(probabilities))]
        return LabelsPrediction(
            num_tokens=len(encoding.ids),
            label=label,
            score=scores[label],
            scores=scores,
            labels=self._names(self.decisions(outputs)),
        )

    def decisions(self, outputs: Outputs) -> NDArray[np.bool_]:
        """Which labels count: [..., C]."""
        return sigmoid(outputs[LOGITS]) >= self.thresholds

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """Labels that both give, as a share of those that one of the two gives (Jaccard).

        1 where neither gives any; what is no number agrees with nothing.
        """
        if not np.isfinite([*one[LOGITS], *other[LOGITS]]).all():
            return 0.0
        ours, theirs = self.decisions(one), self.decisions(other)
        either = int((ours | theirs).sum())
        return int((ours & theirs).sum()) / either if either else 1.0

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Kullback-Leibler divergence of each label's two probabilities, their mean, in nats."""
        wanted, found = (each[LOGITS].astype(np.float64) for each in (teacher, student))
        given = sigmoid(wanted)
        # log sigmoid(x) = -log(1 + exp(-x)), and the same of -x for the label that is not given
        parts = given * (np.logaddexp(0.0, -found) - np.logaddexp(0.0, -wanted))
        parts += (1.0 - given) * (np.logaddexp(0.0, found) - np.logaddexp(0.0, wanted))
        return float(max(0.0, parts.mean()))

    def confidence(self, outputs: Outputs) -> float:
        """Of the label that is closest to its threshold: half at it, 1 where nothing is farther."""
        distance = sigmoid(outputs[LOGITS]) - self.thresholds
        room = np.where(distance >= 0, 1.0 - self.thresholds, self.thresholds)
        return float(0.5 + 0.5 * (np.abs(distance) / room).min())

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, LabelsPrediction)
        return ", ".join(prediction.labels) or "none"

    def no_target(self, encoding: Any = None) -> NDArray[np.float32]:
        return np.full(len(self.labels), np.nan, np.float32)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> NDArray[np.float32]:
        """1 for each label of a text, 0 for the others: [N, C]."""
        self.require_known(examples)
        rows = np.zeros((len(examples), len(self.labels)), np.float32)
        for row, example in zip(rows, examples, strict=True):
            for label in names_in([example.target]):
                place = place_of(label, self.labels)
                assert place is not None  # all are known
                row[place] = 1.0
        return rows

    def told_target(self, target: str | tuple[str, ...]) -> str:
        return (
            ", ".join(
                super(MultiLabelClassification, self).told_target(label)
                for label in sorted(names_in([target]))
            )
            or "none"
        )

    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """F1, the mean of the labels' and that of all decisions; texts without a mistake; average
        precision, the mean of the labels'.
        """
        statistics = self.statistics(outputs, targets)
        counts = statistics.sum(axis=0).reshape(-1, 3).sum(axis=0)
        answers = np.stack([self.decisions(each) for each in outputs])
        return {
            self.measure: self.measured(statistics),
            "micro_f1": _f1(*counts),
            "exact_match": float((answers == (targets > 0.5)).all(axis=1).mean()),
            "average_precision": _mean_average_precision(
                np.stack([each[LOGITS] for each in outputs]), targets > 0.5
            ),
        }

    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Of every label whether it is given rightly, wrongly, or missed: [N, C * 3]."""
        answers = np.stack([self.decisions(each) for each in outputs])
        truth = targets > 0.5
        parts = (answers & truth, answers & ~truth, ~answers & truth)
        return np.stack(parts, axis=-1).reshape(len(answers), -1).astype(np.float64)

    @classmethod
    def measured(cls, statistics: NDArray[np.float64]) -> float:
        """F1, averaged over the labels that occur or are given."""
        counts = statistics.sum(axis=0).reshape(-1, 3)
        scores = [_f1(*row) for row in counts if row.any()]
        return float(np.mean(scores)) if scores else 1.0

    def _names(self, decided: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(label for label, given in zip(self.labels, decided, strict=True) if given)


def _mean_average_precision(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Average precision of each label that occurs, their mean; 0 where none does.

    Args:
        scores, truth: [N, C] each; scores need only be in the right order.
    """
    found = [_average_precision(*label) for label in zip(scores.T, truth.T, strict=True)]
    return float(np.mean([each for each in found if each is not None] or [0.0]))


def _average_precision(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float | None:
    """Precision at each recall that is reached, weighted by what the recall gains there.

    Texts of one score, [N] as the truth, count together (as in scikit-learn); None without any that
    is true.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    if not hits[-1]:
        return None
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each score
    gained = np.diff(hits[last], prepend=0) / hits[-1]
    return float((gained * hits[last] / (last + 1)).sum())


def _f1(right: float, wrong: float, missed: float) -> float:
    total = 2 * right + wrong + missed
    return float(2 * right / total) if total else 1.0
