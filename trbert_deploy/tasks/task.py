"""The task: how a record becomes an example, and outputs an answer. numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.selection.select import first_token
from trbert_deploy.tasks.columns import Columns
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.outputs import Output, Outputs, hear_dropped
from trbert_deploy.tasks.pairs import PairRules
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.spelling import Spelling

#: What a model is judged by that has no labels to be judged by: how far its answers are the
#: teacher's, by ``Task.agreement``.
AGREEMENT = "agreement"
#: What tells more than agreement where answers hardly ever change, see ``Task.divergence``.
DIVERGENCE = "divergence"

#: What is wanted of texts: [N, ...], or where that is of tokens a list of [S, ...] for each text.
Targets = Any

#: Target of a token that nothing is asked of, such as a special one, or padding.
NO_TOKEN = -100


@dataclass(frozen=True)
class NewHead:
    """What a new head for some examples answers.

    Attributes:
        task: name of the task.
        labels: its labels; none where the task has none.
        answers: how its outputs are answers, as ``EncoderSpec.answers``.
        found: the labels that occur in the examples.
        told: what a person is told it is trained for.
    """

    task: str
    labels: tuple[str, ...] = ()
    answers: Mapping[str, Any] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    told: str = "the labels"


def first_of(encoding: Any) -> NDArray[np.bool_]:
    """The first token of an encoding: [S] bool."""
    return first_token(len(encoding.ids))


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
        overlap: where above 0, a text that is too long for the model is not cut, but read in
            windows that share so many tokens.
        texts: further names by which that of the text is known, before all others.
        lists: names by which that of a list of second texts is known (see ``divided``).
        takes_pairs: whether a text may be a pair.
        entries: of config.json, and of ``EncoderSpec.answers``: how its outputs are answers.
        options: names of what a user may choose of how it answers (see ``set_up``).
        pair_rules: what is asked of the texts of pairs.
        can_exit: whether answers tell how sure they are, so that rows may leave early with them
            (``selection.exits``).
        lexicon_tags: by which a lexicon's phrases may be known, in the model's order; none where it
            takes no lexicon.
    """

    name: ClassVar[str]
    problem: ClassVar[str] = ""
    outputs: tuple[Output, ...]
    measure: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    activation: str = ""
    overlap: ClassVar[int] = 0
    texts: ClassVar[tuple[str, ...]] = ()
    lists: ClassVar[tuple[str, ...]] = ()
    takes_pairs: ClassVar[bool] = True
    entries: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    pair_rules: PairRules = PairRules()
    can_exit: ClassVar[bool] = False
    lexicon_tags: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def of(cls, spec: EncoderSpec) -> Self:
        """The task of a model of this shape."""

    @classmethod
    def settled(cls, spec: EncoderSpec, spelling: Callable[[], Spelling]) -> EncoderSpec:
        """The shape of a model of this task, with what the task must know of its tokenizer.

        Args:
            spec: as its configuration has it.
            spelling: reads the tokenizer.

        Raises:
            ConfigError: the tokenizer is not for this task.
        """
        return spec

    @property
    def answers_tokens(self) -> bool:
        """Whether it is tokens that are answered, so that targets are theirs."""
        return any(output.per in ("token", "asked") for output in self.outputs)

    @property
    def answers_every_token(self) -> bool:
        """Whether it is all tokens that are answered."""
        return any(output.per == "token" for output in self.outputs)

    @property
    def hears_dropped(self) -> bool:
        """Whether dropped tokens take part in the outputs."""
        return hear_dropped(self.outputs)

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
    def divided(cls, example: Example) -> list[Example]:
        """What the model reads for an example, each in one row: by default itself.

        Raises:
            DataError: there is nothing to read.
        """
        return [example]

    def joined(self, answers: Sequence[Prediction], text: Text) -> Prediction:
        """The answer to a text from those to what it was divided into."""
        (answer,) = answers
        return answer

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

    def leaves_open(self, head: NewHead) -> bool:
        """Whether a model's own head learns first what some data asks, though it answers already.

        Args:
            head: for the data.
        """
        return False

    def set_up(self, **options: Any) -> Self:
        """The same task answering in another way; what is None stays as it is.

        Args:
            options: by the names in ``options``.

        Raises:
            ConfigError: a value out of range, or an option that the task does not have.
        """
        chosen = {name: value for name, value in options.items() if value is not None}
        for name, value in chosen.items():
            if name not in self.options:
                raise ConfigError(
                    f"{name} is {value!r}, and the model is for {self.name}, which has no {name}: "
                    "leave it out"
                )
        return self.with_options(chosen) if chosen else self

    def with_options(self, chosen: Mapping[str, Any]) -> Self:
        """The same task with some of its ``options``.

        Raises:
            ConfigError: a value out of range.
        """
        raise NotImplementedError  # only where there are options

    def spelled(self, spelling: Spelling) -> Self:
        """The same task, of a model whose tokenizer writes words so."""
        return self

    @classmethod
    def taking_lexicon(cls) -> dict[str, Any]:
        """What makes a model take a lexicon, as ``EncoderSpec.answers``.

        Raises:
            ConfigError: none of the task does.
        """
        raise ConfigError(f"the model is for {cls.name}, which takes no lexicon: leave it out")

    def right_matches(self, example: Example) -> set[tuple[int, int, str]]:
        """What matches in a text are right, by its target: first letter, the one behind, tag."""
        raise NotImplementedError  # only where a lexicon is taken

    def input_of(self, text: Text) -> Text:
        """What the model reads of a text, with what is put before it."""
        return text

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """Tokens that must survive every cut: [S] bool. By default the first one, and those of a
        text of a pair that ``pair_rules`` protect.

        Args:
            encoding: of the text, as the tokenizers library gives it.
        """
        return first_of(encoding) | self.pair_rules.protected(encoding)

    @property
    def protects(self) -> bool:
        """Whether more tokens than the first may be protected: by ``protected``, or as a match."""
        return self.pair_rules.protect is not None or bool(self.lexicon_tags)

    def require_question(self, encoding: Any, name: str) -> None:
        """Refuse a text that does not ask what the task answers.

        Args:
            encoding: of the text, as it is read.
            name: what errors call it.

        Raises:
            DataError: it does not.
        """
        return  # by default every text does

    @abstractmethod
    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> Prediction:
        """The outputs on one text as a prediction.

        Args:
            encoding: of the text.
            text: itself, of which some answers are parts.

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

    def confidence(self, outputs: Outputs) -> float:
        """How sure an answer to a row is, from 0 to 1; of what ``can_exit`` alone."""
        raise NotImplementedError

    def same_answer(self, one: Outputs, other: Outputs) -> bool:
        """Whether two answers to a row come to the same thing."""
        return self.agreement(one, other) == 1.0

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
    def no_target(self, encoding: Any = None) -> Any:
        """The target of an example without one, as ``targets`` has them.

        Args:
            encoding: of its text; targets of whole rows do not depend on it.
        """

    @abstractmethod
    def targets(self, examples: Sequence[Example], encodings: Sequence[Any] = ()) -> Targets:
        """The targets as the model counts them: [N, ...]; per token a list of [S, ...] each.

        Args:
            encodings: of the texts; targets of whole rows do not depend on them.

        Raises:
            DataError: an example without a target, or with one that the model does not know.
        """

    def target_of(self, target: Any, window: NDArray[np.int64]) -> Any:
        """The target of a window of a text (see ``overlap``), given that of the text.

        Args:
            window: [W] places of its tokens.
        """
        return target[window]

    @abstractmethod
    def metrics(self, outputs: Sequence[Outputs], targets: Targets) -> dict[str, float]:
        """Measures of quality over all rows; the first one is what models are judged by."""

    @abstractmethod
    def statistics(self, outputs: Sequence[Outputs], targets: Targets) -> NDArray[np.float64]:
        """What each row adds to the first measure: [N, K].

        Or each group of rows, where these are judged together, such as the passages of a query.
        """

    @classmethod
    def measured(cls, statistics: NDArray[np.float64]) -> float:
        """The first measure over rows, of which some may be there several times.

        Args:
            statistics: [M, K] of these rows, in any order. By default their one column is a score,
                from 0 to 1, and the measure is its mean.
        """
        return mean_score(statistics)


def mean_score(statistics: NDArray[np.float64]) -> float:
    """The mean of scores: [M, 1]."""
    return float(statistics[:, 0].mean())


def mean_agreement(task: Task, ones: Sequence[Outputs], others: Sequence[Outputs]) -> float:
    """Mean agreement of two models' answers to the same rows."""
    pairs = zip(ones, others, strict=True)
    return float(np.mean([task.agreement(one, other) for one, other in pairs]))
