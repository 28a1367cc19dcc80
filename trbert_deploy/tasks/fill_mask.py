"""Masked words: which word stands where a text has a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bounds import require_whole
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, DataError, OutputError, few
from trbert_deploy.tasks.activations import kl_divergence, softmax
from trbert_deploy.tasks.columns import LABELS, Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.labels import label_target, names_in
from trbert_deploy.tasks.outputs import Output, Outputs, require_numbers
from trbert_deploy.tasks.pairs import PAIR_ENTRIES
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.spelling import Spelling
from trbert_deploy.tasks.task import NewHead, Task
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN

#: Entries of config.json, and of ``EncoderSpec.answers``: the words that are chosen among, all
#: tokens where there are none; how many of the most probable ones are given.
TARGETS, TOP = "targets", "top_k"
#: Further ones of ``EncoderSpec.answers``, which the tokenizer says.
MASK_ID, TARGET_IDS = "mask_token_id", "target_ids"
MOST_WORDS = 1000


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A word in the place of a mask, by the names that transformers has.

    Attributes:
        score: its probability.
        token: its id.
        token_str: the word.
        sequence: the text with it.
    """

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, kw_only=True)
class FillPrediction(Prediction):
    """The most probable words of a text's masks.

    Attributes:
        fills: for each mask in the order of the text, the words, best first. In JSON those of the
            one mask alone are in no further list, as in transformers.
    """

    fills: tuple[tuple[Fill, ...], ...]

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        if len(self.fills) == 1:
            (values["fills"],) = values["fills"]
        return values


