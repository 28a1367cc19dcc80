"""Text ranking: how well a passage answers a query, by one logit (cross-encoders, rerankers)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SIGMOID
from trbert_deploy.tasks.columns import LABELS, Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labels import label_name, number_of
from trbert_deploy.tasks.lists import (
    is_list,
    json_list,
    list_example,
    list_of,
    others_of,
    pairs_of,
    value_of,
)
from trbert_deploy.tasks.outputs import Output, Outputs
from trbert_deploy.tasks.pairs import PAIR_ENTRIES
from trbert_deploy.tasks.predictions import KeptTokens, Prediction
from trbert_deploy.tasks.task import NewHead, Task
from trbert_deploy.tasks.text_classification import LOGITS, ONE_NUMBER, logits_of

#: Entry of ``EncoderSpec.answers``: what is put on the logit, as PyTorch calls it.
ACTIVATION = "activation"
#: Ranks that are looked at.
DEPTH = 10


@dataclass(frozen=True, kw_only=True)
class ScorePrediction(Prediction):
    """How well a passage answers a query.

    Attributes:
        score: the larger the better; from 0 to 1 by a sigmoid, or the logit itself.
    """

    score: float


@dataclass(frozen=True, kw_only=True)
class RankedText:
    """One of several passages.

    Attributes:
        corpus_id: which of them it is, from 0 on.
        score: how well it answers the query.
    """

    corpus_id: int
    score: float


@dataclass(frozen=True, kw_only=True)
class RankingPrediction(Prediction):
    """The passages of a query.

    Attributes:
        ranking: best first; equal scores in the given order.
    """

    ranking: tuple[RankedText, ...]


class TextRanking(Task):
    """A score for a query and a passage.

    Args:
        activation: ``Sigmoid``, or ``Identity`` for the logit as it is.

    Raises:
        ConfigError: another one.
    """

    name = "text-ranking"
    outputs = (Output(LOGITS, "row"),)
    measure = f"mrr_{DEPTH}"
    columns: ClassVar[tuple[str, ...]] = LABELS
    lists = ("passages", "documents", "docs", "candidates")
    entries = PAIR_ENTRIES
    can_exit = True

    def __init__(self, activation: str = SIGMOID) -> None:
        if activation not in (SIGMOID, IDENTITY):
            raise ConfigError(
                f"the activation of the score is {activation}: expected {SIGMOID} or {IDENTITY}"
            )
        self.activation = activation

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls(spec.answers.get(ACTIVATION, SIGMOID))

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        label = None if columns.label is None else record.get(columns.label)
        passages = list_of(value_of(record, columns), name, "passages")
        if passages is None:
            return Example(text_of(record, name, columns), label_name(label, name), name)
        query = text_of(record, name, replace(columns, pair=None))
        assert isinstance(query, str)
        return list_example((query, passages), _labels_of(label, len(passages), name), name)

    @classmethod
    def divided(cls, example: Example) -> list[Example]:
        if not is_list(example.text):
            return [example]
        targets = example.target or [None] * len(others_of(example, "passage"))
        return pairs_of(example, targets, "passage")

    def joined(self, answers: Sequence[Prediction], text: Text) -> Prediction:
        """The passages by their scores, best first."""
        if not is_list(text):
            return super().joined(answers, text)
        scores = scores_of(answers)
        return RankingPrediction(
            num_tokens=sum(answer.num_tokens for answer in answers),
            kept=kept_by_row(answers),
            ranking=tuple(
                RankedText(corpus_id=int(place), score=scores[place])
                for place in np.argsort(-np.array(scores), kind="stable")
            ),
        )

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """A score by a sigmoid.

        Raises:
            DataError: an example is one text, or its label no number.
        """
        for example in examples:
            _require_pair(example)
            _relevance(example.target, example.name)
        found = tuple(sorted({example.target for example in examples}))
        told = "the relevance of passages"
        return NewHead(cls.name, ONE_NUMBER, {ACTIVATION: SIGMOID}, found, told)

    def require_names(self, labels: Sequence[str], where: str) -> None:
        for label in labels:
            _relevance(label, f"the data for {where}")

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> ScorePrediction:
        logits_of(outputs, 1)
        return ScorePrediction(num_tokens=len(encoding.ids), score=self._score(outputs))

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """1 less the distance of two scores, logits by the larger one or by 1; at least 0.

        What is no number agrees with nothing.
        """
        ours, theirs = self._score(one), self._score(other)
        if not np.isfinite([ours, theirs]).all():
            return 0.0
        return max(0.0, 1.0 - abs(ours - theirs) / max(1.0, abs(ours), abs(theirs)))

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Squared difference of the scores."""
        return (self._score(teacher) - self._score(student)) ** 2

    def confidence(self, outputs: Outputs) -> float:
        """The margin of the logit from 0, as a probability: relevant, or not."""
        return float(ACTIVATIONS[SIGMOID](np.abs(outputs[LOGITS])).max())

    def same_answer(self, one: Outputs, other: Outputs) -> bool:
        """Whether both say that it is relevant, or both that it is not."""
        return bool((one[LOGITS][0] > 0) == (other[LOGITS][0] > 0))

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, ScorePrediction)
        return f"{prediction.score:.3f}"

    def no_target(self, encoding: Any = None) -> NDArray[np.float32]:
        return np.full(2, np.nan, np.float32)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> NDArray[np.float32]:
        """How relevant each passage is, and the number of its query: [N, 2]."""
        queries: dict[str, int] = {}
        rows = np.empty((len(examples), 2), np.float32)
        for row, example in zip(rows, examples, strict=True):
            if example.target is None:
                raise DataError(f'{example.name}: expected a field "label" beside the texts')
            _require_pair(example)
            relevance = _relevance(example.target, example.name)
            row[:] = relevance, queries.setdefault(example.text[0], len(queries))
        return rows

    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """Mean reciprocal rank of the first relevant passage, and normalized discounted gain."""
        statistics = self.statistics(outputs, targets)
        return {
            self.measure: self.measured(statistics),
            f"ndcg_{DEPTH}": float(statistics[:, 1].mean()),
        }

    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Reciprocal rank and gain of each query that has a relevant passage: [Q, 2].

        Passages of one score are ranked by chance: here the least relevant ones first.

        Raises:
            DataError: there is no such query.
        """
        scores = np.array([float(each[LOGITS][0]) for each in outputs])
        found = []
        for members in answered_groups(targets):
            relevance = targets[members, 0].astype(np.float64)
            order = np.lexsort((relevance, -scores[members]))
            found.append((_reciprocal_rank(relevance[order]), _gain(relevance[order])))
        if not found:
            raise DataError(
                "no query has a relevant passage: expected a label above 0 for some of them"
            )
        return np.array(found)

    def _score(self, outputs: Outputs) -> float:
        return float(ACTIVATIONS[self.activation](outputs[LOGITS])[0])


def answered_groups(targets: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """The rows of each query that has a relevant passage, given the targets of all: [N, 2]."""
    for query in np.unique(targets[:, 1]):
        (members,) = np.nonzero(targets[:, 1] == query)
        if targets[members, 0].max() > 0:
            yield members


def scores_of(answers: Sequence[Prediction]) -> list[float]:
    """The scores of pairs."""
    return [answer.score for answer in answers if isinstance(answer, ScorePrediction)]


def kept_by_row(answers: Sequence[Prediction]) -> tuple[tuple[KeptTokens, ...], ...] | None:
    """The survivors of each of several rows; None where nobody asked for them."""
    if any(answer.kept is None for answer in answers):
        return None
    return tuple(answer.kept for answer in answers)  # type: ignore[misc]


def _labels_of(label: Any, count: int, name: str) -> list[str | None] | None:
    """How relevant each passage of a list is, as names; None where nothing says it.

    Raises:
        DataError: other than one label for each.
    """
    if label is None:
        return None
    labels = json_list(label)
    if labels is None or len(labels) != count:
        told = "one" if labels is None else len(labels)
        raise DataError(f"{name} has {told} label for {count} passages: expected one for each")
    return [label_name(each, name) for each in labels]


def _require_pair(example: Example) -> None:
    """Refuse a passage without its query.

    Raises:
        DataError: the example is one text.
    """
    if isinstance(example.text, str):
        raise DataError(
            f"{example.name} is one text: expected a query and a passage, in columns such as query "
            "and passage"
        )


def _relevance(label: str, name: str) -> float:
    """How relevant a label says that a passage is.

    Raises:
        DataError: it is no number.
    """
    return number_of(label, name, "how relevant the passage is (0: not at all)")


def _reciprocal_rank(relevance: NDArray[np.float64]) -> float:
    """1 over the rank of the first relevant passage, 0 beyond ``DEPTH``: [P] in ranked order."""
    (places,) = np.nonzero(relevance[:DEPTH] > 0)
    return 1.0 / (1 + int(places[0])) if len(places) else 0.0


def _gain(relevance: NDArray[np.float64]) -> float:
    """Discounted cumulative gain (Järvelin and Kekäläinen 2002), over the best there can be."""
    discounts = 1.0 / np.log2(np.arange(2, DEPTH + 2))

    def gain(ranked: NDArray[np.float64]) -> float:
        return float((ranked[:DEPTH] * discounts[: len(ranked)]).sum())

    return gain(relevance) / gain(np.sort(relevance)[::-1])
