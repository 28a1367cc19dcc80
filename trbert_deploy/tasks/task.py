"""The task: how a record becomes an example, and outputs an answer. numpy only."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import DataError, OutputError
from trbert_deploy.selection.select import first_token
from trbert_deploy.tasks.columns import Columns

#: Output name -> values of one row: [...] float32, or [S, ...] where it is per token.
Outputs = Mapping[str, NDArray[np.float32]]

#: What a model is judged by that has no labels to be judged by: how far its answers are the
#: teacher's, by ``Task.agreement``.
AGREEMENT = "agreement"
#: What tells more than agreement where answers hardly ever change, see ``Task.divergence``.
DIVERGENCE = "divergence"

#: A text, or a pair of them.
Text = str | tuple[str, str] | list[str]


@dataclass(frozen=True)
class Output:
    """An output of the head.

    Attributes:
        name: of the graph's tensor.
        per: ``row`` [B, ...] or ``token`` [B, S, ...].
    """

    name: str
    per: Literal["row", "token"]


@dataclass(frozen=True)
class Example:
    """A record as a model takes it.

    Attributes:
        target: as the record has it, None where it has none.
        name: what errors call it.
    """

    text: Text
    target: Any = None
    name: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """The survivors of one cut.

    Attributes:
        cut: position of the cut in encoder layers.
        positions: their places in the row of tokens, ascending.
        tokens: the tokens themselves.
    """

    cut: float
    positions: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one text; every task adds what it answers.

    Attributes:
        num_tokens: tokens of the text, special tokens included.
        kept: survivors of every cut, or None unless asked for.
    """

    num_tokens: int
    kept: tuple[KeptTokens, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer first; survivors only where they were asked for."""
        values = asdict(self)
        num_tokens, kept = values.pop("num_tokens"), values.pop("kept")
        values["num_tokens"] = num_tokens
        return values if kept is None else {**values, "kept": kept}


@dataclass(frozen=True)
class NewHead:
    """What a new head for some examples answers.

    Attributes:
        labels: its labels; none where the task has none.
        problem: the kind of its answers, see ``Task.problem``.
        found: the labels that occur in the examples.
    """

    labels: tuple[str, ...] = ()
    problem: str = ""
    found: tuple[str, ...] = ()

    @property
    def answers(self) -> dict[str, Any]:
        """As ``EncoderSpec.answers``."""
        return {"problem": self.problem} if self.problem else {}


class Task(ABC):
    """What a model answers.

    Attributes:
        name: that of the transformers pipeline.
        problem: the kind of its answers, where tasks of one name have several (see
            ``EncoderSpec.answers``).
        outputs: what its head computes.
        measure: name of the first of its ``metrics``, which models are judged by.
        columns: names by which that of a target is known, besides the text's.
        activation: what makes scores of a text's logits (see ``activations``); empty where answers
            are no such scores.
    """

    name: ClassVar[str]
    problem: ClassVar[str] = ""
    outputs: ClassVar[tuple[Output, ...]]
    measure: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    activation: str = ""

    @classmethod
    @abstractmethod
    def of(cls, spec: EncoderSpec) -> Self:
        """The task of a model of this shape."""

    @classmethod
    @abstractmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        """A record's text, and its target where it has one.

        Args:
            record: column -> value.
            name: what errors call it.
            columns: where its parts stand.

        Raises:
            DataError: the record is no example of the task.
        """

    @classmethod
    @abstractmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """The head that can learn from these examples.

        Raises:
            DataError: none can.
        """

    @abstractmethod
    def require_names(self, labels: Sequence[str], where: str) -> None:
        """Refuse labels that the model does not know.

        Args:
            labels: of a data set, each once.
            where: what errors call the model.

        Raises:
            DataError: there are some.
        """

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """Tokens that must survive every cut: [S] bool. By default the first one alone.

        Args:
            encoding: of the text, as the tokenizers library gives it.
        """
        return first_token(len(encoding.ids))

    @abstractmethod
    def decode(self, outputs: Outputs, encoding: Any) -> Prediction:
        """One row's outputs as a prediction.

        Raises:
            OutputError: a value is no finite number.
        """

    @abstractmethod
    def agreement(self, one: Outputs, other: Outputs) -> float:
        """How far two answers to one row are the same, from 0 to 1."""

    @abstractmethod
    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """How far a student's answer to a row is from its teacher's, 0 where they are the same.

        Unlike ``agreement`` it tells how sure the two are.
        """

    @abstractmethod
    def summary(self, prediction: Prediction) -> str:
        """The answer in few words."""

    def told_target(self, target: Any) -> str:
        """A target in few words, as ``summary`` has answers."""
        return str(target)

    def require_like(self, other: Task, name: str) -> None:
        """Refuse to compare with a model that answers otherwise.

        Args:
            name: what errors call this task's model.

        Raises:
            DataError: the two do not answer alike.
        """
        if other.name != self.name:
            raise DataError(f"{name} answers {self.name}: expected {other.name}, as the model")

    def translated(self, outputs: Outputs, other: Task) -> Outputs:
        """A row's outputs as a model of another task that it is like would have them."""
        return outputs

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """The targets as the model counts them: [N, ...].

        Raises:
            DataError: an example without a target, or with one that the model does not know.
        """

    @abstractmethod
    def metrics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> dict[str, float]:
        """Measures of quality over all rows; the first one is what models are judged by."""

    @abstractmethod
    def statistics(self, outputs: Sequence[Outputs], targets: NDArray[Any]) -> NDArray[np.float64]:
        """What each row adds to the first measure: [N, K].

        Or each group of rows, where these are judged together, such as the passages of a query.
        """

    def measured(self, statistics: NDArray[np.float64]) -> float:
        """The first measure over rows, of which some may be there several times.

        Args:
            statistics: [M, K] of these rows, in any order. By default their one column is a score,
                from 0 to 1, and the measure is its mean.
        """
        return mean_score(statistics)


#: Fewer units than these cannot be divided into parts.
FEWEST_UNITS = 10


def shuffled_units(examples: Sequence[Example], seed: int) -> list[list[int]]:
    """Indices of examples in random order, those together that must not be divided.

    These are the pairs of one first text: the passages of a query are ranked together, and of a
    premise that was learned from, another hypothesis is no new text. Of fewer than ``FEWEST_UNITS``
    such units none could be held out, and examples stand for themselves.
    """
    units: dict[Any, list[int]] = {}
    for place, example in enumerate(examples):
        key = place if isinstance(example.text, str) else example.text[0]
        units.setdefault(key, []).append(place)
    enough = len(units) >= FEWEST_UNITS
    shuffled = list(units.values()) if enough else [[place] for place in range(len(examples))]
    random.Random(seed).shuffle(shuffled)
    return shuffled


def rows_of_outputs(outputs: Outputs) -> list[dict[str, NDArray[np.float32]]]:
    """The outputs of a batch, [B, ...] each, row by row."""
    rows = len(next(iter(outputs.values())))
    return [{name: values[row] for name, values in outputs.items()} for row in range(rows)]


def mean_score(statistics: NDArray[np.float64]) -> float:
    """The mean of scores: [M, 1]."""
    return float(statistics[:, 0].mean())


def mean_agreement(task: Task, ones: Sequence[Outputs], others: Sequence[Outputs]) -> float:
    """Mean agreement of two models' answers to the same rows."""
    pairs = zip(ones, others, strict=True)
    return float(np.mean([task.agreement(one, other) for one, other in pairs]))


def require_numbers(outputs: Outputs) -> None:
    """Refuse to answer from what is no number.

    Raises:
        OutputError: a value is NaN or infinite.
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise OutputError(
                f"the model's {name} hold {values[~np.isfinite(values)].flat[0]}: expected finite "
                "numbers; its weights are damaged, or half precision overflows (try fp32)"
            )
