"""Text classification whose answers are numbers: one or several for each text, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import DataError
from trbert_deploy.tasks.activations import IDENTITY
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labels import number_of
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.text_classification import (
    LOGITS,
    REGRESSION,
    LabelPrediction,
    TextClassification,
)


class Regression(TextClassification):
    """A number for each text.

    Attributes:
        labels: names of the numbers, mostly one.
    """

    problem = REGRESSION
    measure = "spearman"
    activation = IDENTITY
    can_exit = False  # a number does not tell how sure it is

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> LabelPrediction:
        """The numbers as ``scores``; ``label`` and ``score`` are the largest one's."""
        values = self.checked(outputs)
        label = self.labels[int(np.argmax(values))]
        scores = dict(zip(self.labels, map(float, values), strict=True))
        return LabelPrediction(
            num_tokens=len(encoding.ids), label=label, score=scores[label], scores=scores
        )

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """1 less the distance of two numbers, by the larger one or by 1; at least 0, their mean.

        What is no number agrees with nothing.
        """
        ours, theirs = one[LOGITS].astype(np.float64), other[LOGITS].astype(np.float64)
        if not np.isfinite([*ours, *theirs]).all():
            return 0.0
        size = np.maximum(1.0, np.maximum(abs(ours), abs(theirs)))
        return float(np.maximum(0.0, 1.0 - abs(ours - theirs) / size).mean())

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Mean squared difference."""
        return float(np.square(teacher[LOGITS].astype(np.float64) - student[LOGITS]).mean())

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, LabelPrediction)
        return ", ".join(f"{value:.3g}" for value in prediction.scores.values())

    def require_names(self, labels: Sequence[str], where: str) -> None:
        for label in labels:
            number_of(label, f"the data for {where}")

    def require_known(self, examples: Sequence[Example]) -> None:
        self.targets(examples)

    def no_target(self, encoding: Any = None) -> NDArray[np.float32]:
        return np.full(len(self.labels), np.nan, np.float32)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> NDArray[np.float32]:
        """The numbers: [N, C]."""
        rows = np.empty((len(examples), len(self.labels)), np.float32)
        for row, example in zip(rows, examples, strict=True):
            if example.target is None:
                raise DataError(f'{example.name}: expected a field "label" beside the text')
            values = example.target if isinstance(example.target, tuple) else (example.target,)
            if len(values) != len(self.labels):
                raise DataError(
                    f"{example.name} has {len(values)} labels: expected {len(self.labels)}, one "
                    "for each number that the model answers"
                )
            row[:] = [number_of(value, example.name) for value in values]
        return rows

    def told_target(self, target: str | tuple[str, ...]) -> str:
        return target if isinstance(target, str) else ", ".join(target)

    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """Correlation of ranks (Spearman) and of values (Pearson), mean squared error."""
        statistics = self.statistics(outputs, targets)
        answers, truth = np.split(statistics, 2, axis=1)
        return {
            self.measure: self.measured(statistics),
            "pearson": _mean_correlation(answers, truth),
            "mean_squared_error": float(np.square(answers - truth).mean()),
        }

    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Answers, then targets: [N, 2 * C]."""
        answers = np.stack([each[LOGITS] for each in outputs])
        return np.hstack([answers, targets]).astype(np.float64)

    @classmethod
    def measured(cls, statistics: NDArray[np.float64]) -> float:
        """Spearman's correlation, the mean of several numbers'."""
        answers, truth = np.split(statistics, 2, axis=1)
        ranks = [np.apply_along_axis(_ranks, 0, values) for values in (answers, truth)]
        return _mean_correlation(*ranks)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks [N] of values [N] from 1 on, equal ones sharing their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _mean_correlation(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Pearson's correlation of columns [N, C], their mean; 0 where one of the two is constant."""
    ours, theirs = (each - each.mean(axis=0) for each in (ours, theirs))
    size = np.sqrt(np.square(ours).sum(axis=0) * np.square(theirs).sum(axis=0))
    products = (ours * theirs).sum(axis=0)
    return float(np.where(size > 0, products / np.where(size > 0, size, 1.0), 0.0).mean())
