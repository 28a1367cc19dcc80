"""Token classification: a label for every token, such as the entities of a text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, DataError, OutputError, few
from trbert_deploy.tasks.activations import kl_divergence, softmax
from trbert_deploy.tasks.chunks import OUTSIDE, Chunk, chunks, f1, parsed, shared
from trbert_deploy.tasks.columns import LABEL, WORDS, Columns
from trbert_deploy.tasks.entities import AGGREGATIONS, SIMPLE, Entity, TaggedToken, entities_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labelled import LabelledTask
from trbert_deploy.tasks.labels import are_numbers, place_of
from trbert_deploy.tasks.outputs import Output, Outputs, require_numbers
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.spelling import Spelling
from trbert_deploy.tasks.task import NO_TOKEN, NewHead
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN, first_tokens, special_tokens
from trbert_deploy.tasks.words import TaggedWord, read_tagged

#: Entry of config.json, and of ``EncoderSpec.answers``: how tokens are made entities.
AGGREGATION = "aggregation_strategy"
#: The same of whether the model was trained with a lexicon, and takes one.
TAKES_LEXICON = "takes_lexicon"


@dataclass(frozen=True, kw_only=True)
class EntitiesPrediction(Prediction):
    """The entities of a text, in its order; tokens where these are not aggregated."""

    entities: tuple[Entity, ...] | tuple[TaggedToken, ...]


def require_aggregation(name: str) -> None:
    """Refuse an unknown way to make tokens entities.

    Raises:
        ConfigError: it is none of ``AGGREGATIONS``.
    """
    if name not in AGGREGATIONS:
        raise ConfigError(f"{AGGREGATION} is {name!r}: expected one of {', '.join(AGGREGATIONS)}")


class TokenClassification(LabelledTask):
    """A label for every token; words are judged by their first one.

    Targets are [S] int64 for each text: the label at the first token of a word, ``UNKNOWN`` at its
    others, of which a teacher alone can say what is right, and ``NO_TOKEN`` at special tokens.

    Args:
        labels: in the order of the logits.
        aggregation: how tokens are made entities, one of ``entities.AGGREGATIONS``.
        spelling: how the tokenizer writes words.
        takes_lexicon: whether it hears what a lexicon says, whose tags are the types of entities.

    Raises:
        ConfigError: an unknown aggregation.
    """

    name = "token-classification"
    outputs = (Output(LOGITS, "token"),)
    measure = "entity_f1"
    columns = ("ner_tags", "tags", "labels", LABEL)
    texts = WORDS
    entries = (AGGREGATION, TAKES_LEXICON)
    options = (AGGREGATION,)
    takes_pairs = False
    overlap: ClassVar[int] = 64
    can_exit = True

    def __init__(
        self,
        labels: Sequence[str],
        aggregation: str = SIMPLE,
        spelling: Spelling = Spelling(),
        takes_lexicon: bool = False,
    ) -> None:
        super().__init__(labels)
        require_aggregation(aggregation)
        self.aggregation = aggregation
        self.spelling = spelling
        self._tags = [parsed(label) for label in self.labels]
        if takes_lexicon:
            self.lexicon_tags = tuple(dict.fromkeys(tag[1] for tag in self._tags if tag))

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        takes = spec.answers.get(TAKES_LEXICON, False)
        if not isinstance(takes, bool):
            raise ConfigError(f"{TAKES_LEXICON} is {takes!r}: expected true or false")
        return cls(spec.labels, spec.answers.get(AGGREGATION, SIMPLE), takes_lexicon=takes)

    def spelled(self, spelling: Spelling) -> Self:
        other = copy(self)
        other.spelling = spelling
        return other

    def with_options(self, chosen: Mapping[str, Any]) -> Self:
        require_aggregation(chosen[AGGREGATION])
        other = copy(self)
        other.aggregation = chosen[AGGREGATION]
        return other

    @classmethod
    def taking_lexicon(cls) -> dict[str, Any]:
        return {TAKES_LEXICON: True}

    def labels_of_matches(self) -> NDArray[np.float32]:
        """Which labels say the same as a match: [2 * tags, C], for each tag where it begins, and
        inside of it; 1, else 0.
        """
        found = np.zeros((len(self.lexicon_tags), 2, len(self.labels)), np.float32)
        for label, tag in enumerate(self._tags):
            if tag is not None:
                found[self.lexicon_tags.index(tag[1]), int(tag[0] in "IE"), label] = 1.0
        for own in found:  # of a scheme that has one label for both
            for place in (0, 1):
                if not own[place].any():
                    own[place] = own[1 - place]
        return found.reshape(-1, len(self.labels))

    def right_matches(self, example: Example) -> set[tuple[int, int, str]]:
        words = example.target
        tags = (self._tags[self._place(tag, example.name)] for _, _, tag in words)
        return {(words[first][0], words[last][1], kind) for kind, first, last in chunks(tags)}

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        return read_tagged(record, name, columns)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """The tags that occur, outside of all entities first; numbers by their size."""
        found = {tag for example in examples for _, _, tag in example.target}
        if len(found) < 2:
            raise DataError(
                f"the data has one tag only ({few(found) or 'none'}): expected two or more"
            )
        order = sorted(found, key=float) if are_numbers([*found]) else sorted(found)
        labels = tuple(sorted(order, key=lambda tag: tag != OUTSIDE))
        return NewHead(cls.name, labels, found=labels)

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> EntitiesPrediction:
        found = self.entities(outputs, encoding, text, self.aggregation)
        return EntitiesPrediction(num_tokens=len(encoding.ids), entities=found)

    def entities(
        self,
        outputs: Outputs,
        encoding: Any,
        text: Text,
        aggregation: str,
        ignored: Collection[str] = (OUTSIDE,),
    ) -> tuple[Entity, ...] | tuple[TaggedToken, ...]:
        """The entities of a text, see ``tasks.entities``.

        Raises:
            OutputError: a value is no finite number, or there are not as many as tokens and labels.
            DataError: the text is a pair.
        """
        require_numbers(outputs)
        expected = (len(encoding.ids), len(self.labels))
        if outputs[LOGITS].shape != expected:
            raise OutputError(
                f"the model's logits have the shape {list(outputs[LOGITS].shape)}: expected "
                f"{list(expected)}, one for each token and label"
            )
        if not isinstance(text, str):
            raise DataError("the text is a pair: expected one text, whose tokens are labelled")
        return entities_of(
            softmax(outputs[LOGITS]),
            self.labels,
            encoding,
            text,
            self.spelling,
            aggregation,
            ignored,
        )

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """F1 of the entities of two answers, token by token; 1 where neither has one.

        What is no number agrees with nothing.
        """
        if not (np.isfinite(one[LOGITS]).all() and np.isfinite(other[LOGITS]).all()):
            return 0.0
        ours, theirs = (self._chunks(each[LOGITS].argmax(-1)) for each in (one, other))
        return f1(shared(ours, theirs)) if ours or theirs else 1.0

    def confidence(self, outputs: Outputs) -> float:
        """Of the token that is least sure of its label, those at both ends left out: they are no
        token of a word in any tokenizer that marks where texts begin and end.
        """
        logits = outputs[LOGITS]
        words = logits[1:-1] if len(logits) > 2 else logits
        return float(softmax(words).max(-1).min())

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Kullback-Leibler divergence of each token's probabilities, their mean, in nats."""
        return float(kl_divergence(teacher[LOGITS], student[LOGITS]).mean())

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, EntitiesPrediction)
        told = (
            f"{each.word.strip()} "
            f"({each.entity if isinstance(each, TaggedToken) else each.entity_group})"
            for each in prediction.entities
        )
        return few(told) or "none"

    def told_target(self, target: Sequence[TaggedWord]) -> str:
        """The types of a text's entities, in its order."""
        places = [place_of(tag, self.labels) for _, _, tag in target]
        found = chunks(None if place is None else self._tags[place] for place in places)
        return few(kind for kind, _, _ in sorted(found, key=lambda chunk: chunk[1])) or "none"

    def no_target(self, encoding: Any = None) -> NDArray[np.int64]:
        return np.where(special_tokens(encoding), NO_TOKEN, UNKNOWN)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> list[NDArray[np.int64]]:
        """The label at the first token of each word: [S] each.

        A word that the tokenizer makes no token of, or that was cut off, has none.
        """
        return [
            self._target(example, encoding)
            for example, encoding in zip(examples, encodings, strict=True)
        ]

    def _target(self, example: Example, encoding: Any) -> NDArray[np.int64]:
        target = self.no_target(encoding)
        if example.target is None:
            raise DataError(f"{example.name}: expected a field of tags beside the words")
        labels = np.array([self._place(tag, example.name) for _, _, tag in example.target])
        if len(labels):
            words = np.array([word[:2] for word in example.target], np.int64)
            assert isinstance(example.text, str)  # as it was read
            places, begun = first_tokens(encoding, example.text, words)
            target[places] = labels[begun]
        return target

    def _place(self, tag: str, name: str) -> int:
        place = place_of(tag, self.labels)
        if place is None:
            raise DataError(
                f"{name}: the model does not know the tag {few([repr(tag)])} (it knows "
                f"{few(self.labels)})"
            )
        return place

    def metrics(
        self, outputs: Sequence[Outputs], targets: Sequence[NDArray[np.int64]]
    ) -> dict[str, float]:
        """F1, precision and recall of whole entities, as conlleval and seqeval have them."""
        both, answered, true = self.statistics(outputs, targets).sum(0)
        return {
            self.measure: f1((both, answered, true)),
            "precision": float(both / answered) if answered else 0.0,
            "recall": float(both / true) if true else 0.0,
        }

    def statistics(
        self, outputs: Sequence[Outputs], targets: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Entities of each text that are right, that are answered, and that there are: [N, 3]."""
        rows = np.zeros((len(targets), 3))
        for row, each, target in zip(rows, outputs, targets, strict=True):
            known = target >= 0
            answered, true = each[LOGITS][known].argmax(-1), target[known]
            row[:] = shared(self._chunks(answered), self._chunks(true))
        return rows

    @classmethod
    def measured(cls, statistics: NDArray[np.float64]) -> float:
        return f1(statistics.sum(0))

    def _chunks(self, labels: NDArray[np.int64]) -> set[Chunk]:
        """The entities of a row of labels [W]."""
        return chunks([self._tags[label] for label in labels.tolist()])