class FillMask(Task):
    """The words behind a text's masks.

    The outputs [A, C] are of the masks alone. Targets are [A] int64 for each text: which word is
    right, or ``UNKNOWN``.

    Args:
        mask: id of the token that stands for a masked one.
        words: that are chosen among, in the order of the logits; none for all tokens.
        word_ids: their tokens.
        top_k: words that are given for a mask, the most probable ones.
        pad: id of the token that fills rows, which no text has.
        spelling: how the tokenizer writes words.

    Raises:
        ConfigError: ``top_k`` of another kind, or out of range.
    """

    name = "fill-mask"
    measure = "accuracy"
    columns = LABELS
    entries = (*PAIR_ENTRIES, TARGETS, TOP)
    options = (TOP,)

    def __init__(
        self,
        mask: int,
        words: Sequence[str] = (),
        word_ids: Sequence[int] = (),
        top_k: int = 5,
        pad: int | None = None,
        spelling: Spelling = Spelling(),
    ) -> None:
        require_whole(TOP, top_k, 1, MOST_WORDS)
        self.mask = mask
        self.words = tuple(words)
        self.word_ids = tuple(word_ids)
        self.top_k = top_k
        self.pad = pad
        self.spelling = spelling
        self.outputs = (Output(LOGITS, "asked", mask),)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        known = spec.answers
        if MASK_ID not in known:
            raise ConfigError(f"the model for {cls.name} does not say which token is the mask")
        return cls(
            known[MASK_ID],
            known.get(TARGETS) or (),
            known.get(TARGET_IDS) or (),
            known.get(TOP, 5),
            spec.pad_token_id,
        )

    @classmethod
    def settled(cls, spec: EncoderSpec, spelling: Callable[[], Spelling]) -> EncoderSpec:
        """With the mask's token, and those of the words that are chosen among."""
        writes = spelling()
        if writes.mask is None:
            raise ConfigError(
                "the tokenizer has no mask token: expected mask_token in tokenizer_config.json"
            )
        words = _require_words(spec.answers.get(TARGETS))
        ids = [_require_token(word, writes, spec.vocab_size) for word in words]
        for place, each in enumerate(ids):
            if (first := ids.index(each)) < place:
                raise ConfigError(
                    f"{TARGETS} has {words[first]!r} and {words[place]!r}, which are one token: "
                    "expected each once"
                )
        answers = {**spec.answers, MASK_ID: writes.mask, TARGET_IDS: ids}
        head = {**spec.head, "logits": len(ids) or spec.vocab_size}
        return replace(spec, labels=(), answers=answers, head=head)

    def spelled(self, spelling: Spelling) -> Self:
        other = copy(self)
        other.spelling = spelling
        return other

    def with_options(self, chosen: Mapping[str, Any]) -> Self:
        require_whole(TOP, chosen[TOP], 1, MOST_WORDS)
        other = copy(self)
        other.top_k = chosen[TOP]
        return other

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        label = None if columns.label is None else record.get(columns.label)
        return Example(text_of(record, name, columns), label_target(label, name), name)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """A choice among the words that occur as labels."""
        words = tuple(sorted(names_in(example.target for example in examples)))
        if len(words) < 2:
            raise DataError(f"the data has one word only ({few(words)}): expected two or more")
        told = f"a choice among the {len(words)} words of the labels"
        return NewHead(cls.name, (), {TARGETS: list(words)}, words, told)

    def require_names(self, labels: Sequence[str], where: str) -> None:
        unknown = [label for label in labels if self.words and self._place(label) is None]
        if unknown:
            raise DataError(
                f"the data has words that {where} does not choose: {few(unknown)} (it chooses "
                f"among {few(self.words)})"
            )

    def leaves_open(self, head: NewHead) -> bool:
        """Whether it knows all words, where some are to be chosen among."""
        return not self.words and bool(head.answers.get(TARGETS))

    def require_like(self, other: Task, name: str) -> None:
        super().require_like(other, name)
        wanted: tuple[str, ...] = getattr(other, "words", ())
        if self.words and not (wanted and {*wanted} <= {*self.words}):
            raise DataError(
                f"{name} chooses among {few(self.words)}: expected the words of the model, "
                f"{few(wanted) or 'all there are'}"
            )

    def translated(self, outputs: Outputs, other: Task) -> Outputs:
        """Outputs of the words that another model chooses among."""
        assert isinstance(other, FillMask)  # that it is like
        if other.words == self.words:
            return outputs
        order = [self.words.index(word) for word in other.words] if self.words else other.word_ids
        return {name: values[..., list(order)] for name, values in outputs.items()}

    def asked(self, encoding: Any) -> NDArray[np.bool_]:
        """Which tokens are masks: [S]."""
        return np.array(encoding.ids, np.int64) == self.mask

    @property
    def protects(self) -> bool:
        return True

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """The first token, and the masks."""
        return super().protected(encoding) | self.asked(encoding)

    def require_question(self, encoding: Any, name: str) -> None:
        if self.mask not in encoding.ids:
            told = self.spelling.added.get(self.mask)
            raise DataError(
                f"{name} has no mask among the {len(encoding.ids)} tokens that are read of it: "
                f"expected {told or 'the mask token'} in the place of a word"
            )

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> FillPrediction:
        fills = self.fills(outputs, encoding, self.top_k)
        return FillPrediction(num_tokens=len(encoding.ids), fills=fills)

    def fills(
        self,
        outputs: Outputs,
        encoding: Any,
        top_k: int,
        among: Sequence[int] | None = None,
    ) -> tuple[tuple[Fill, ...], ...]:
        """The most probable words of each mask, as the pipeline of transformers gives them.

        Args:
            among: tokens that alone are given, with their probabilities among all words.

        Raises:
            OutputError: a value is no finite number, or there are not as many as masks and words.
        """
        logits = self._checked(outputs, encoding)
        ids = np.array(encoding.ids, np.int64)
        (places,) = np.nonzero(ids == self.mask)
        columns = np.arange(logits.shape[1])
        tokens = np.array(self.word_ids, np.int64) if self.words else columns
        if among is not None:
            columns = columns[np.isin(tokens, among)]
        found = []
        for place, scores in zip(places.tolist(), softmax(logits), strict=True):
            best = columns[_largest(scores[columns], top_k)]
            found.append(
                tuple(
                    self._fill(float(scores[each]), int(tokens[each]), ids, place, len(places) < 2)
                    for each in best
                )
            )
        return tuple(found)

    def _fill(
        self, score: float, token: int, ids: NDArray[np.int64], place: int, alone: bool
    ) -> Fill:
        """A word, and the text with it: without special tokens, unless there are other masks."""
        written = ids.copy()
        written[place] = token
        kept = [each for each in written.tolist() if each != self.pad]
        decoded = self.spelling.decoded
        return Fill(
            score=score,
            token=token,
            token_str=decoded([token], False),
            sequence=decoded(kept, alone),
        )

    def _checked(self, outputs: Outputs, encoding: Any) -> NDArray[np.float32]:
        require_numbers(outputs)
        logits = outputs[LOGITS]
        masks, words = int(self.asked(encoding).sum()), len(self.words) or logits.shape[-1]
        if logits.shape != (masks, words):
            raise OutputError(
                f"the model's logits have the shape {list(logits.shape)}: expected "
                f"[{masks}, {words}], one for each mask and word"
            )
        return logits

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """Share of the masks whose most probable words are the same.

        What is no number agrees with nothing.
        """
        if not (np.isfinite(one[LOGITS]).all() and np.isfinite(other[LOGITS]).all()):
            return 0.0
        return _mean(one[LOGITS].argmax(-1) == other[LOGITS].argmax(-1), 1.0)

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Kullback-Leibler divergence of each mask's probabilities, their mean, in nats."""
        return _mean(kl_divergence(teacher[LOGITS], student[LOGITS]), 0.0)

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, FillPrediction)
        return ", ".join(words[0].token_str.strip() for words in prediction.fills)

    def told_target(self, target: str | tuple[str, ...]) -> str:
        return ", ".join(_several(target))

    def no_target(self, encoding: Any = None) -> NDArray[np.int64]:
        return np.full(int(self.asked(encoding).sum()), UNKNOWN)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> list[NDArray[np.int64]]:
        """The place of each mask's word among the logits: [A] each."""
        return [
            self._target(example, encoding)
            for example, encoding in zip(examples, encodings, strict=True)
        ]

    def _target(self, example: Example, encoding: Any) -> NDArray[np.int64]:
        if example.target is None:
            raise DataError(f'{example.name}: expected a field "label" beside the text')
        words, masks = _several(example.target), int(self.asked(encoding).sum())
        if len(words) != masks:
            raise DataError(
                f"{example.name} has {masks} masks that are read, and {len(words)} words as its "
                "label: expected a word, or a list with one for each mask"
            )
        return np.array([self._known(word, example.name) for word in words], np.int64)

    def _known(self, word: str, name: str) -> int:
        place = self._place(word)
        if place is None and self.words:
            raise DataError(
                f"{name}: the model does not choose the word {few([repr(word)])} (it chooses among "
                f"{few(self.words)})"
            )
        if place is None:
            raise DataError(
                f"{name}: the word {few([repr(word)])} is not one token of the model's: expected "
                "words of one"
            )
        return place

    def _place(self, word: str) -> int | None:
        """Which logit is a word's; None for one that has none."""
        if word in self.words:
            return self.words.index(word)
        token = self.spelling.one_token(word)
        if not self.words:
            return token
        return self.word_ids.index(token) if token in self.word_ids else None

    def metrics(
        self, outputs: Sequence[Outputs], targets: Sequence[NDArray[np.int64]]
    ) -> dict[str, float]:
        """Share of the masks that are filled right, and mean reciprocal rank of the right word."""
        right, reciprocal, masks = self.statistics(outputs, targets).sum(0)
        return {self.measure: float(right / masks), "mrr": float(reciprocal / masks)}

    def statistics(
        self, outputs: Sequence[Outputs], targets: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Of each text the masks that are filled right, reciprocal ranks, and masks: [N, 3]."""
        rows = np.zeros((len(targets), 3))
        for row, each, target in zip(rows, outputs, targets, strict=True):
            logits = each[LOGITS]
            wanted = np.take_along_axis(logits, target[:, None], -1)
            rank = 1 + (logits > wanted).sum(-1)
            row[:] = (logits.argmax(-1) == target).sum(), (1.0 / rank).sum(), len(target)
        return rows

    @classmethod
    def measured(cls, statistics: NDArray[np.float64]) -> float:
        right, _, masks = statistics.sum(0)
        return float(right / masks)


def _several(target: str | tuple[str, ...]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else tuple(target)


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the largest values, the largest first; words are too many to sort them all."""
    count = min(count, len(values))
    found = np.argpartition(-values, count - 1)[:count]
    return found[np.argsort(-values[found], kind="stable")]


def _mean(values: NDArray[Any], otherwise: float) -> float:
    """The mean of values, where there are any."""
    return float(values.mean()) if len(values) else otherwise


def _require_words(words: Any) -> list[str]:
    """The words of config.json that are chosen among.

    Raises:
        ConfigError: no list of words.
    """
    if words is None:
        return []
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise ConfigError(f"{TARGETS} is {few([repr(words)])}: expected a list of words")
    return words


def _require_token(word: str, spelling: Spelling, vocab_size: int) -> int:
    """The token of a word.

    Raises:
        ConfigError: it is none, or several, or one that the model does not have.
    """
    token = spelling.one_token(word)
    if token is None or token >= vocab_size:
        raise ConfigError(
            f"the word {word!r} is not one token of the model's: expected words of one"
        )
    return token
