"""Question answering: the part of a context that answers a question, or that none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bounds import require_whole
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import DataError, OutputError
from trbert_deploy.fields import require_kind
from trbert_deploy.tasks import squad
from trbert_deploy.tasks.activations import kl_divergence
from trbert_deploy.tasks.answer_spans import Answer, Candidates, best_answers, best_span
from trbert_deploy.tasks.columns import LABEL, Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.gold_answers import START as ANSWER_START
from trbert_deploy.tasks.gold_answers import TEXT, GoldAnswers, read_answers
from trbert_deploy.tasks.outputs import Output, Outputs, require_numbers
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.task import NO_TOKEN, NewHead, Task
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN

#: What a token is of the answer that is wanted; ``NO_TOKEN`` where it is none that can be.
OTHER, START, END, BOTH = range(4)
#: Entries of config.json, and of ``EncoderSpec.answers``, as transformers' pipeline calls them.
IMPOSSIBLE, LONGEST, TOP = "handle_impossible_answer", "max_answer_len", "top_k"
MOST_ANSWERS, MOST_ANSWER_TOKENS = 1000, 10_000


@dataclass(frozen=True, kw_only=True)
class AnswerPrediction(Prediction):
    """The answer to a question, see ``Answer``.

    Attributes:
        answers: the most probable ones, best first, where several are asked for.
    """

    score: float
    start: int
    end: int
    answer: str
    answers: tuple[Answer, ...] = ()

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        if not self.answers:
            del values["answers"]
        return values


@dataclass(frozen=True, eq=False)
class AnswerTarget:
    """What is wanted of a question and its context. As an array it is ``codes``.

    Attributes:
        codes: [S] int64, what each token is of the answer. Without one, or where it was cut off,
            the first token is ``BOTH``.
        candidates: the context's tokens.
        context: its text.
        answers: the texts that are right; none where the context does not answer the question.
    """

    codes: NDArray[np.int64]
    candidates: Candidates
    context: str
    answers: tuple[str, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.codes, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.codes)


class QuestionAnswering(Task):
    """The part of a context that answers a question.

    Texts are pairs of a question and its context. The outputs [S, 2] are how likely the answer
    starts and ends with each token; the first token stands for no answer. Targets of training are
    those of the first of the answers that a record has.

    Args:
        impossible: whether the answer may be that there is none.
        max_answer_len: most tokens of an answer.
        top_k: answers that are given.

    Raises:
        ConfigError: an option of another kind, or out of range.
    """

    name = "question-answering"
    outputs = (Output(LOGITS, "token"),)
    measure = "f1"
    columns = ("answers", "answer", LABEL)
    entries = options = (IMPOSSIBLE, LONGEST, TOP)
    overlap: ClassVar[int] = 128

    def __init__(self, impossible: bool = True, max_answer_len: int = 15, top_k: int = 1) -> None:
        require_kind(impossible, bool, IMPOSSIBLE)
        require_whole(LONGEST, max_answer_len, 1, MOST_ANSWER_TOKENS)
        require_whole(TOP, top_k, 1, MOST_ANSWERS)
        self.impossible = impossible
        self.max_answer_len = max_answer_len
        self.top_k = top_k

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        known = spec.answers
        return cls(known.get(IMPOSSIBLE, True), known.get(LONGEST, 15), known.get(TOP, 1))

    def with_options(self, chosen: Mapping[str, Any]) -> Self:
        return type(self)(
            chosen.get(IMPOSSIBLE, self.impossible),
            chosen.get(LONGEST, self.max_answer_len),
            chosen.get(TOP, self.top_k),
        )

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        pair = text_of(record, name, columns)
        if isinstance(pair, str):
            raise DataError(
                f"{name} is one text: expected a question and its context, in columns of these "
                "names"
            )
        answers = None if columns.label is None else record.get(columns.label)
        return Example(pair, read_answers(answers, pair[1], name), name)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        """One logit for the start of an answer, and one for its end."""
        return NewHead(cls.name, ("LABEL_0", "LABEL_1"), told="answers in a context")

    def require_names(self, labels: Sequence[str], where: str) -> None:
        """Answers have no names."""

    @property
    def protects(self) -> bool:
        return True

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """All but the context's tokens."""
        return np.array([owner != 1 for owner in encoding.sequence_ids], np.bool_)

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> AnswerPrediction:
        answers = self.answers(outputs, encoding, text)
        best = answers[0]
        return AnswerPrediction(
            num_tokens=len(encoding.ids),
            score=best.score,
            start=best.start,
            end=best.end,
            answer=best.answer,
            answers=tuple(answers) if self.top_k > 1 else (),
        )

    def answers(self, outputs: Outputs, encoding: Any, text: Text) -> list[Answer]:
        """The best answers, the most probable first.

        Raises:
            OutputError: a value is no finite number, or there are not two for each token.
            DataError: the text is no pair.
        """
        require_numbers(outputs)
        expected = (len(encoding.ids), 2)
        if outputs[LOGITS].shape != expected:
            raise OutputError(
                f"the model's logits have the shape {list(outputs[LOGITS].shape)}: expected "
                f"{list(expected)}, start and end for each token"
            )
        return self._answers(outputs, Candidates.of(encoding), _context(text, "the text"))

    def _answers(self, outputs: Outputs, candidates: Candidates, context: str) -> list[Answer]:
        return best_answers(
            outputs[LOGITS],
            candidates,
            context,
            top_k=self.top_k,
            max_answer_len=self.max_answer_len,
            impossible=self.impossible,
        )

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """F1 of the tokens of the best answers; 1 where both have none.

        What is no number agrees with nothing.
        """
        if not (np.isfinite(one[LOGITS]).all() and np.isfinite(other[LOGITS]).all()):
            return 0.0
        (first, last), (begin, end) = (
            best_span(each[LOGITS], self.max_answer_len) for each in (one, other)
        )
        if (first, last) == (begin, end):
            return 1.0
        shared = max(0, min(last, end) - max(first, begin))
        return 2.0 * shared / (last - first + end - begin)

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """Kullback-Leibler divergence of start and end over the tokens, their mean, in nats."""
        return float(kl_divergence(teacher[LOGITS], student[LOGITS], axis=0).mean())

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, AnswerPrediction)
        return prediction.answer.strip() or "no answer"

    def told_target(self, target: GoldAnswers) -> str:
        return next(iter(target[TEXT]), "no answer")

    def no_target(self, encoding: Any = None) -> NDArray[np.int64]:
        return self._codes(Candidates.of(encoding), len(encoding.ids), UNKNOWN)

    def targets(
        self, examples: Sequence[Example], encodings: Sequence[Any] = ()
    ) -> list[AnswerTarget]:
        """Of each question the answers, and what its tokens are of the first of them."""
        return [
            self._target(example, encoding)
            for example, encoding in zip(examples, encodings, strict=True)
        ]

    def _target(self, example: Example, encoding: Any) -> AnswerTarget:
        if example.target is None:
            raise DataError(f"{example.name}: expected a field of answers beside the texts")
        candidates, context = Candidates.of(encoding), _context(example.text, example.name)
        codes = self._codes(candidates, len(encoding.ids), OTHER)
        texts, starts = example.target[TEXT], example.target[ANSWER_START]
        span = None
        if texts:
            offsets = np.array(encoding.offsets, np.int64)[candidates.places]
            span = _tokens_of(starts[0], starts[0] + len(texts[0]), offsets)
        if span is None:
            codes[0] = BOTH
        else:
            first, last = candidates.places[list(span)]
            codes[first] = START
            codes[last] += END
        return AnswerTarget(codes, candidates, context, tuple(texts))

    def target_of(self, target: Any, window: NDArray[np.int64]) -> Any:
        """In a window that has not all of the answer, there is none."""
        if not isinstance(target, AnswerTarget):
            return target[window]
        codes, answers = target.codes[window], target.answers
        has = {int(code) for code in codes}
        if not ({START, END} <= has or BOTH in has):
            codes, answers = np.where(codes == NO_TOKEN, NO_TOKEN, OTHER), ()
            codes[0] = BOTH
        return AnswerTarget(codes, target.candidates.within(window), target.context, answers)

    @staticmethod
    def _codes(candidates: Candidates, length: int, code: int) -> NDArray[np.int64]:
        """A code for each token that an answer may be made of, and for the first one: [S]."""
        codes = np.full(length, NO_TOKEN, np.int64)
        codes[candidates.places] = code
        codes[0] = code
        return codes

    def metrics(
        self, outputs: Sequence[Outputs], targets: Sequence[AnswerTarget]
    ) -> dict[str, float]:
        """F1 of the answers' words, and exact match, by the rules of SQuAD 2.0."""
        f1, exact = self.statistics(outputs, targets).mean(0)
        return {self.measure: float(f1), "exact_match": float(exact)}

    def statistics(
        self, outputs: Sequence[Outputs], targets: Sequence[AnswerTarget]
    ) -> NDArray[np.float64]:
        """F1 and exact match of each answer: [N, 2]."""
        rows = np.zeros((len(targets), 2))
        for row, each, target in zip(rows, outputs, targets, strict=True):
            found = self._answers(each, target.candidates, target.context)[0].answer
            row[:] = squad.f1(found, target.answers), squad.exact_match(found, target.answers)
        return rows


def _context(text: Text, name: str) -> str:
    """The second text of a pair.

    Raises:
        DataError: it is one text.
    """
    if isinstance(text, str):
        raise DataError(f"{name} is one text: expected a pair of a question and its context")
    return text[1]


def _tokens_of(start: int, end: int, offsets: NDArray[np.int64]) -> tuple[int, int] | None:
    """First and last of the tokens that the letters from ``start`` to ``end`` are of.

    Args:
        offsets: [K, 2] of a context's tokens, ascending.

    Returns:
        Places in ``offsets``, or None where they do not have all of the letters.
    """
    begins, ends = offsets.T
    first = int(np.searchsorted(ends, start, "right"))
    last = int(np.searchsorted(begins, end, "left")) - 1
    if last < first or begins[0] > start or ends[-1] < end:
        return None
    return first, last
