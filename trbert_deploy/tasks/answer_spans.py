"""Logits of where an answer starts and ends to answers, as transformers' pipeline had them.

QuestionAnsweringPipeline of transformers 4, on one window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.tasks.activations import softmax

#: Columns of the logits [S, 2].
START, END = 0, 1


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        score: its probability.
        start, end: the letters of the context that it is made of; 0 and 0 for none.
        answer: the text; empty where the context does not answer the question.
    """

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class Candidates:
    """The tokens of a context, which answers are made of.

    Attributes:
        places: [K] int64, of the tokens in the row, ascending.
        starts, ends: [K] int32, the letters of the context that an answer has that begins or ends
            with the token: those of its whole word.
    """

    places: NDArray[np.int64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    @classmethod
    def of(cls, encoding: Any) -> Self:
        """Those of the encoding of a question and its context."""
        owners = np.array([owner == 1 for owner in encoding.sequence_ids], np.bool_)
        (places,) = np.nonzero(owners)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)[places]
        words = np.array(encoding.word_ids, object)[places]
        known = words != None  # noqa: E711 (an array is compared)
        firsts: dict[int, int] = {}
        lasts: dict[int, int] = {}
        for word, (start, end) in zip(words[known], offsets[known].tolist(), strict=True):
            firsts.setdefault(word, start)
            lasts[word] = end
        starts, ends = offsets.T.copy()
        starts[known] = [firsts[word] for word in words[known]]
        ends[known] = [lasts[word] for word in words[known]]
        return cls(places, starts, ends)

    def within(self, window: NDArray[np.int64]) -> Self:
        """Those that are in a window, by their places there.

        Args:
            window: [W] places of its tokens, ascending.
        """
        inside = np.isin(self.places, window)
        places = np.searchsorted(window, self.places[inside])
        return type(self)(places, self.starts[inside], self.ends[inside])


def best_answers(
    logits: NDArray[np.float32],
    candidates: Candidates,
    context: str,
    *,
    top_k: int,
    max_answer_len: int,
    impossible: bool,
) -> list[Answer]:
    """The most probable answers, at most ``top_k``.

    Probabilities are those of the context's tokens and of the first one, which stands for no
    answer. Spans of the same text are one answer, whose score is their sum.

    Args:
        logits: [S, 2] of where an answer starts and where it ends.
        context: the text that has the answer.
        max_answer_len: most tokens of an answer.
        impossible: whether there may be no answer.
    """
    places = np.concatenate([[0], candidates.places])
    probabilities = softmax(logits[places], axis=0)
    null = float(probabilities[0].prod())
    start, end = probabilities[1:].T
    found: dict[str, Answer] = {}
    # words are whole, so that of the first spans several may be one answer
    for score, first, last in _best_spans(start, end, max_answer_len, 2 * top_k + 10):
        begin, stop = int(candidates.starts[first]), int(candidates.ends[last])
        text = context[begin:stop]
        known = found.get(text.lower(), Answer(0.0, begin, stop, text))
        found[text.lower()] = Answer(known.score + score, known.start, known.end, known.answer)
    answers = list(found.values())
    if impossible or not answers:
        answers.append(Answer(null, 0, 0, ""))
    return sorted(answers, key=lambda answer: -answer.score)[:top_k]


def _best_spans(
    start: NDArray[np.float64], end: NDArray[np.float64], longest: int, count: int
) -> list[tuple[float, int, int]]:
    """Score, first and last token of the best spans of K tokens, the best ones first."""
    size = len(start)
    scores = np.full((min(longest, size), size), -1.0)  # [how many more tokens, first token]
    for more, row in enumerate(scores):
        row[: size - more] = start[: size - more] * end[more:]
    flat = scores.ravel()
    count = min(count, int((flat >= 0).sum()))
    best = np.argsort(-flat, kind="stable")[:count]
    return [
        (float(flat[place]), int(place % size), int(place % size + place // size)) for place in best
    ]


def best_span(logits: NDArray[np.float32], longest: int) -> tuple[int, int]:
    """First token of the best answer and the one behind it, whatever a token is; 0, 0 for none.

    Args:
        logits: [S, 2], the first token's for no answer.
    """
    start, end = logits[1:].astype(np.float64).T
    # only the order counts: e to the power of less than 0 does not overflow
    start, end = np.exp(start - logits[:, START].max()), np.exp(end - logits[:, END].max())
    null = float(np.exp(logits[0] - logits.max(0)).prod())
    best = _best_spans(start, end, longest, 1)
    if not best or best[0][0] < null:
        return 0, 0
    _, first, last = best[0]
    return first + 1, last + 2
